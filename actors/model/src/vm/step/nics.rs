//! What happens to a VM's network cards.
//!
//! | its state | input → next |
//! |---|---|
//! | (not there) | AttachNic → Plugging, where no QEMU lives → Attached |
//! | Attached | DetachNic → Unplugging, where no QEMU lives → (gone) |
//! | Plugging | done → Attached; refused → (gone) |
//! | Unplugging | done → (gone); refused or held → Attached |
//!
//! A card and its lease come and go in one commit. The first card is always
//! Attached. The end of a VM's life brings what is under way to its end, as it
//! does for disks. After a restart of the daemon, and when QEMU answers again,
//! what is under way is simply done again: each of its steps may be repeated.

use super::{
    NicChange,
    disks::{Machine, machine, problem},
    turn::{Turn, is_nic_work},
};
use crate::{
    event::EventKind,
    ids::OperationId,
    network::nic::{LinkState, MAX_NICS, NewNic, Nic, NicState, nic_id},
    operation::{OperationKind, OperationStatus, Problem},
    vm::{
        messages::{CommandContext, DiskOutcome, Effect, NicWork, Refusal},
        phase::Phase,
        record::{NicClaim, VmRecord},
    },
};

fn find(record: &mut VmRecord, number: u8) -> Option<&mut Nic> {
    record.nics.iter_mut().find(|nic| nic.number == number)
}

fn busy(record: &VmRecord, number: u8) -> bool {
    record.operations.iter().any(|op| op.nic == Some(number))
}

pub(super) fn attach(turn: &mut Turn<'_>, new: NewNic, context: CommandContext) {
    let machine = match machine(turn.record.phase) {
        Ok(machine) => machine,
        Err(refusal) => return turn.refuse(refusal),
    };
    let (number, kind) = (new.number, new.kind);
    if number == 0 || number >= MAX_NICS {
        return turn.refuse(Refusal::NoFreeNicSlot);
    }
    if find(&mut turn.record, number).is_some() {
        // Another request has taken the number meanwhile.
        return turn.refuse(Refusal::OperationInProgress);
    }
    let operation = context.operation.clone();
    turn.accept_nic(OperationKind::NicAttach, number, context);
    let state = match machine {
        Machine::Cold => NicState::Attached,
        Machine::Live => NicState::Plugging,
    };
    turn.record.nics.push(Nic {
        number,
        mac: new.mac,
        link: new.link,
        state,
        network: new.network.clone(),
    });
    turn.record.nics.sort_by_key(|nic| nic.number);
    let name = nic_id(number);
    let taken = NicChange::Take(Box::new(new.clone()));
    turn.nic(taken);
    match machine {
        Machine::Cold => {
            turn.finish_one(&operation, OperationStatus::Succeeded, None);
            let told = format!("card {name} was attached, from the next start on");
            turn.tell_as(EventKind::NicAttached, told);
        }
        Machine::Live => {
            if let Some(claim) = &mut turn.record.claim {
                claim.nics.push(NicClaim {
                    nic: number,
                    kind,
                    mac: new.mac,
                    address: new.lease.as_ref().map(|lease| lease.id.to_string()),
                });
            }
            turn.tell_as(
                EventKind::NicAttached,
                format!("card {name} is being plugged in"),
            );
            work(turn, operation, number, NicWork::Plug);
        }
    }
}

pub(super) fn detach(turn: &mut Turn<'_>, number: u8, context: CommandContext) {
    if number == 0 {
        return turn.refuse(Refusal::FirstNic);
    }
    let machine = match machine(turn.record.phase) {
        Ok(machine) => machine,
        Err(refusal) => return turn.refuse(refusal),
    };
    let busy = busy(&turn.record, number);
    let Some(nic) = find(&mut turn.record, number) else {
        return turn.refuse(Refusal::NicNotAttached);
    };
    if busy {
        return turn.refuse(Refusal::OperationInProgress);
    }
    let operation = context.operation.clone();
    match machine {
        Machine::Cold => {
            turn.accept_nic(OperationKind::NicDetach, number, context);
            remove(turn, number, "was detached");
            turn.finish_one(&operation, OperationStatus::Succeeded, None);
        }
        Machine::Live => {
            nic.state = NicState::Unplugging;
            turn.accept_nic(OperationKind::NicDetach, number, context);
            turn.tell_as(
                EventKind::NicDetached,
                format!("the guest is asked to let go of card {}", nic_id(number)),
            );
            work(turn, operation, number, NicWork::Unplug);
        }
    }
}

