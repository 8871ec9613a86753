//! What happens to a VM's data disks.
//!
//! | its state | input → next |
//! |---|---|
//! | (not there) | AttachDisk → Plugging, where no QEMU lives → Attached |
//! | Attached | DetachDisk → Unplugging, where no QEMU lives → (gone); let go → LetGo |
//! | Plugging | done → Attached; refused → (gone) |
//! | Unplugging | done → (gone); refused or held → Attached |
//! | LetGo | DetachDisk → Unplugging; a new life → Attached |
//!
//! The end of a VM's life brings what is under way to its end: what was being
//! plugged in is there at the next start, what was being taken out is out. After
//! a restart of the daemon QEMU is asked what it has, and the rest is done
//! again. An outcome nobody knows stays open until QEMU answers again.

use super::{
    DiskChange,
    space::wait_for_space,
    turn::{Turn, is_disk_work},
};
use crate::{
    disk::{FIRST_DATA_SLOT, MAX_DATA_DISKS},
    event::EventKind,
    ids::{DiskId, OperationId},
    operation::{OperationKind, OperationStatus, Problem},
    vm::{
        messages::{CommandContext, DiskOutcome, Effect, Refusal, SeenDisk},
        phase::Phase,
        record::{AttachState, Attachment, OpenOperation, Reason, VmRecord},
    },
};

/// From where to where a disk grows, in MiB.
#[derive(Clone, Copy)]
pub(super) struct Growth {
    pub(super) from_mib: u64,
    pub(super) to_mib: u64,
}

/// Where a command finds the VM's machine.
pub(super) enum Machine {
    /// No QEMU lives: only rows change.
    Cold,
    /// QEMU has to do it.
    Live,
}

pub(super) fn machine(phase: Phase) -> Result<Machine, Refusal> {
    match phase {
        Phase::Stopped | Phase::Failed | Phase::Backoff => Ok(Machine::Cold),
        Phase::Running | Phase::Paused => Ok(Machine::Live),
        Phase::Claiming | Phase::Launching => Err(Refusal::OperationInProgress),
        Phase::Stopping | Phase::Killing | Phase::Releasing => Err(Refusal::BeingStopped),
        Phase::Unknown => Err(Refusal::Recovering),
    }
}

fn find<'a>(record: &'a mut VmRecord, disk: &DiskId) -> Option<&'a mut Attachment> {
    record.disks.iter_mut().find(|held| held.disk == *disk)
}

/// The letter of a VM's first disk, and the next: the guest's driver counts.
fn letters(record: &VmRecord) -> std::ops::RangeInclusive<u8> {
    let first = b'a' + u8::from(record.root_disk.is_some());
    first..=b'z'
}

/// A guest that boots finds its disks slot by slot, and names them so.
pub(super) fn name_anew(record: &mut VmRecord) {
    let names = letters(record);
    record.disks.sort_by_key(|held| held.slot);
    for (held, letter) in record.disks.iter_mut().zip(names) {
        held.letter = letter;
        if held.state == AttachState::LetGo {
            held.state = AttachState::Attached;
        }
    }
}

/// The slot of the letter that is wished for if it is free, else the first.
fn free_slot(record: &VmRecord, wish: Option<u8>) -> Option<u8> {
    let slots = FIRST_DATA_SLOT..FIRST_DATA_SLOT + MAX_DATA_DISKS;
    let free = |slot: &u8| record.disks.iter().all(|held| held.slot != *slot);
    let wished = wish.and_then(|letter| {
        let at = letters(record).position(|name| name == letter)?;
        slots.clone().nth(at).filter(free)
    });
    wished.or_else(|| slots.clone().find(free))
}

fn free_letter(record: &VmRecord) -> u8 {
    // What the guest has let go of has no letter any more.
    let named = |held: &&Attachment| held.state != AttachState::LetGo;
    let taken: Vec<u8> = record
        .disks
        .iter()
        .filter(named)
        .map(|held| held.letter)
        .collect();
    let free = |letter: &u8| !taken.contains(letter);
    letters(record).find(free).unwrap_or(b'z')
}

pub(super) fn attach(turn: &mut Turn<'_>, disk: DiskId, wish: Option<u8>, context: CommandContext) {
    let machine = match machine(turn.record.phase) {
        Ok(machine) => machine,
        Err(refusal) => return turn.refuse(refusal),
    };
    if find(&mut turn.record, &disk).is_some() || turn.record.root_disk.as_ref() == Some(&disk) {
        return turn.refuse(Refusal::DiskAttached);
    }
    let Some(slot) = free_slot(&turn.record, wish) else {
        return turn.refuse(Refusal::NoFreeSlot);
    };
    let operation = context.operation.clone();
    turn.accept_about(OperationKind::DiskAttach, Some(disk.clone()), context);
    turn.disk(DiskChange::Attach(disk.clone()));
    let letter = free_letter(&turn.record);
    let state = match machine {
        Machine::Cold => AttachState::Attached,
        Machine::Live => AttachState::Plugging(operation.clone()),
    };
    turn.record.disks.push(Attachment {
        disk: disk.clone(),
        slot,
        letter,
        state,
    });
    turn.record.disks.sort_by_key(|held| held.slot);
    match machine {
        Machine::Cold => {
            name_anew(&mut turn.record);
            turn.finish_one(&operation, OperationStatus::Succeeded, None);
            turn.tell_as(
                EventKind::DiskAttached,
                format!("disk {disk} was attached, from the next start on"),
            );
        }
        Machine::Live => {
            turn.tell_as(
                EventKind::DiskAttached,
                format!("disk {disk} is being plugged into slot {slot}"),
            );
            turn.effect(Effect::Plug {
                operation,
                disk,
                slot,
            });
        }
    }
}

pub(super) fn detach(turn: &mut Turn<'_>, disk: DiskId, context: CommandContext) {
    if turn.record.root_disk.as_ref() == Some(&disk) {
        return turn.refuse(Refusal::RootDisk);
    }
    let machine = match machine(turn.record.phase) {
        Ok(machine) => machine,
        Err(refusal) => return turn.refuse(refusal),
    };
    let operation = context.operation.clone();
    let about = |op: &OpenOperation| op.disk.as_ref() == Some(&disk);
    let busy = turn.record.operations.iter().any(about);
    let Some(held) = find(&mut turn.record, &disk) else {
        return turn.refuse(Refusal::DiskNotAttached);
    };
    if busy {
        return turn.refuse(Refusal::OperationInProgress);
    }
    match machine {
        Machine::Cold => {
            turn.accept_about(OperationKind::DiskDetach, Some(disk.clone()), context);
            remove(turn, &disk);
            name_anew(&mut turn.record);
            turn.finish_one(&operation, OperationStatus::Succeeded, None);
        }
        Machine::Live => {
            held.state = AttachState::Unplugging(operation.clone());
            turn.accept_about(OperationKind::DiskDetach, Some(disk.clone()), context);
            turn.tell_as(
                EventKind::DiskDetached,
                format!("the guest is asked to let go of disk {disk}"),
            );
            let operation = Some(operation);
            turn.effect(Effect::Unplug { operation, disk });
        }
    }
}

pub(super) fn resize(turn: &mut Turn<'_>, disk: DiskId, size: Growth, context: CommandContext) {
    let machine = match machine(turn.record.phase) {
        Ok(machine) => machine,
        Err(refusal) => return turn.refuse(refusal),
    };
    let root = turn.record.root_disk.as_ref() == Some(&disk);
    if find(&mut turn.record, &disk).is_none() && !root {
        return turn.refuse(Refusal::DiskNotAttached);
    }
    let about = |op: &OpenOperation| op.disk.as_ref() == Some(&disk);
    if turn.record.operations.iter().any(about) {
        return turn.refuse(Refusal::OperationInProgress);
    }
    let operation = context.operation.clone();
    turn.accept_about(OperationKind::DiskResize, Some(disk.clone()), context);
    for op in turn
        .record
        .operations
        .iter_mut()
        .filter(|op| op.id == operation)
    {
        op.size_before_mib = Some(size.from_mib);
    }
    // Before QEMU does it: should nobody learn what became of it, a file that is
    // smaller is grown before it is used next.
    turn.disk(DiskChange::Size(disk.clone(), size.to_mib));
    let told = format!("disk {disk} is to have {} MiB", size.to_mib);
    turn.tell_as(EventKind::DiskChanged, told);
    match machine {
        Machine::Cold => turn.finish_one(&operation, OperationStatus::Succeeded, None),
        Machine::Live => turn.effect(Effect::Resize { operation, disk }),
    }
}

/// It is not this VM's any more.
fn remove(turn: &mut Turn<'_>, disk: &DiskId) {
    turn.record.disks.retain(|held| held.disk != *disk);
    turn.disk(DiskChange::Detach(disk.clone()));
    turn.tell_as(EventKind::DiskDetached, format!("disk {disk} was detached"));
}

/// Work on a disk came to its end.
pub(super) fn done(
    turn: &mut Turn<'_>,
    operation: &OperationId,
    disk: &DiskId,
    outcome: DiskOutcome,
) {
    let open = turn.record.operations.iter().find(|op| op.id == *operation);
    let Some(open) = open.cloned() else {
        // Late news of what was settled otherwise.
        return;
    };
    let problem = problem(outcome, "guest_holds_disk");
    if open.kind == OperationKind::DiskResize {
        resized(turn, disk, open.size_before_mib, problem.as_ref());
        return finish(turn, operation, problem.as_ref());
    }
    let Some(held) = find(&mut turn.record, disk) else {
        return finish(turn, operation, problem.as_ref());
    };
    let was = std::mem::replace(&mut held.state, AttachState::Attached);
    match (was, &problem) {
        (AttachState::Plugging(_), None) => {
            turn.tell_as(EventKind::DiskAttached, format!("disk {disk} was attached"));
        }
        (AttachState::Plugging(_), Some(_)) | (AttachState::Unplugging(_), None) => {
            remove(turn, disk);
        }
        (_, Some(problem)) => {
            let told = format!("disk {disk} stays attached: {}", problem.detail);
            turn.tell_as(EventKind::DiskChanged, told);
        }
        (AttachState::Attached | AttachState::LetGo, None) => {}
    }
    finish(turn, operation, problem.as_ref());
}