/// Plugs a card's cable in or pulls it. It stays so over restarts.
pub(super) fn set_link(turn: &mut Turn<'_>, number: u8, link: LinkState, context: CommandContext) {
    let machine = match machine(turn.record.phase) {
        Ok(machine) => machine,
        Err(refusal) => return turn.refuse(refusal),
    };
    let Some(before) = turn.record.link_of(number) else {
        return turn.refuse(Refusal::NicNotAttached);
    };
    if busy(&turn.record, number) {
        return turn.refuse(Refusal::OperationInProgress);
    }
    let operation = context.operation.clone();
    turn.accept_nic(OperationKind::NicLink, number, context);
    put_link(&mut turn.record, number, link);
    let told = format!("the link of card {} is {}", nic_id(number), link.as_str());
    turn.tell_as(EventKind::NicChanged, told);
    match machine {
        Machine::Live if before != link => work(turn, operation, number, NicWork::Link(link)),
        Machine::Live | Machine::Cold => {
            turn.finish_one(&operation, OperationStatus::Succeeded, None);
        }
    }
}

fn put_link(record: &mut VmRecord, number: u8, link: LinkState) {
    if number == 0 {
        record.link = link;
    } else if let Some(nic) = find(record, number) {
        nic.link = link;
    }
}

fn work(turn: &mut Turn<'_>, operation: OperationId, nic: u8, work: NicWork) {
    turn.effect(Effect::Nic {
        operation,
        nic,
        work,
    });
}

/// It is not this VM's any more, and neither is its address.
fn remove(turn: &mut Turn<'_>, number: u8, why: &str) {
    turn.record.nics.retain(|nic| nic.number != number);
    if let Some(claim) = &mut turn.record.claim {
        claim.nics.retain(|nic| nic.nic != number);
    }
    turn.nic(NicChange::Return(number));
    let told = format!("card {} {why}", nic_id(number));
    turn.tell_as(EventKind::NicDetached, told);
}

/// Work on a card came to its end.
pub(super) fn done(turn: &mut Turn<'_>, operation: &OperationId, number: u8, outcome: DiskOutcome) {
    let open = turn.record.operations.iter().find(|op| op.id == *operation);
    let Some(kind) = open.filter(|op| is_nic_work(op.kind)).map(|op| op.kind) else {
        // Late news of what was settled otherwise.
        return;
    };
    let problem = problem(outcome, "guest_holds_nic");
    match (kind, &problem) {
        (OperationKind::NicAttach, None) => {
            rest(turn, number);
            let told = format!("card {} was plugged in", nic_id(number));
            turn.tell_as(EventKind::NicAttached, told);
        }
        (OperationKind::NicAttach, Some(problem)) => {
            remove(
                turn,
                number,
                &format!("could not be plugged in: {}", problem.detail),
            );
        }
        (OperationKind::NicDetach, None) => remove(turn, number, "was detached"),
        (OperationKind::NicDetach, Some(problem)) => {
            rest(turn, number);
            let told = format!("card {} stays attached: {}", nic_id(number), problem.detail);
            turn.tell_as(EventKind::NicChanged, told);
        }
        (_, None) => {}
        (_, Some(problem)) => {
            let told = format!(
                "the link of card {} changes at the next start only: {}",
                nic_id(number),
                problem.detail
            );
            turn.tell_as(EventKind::NicChanged, told);
        }
    }
    finish(turn, operation, problem.as_ref());
}

fn rest(turn: &mut Turn<'_>, number: u8) {
    if let Some(nic) = find(&mut turn.record, number) {
        nic.state = NicState::Attached;
    }
}

fn finish(turn: &mut Turn<'_>, operation: &OperationId, problem: Option<&Problem>) {
    let status = match problem {
        None => OperationStatus::Succeeded,
        Some(_) => OperationStatus::Failed,
    };
    turn.finish_one(operation, status, problem);
}

/// QEMU was found, or answers again: what is under way is done (again).
pub(super) fn go_on(turn: &mut Turn<'_>) {
    if !matches!(turn.record.phase, Phase::Running | Phase::Paused) {
        return;
    }
    for op in turn.record.operations.clone() {
        let Some(number) = op.nic else { continue };
        let what = match op.kind {
            OperationKind::NicAttach => NicWork::Plug,
            OperationKind::NicDetach => NicWork::Unplug,
            _ => match turn.record.link_of(number) {
                Some(link) => NicWork::Link(link),
                None => continue,
            },
        };
        work(turn, op.id, number, what);
    }
}

/// The life is over: nothing is under way any more. What was being plugged in
/// is there at the next start, what was being taken out is out.
pub(super) fn settle(turn: &mut Turn<'_>) {
    for nic in turn.record.nics.clone() {
        match nic.state {
            NicState::Attached => {}
            NicState::Plugging => rest(turn, nic.number),
            NicState::Unplugging => remove(turn, nic.number, "was detached"),
        }
    }
    turn.finish(is_nic_work, OperationStatus::Succeeded, None);
}