fn resized(turn: &mut Turn<'_>, disk: &DiskId, before: Option<u64>, problem: Option<&Problem>) {
    let told = match problem {
        None => format!("disk {disk} was grown"),
        Some(problem) => {
            if let Some(before) = before {
                turn.disk(DiskChange::Size(disk.clone(), before));
            }
            format!("disk {disk} keeps its size: {}", problem.detail)
        }
    };
    turn.tell_as(EventKind::DiskChanged, told);
}

fn finish(turn: &mut Turn<'_>, operation: &OperationId, problem: Option<&Problem>) {
    let status = match problem {
        None => OperationStatus::Succeeded,
        Some(_) => OperationStatus::Failed,
    };
    turn.finish_one(operation, status, problem);
}

/// Why nothing came of it; `held` is the code for a guest that does not let go.
pub(super) fn problem(outcome: DiskOutcome, held: &str) -> Option<Problem> {
    match outcome {
        DiskOutcome::Done => None,
        DiskOutcome::Refused(detail) => Some(Problem::new("qemu_refused", detail)),
        DiskOutcome::Held(detail) => Some(Problem::new(held, detail)),
    }
}

/// QEMU was asked what it has: what is under way is done, or is done again.
pub(super) fn seen(turn: &mut Turn<'_>, seen: &[SeenDisk]) {
    if !matches!(turn.record.phase, Phase::Running | Phase::Paused) {
        return;
    }
    let has = |disk: &DiskId| seen.iter().find(|there| there.disk == *disk);
    for held in turn.record.disks.clone() {
        let (device, node) = has(&held.disk).map_or((false, false), |s| (s.device, s.node));
        let disk = held.disk.clone();
        match held.state {
            AttachState::Plugging(operation) if device => {
                done(turn, &operation, &disk, DiskOutcome::Done);
            }
            AttachState::Plugging(operation) => turn.effect(Effect::Plug {
                operation,
                disk,
                slot: held.slot,
            }),
            AttachState::Unplugging(operation) if !device && !node => {
                done(turn, &operation, &disk, DiskOutcome::Done);
            }
            AttachState::Unplugging(operation) => turn.effect(Effect::Unplug {
                operation: Some(operation),
                disk,
            }),
            AttachState::Attached if !device => let_go(turn, &disk),
            AttachState::Attached | AttachState::LetGo => {}
        }
    }
    for op in turn.record.operations.clone() {
        if let (OperationKind::DiskResize, Some(disk)) = (op.kind, op.disk) {
            let operation = op.id;
            turn.effect(Effect::Resize { operation, disk });
        }
    }
    for there in seen {
        let ours = turn.record.root_disk.as_ref() == Some(&there.disk)
            || find(&mut turn.record, &there.disk).is_some();
        if !ours && (there.device || there.node) {
            let disk = there.disk.clone();
            let operation = None;
            turn.effect(Effect::Unplug { operation, disk });
        }
    }
}

/// QEMU answers again: what became of that whose answer was lost?
pub(super) fn ask_again(turn: &mut Turn<'_>) {
    let open = turn
        .record
        .operations
        .iter()
        .any(|op| is_disk_work(op.kind));
    if open && matches!(turn.record.phase, Phase::Running | Phase::Paused) {
        turn.effect(Effect::LookAtDisks);
    }
    if turn.record.phase == Phase::Paused && turn.record.reason == Reason::IoError {
        wait_for_space(turn);
    }
}

/// The guest let go of a disk that nobody takes out of it now: late after a
/// detach that was given up, or by itself.
pub(super) fn let_go(turn: &mut Turn<'_>, disk: &DiskId) {
    if let Some(held) = find(&mut turn.record, disk)
        && held.state == AttachState::Attached
    {
        held.state = AttachState::LetGo;
        turn.tell_as(
            EventKind::DiskDetached,
            format!(
                "the guest let go of disk {disk}: detach it now, or it is back at the next start"
            ),
        );
    }
}

/// The life is over: nothing is under way any more.
pub(super) fn settle(turn: &mut Turn<'_>) {
    for held in turn.record.disks.clone() {
        let operation = match &held.state {
            AttachState::Attached => continue,
            AttachState::LetGo => None,
            AttachState::Plugging(id) => Some(id),
            AttachState::Unplugging(id) => {
                remove(turn, &held.disk);
                finish(turn, id, None);
                continue;
            }
        };
        if let Some(held) = find(&mut turn.record, &held.disk) {
            held.state = AttachState::Attached;
        }
        if let Some(operation) = operation {
            finish(turn, operation, None);
        }
    }
    turn.finish(
        |kind| kind == OperationKind::DiskResize,
        OperationStatus::Succeeded,
        None,
    );
    name_anew(&mut turn.record);
}
