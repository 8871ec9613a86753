//! Network cards that come and go.
#![allow(clippy::unwrap_used)] // also in what the tests call

use super::{
    given::{context, moment, nic, operation},
    table::vm_in,
};
use crate::{
    network::{LinkState, NicState},
    operation::OperationStatus,
    vm::{
        messages::{Command, DiskOutcome, Effect, Fact, Input, NicWork, Refusal, Reply, RunState},
        phase::Phase,
        record::VmRecord,
        step::{Decision, NicChange, step},
    },
};

fn ask(record: &VmRecord, command: Command) -> Decision {
    step(record, Input::Command(command, context(7)), &moment(10, 1))
}

fn tell(record: &VmRecord, fact: Fact) -> Decision {
    step(
        record,
        Input::Fact(record.incarnation, fact),
        &moment(10, 1),
    )
}

fn attach(number: u8) -> Command {
    Command::AttachNic(Box::new(nic(number)))
}

fn done(number: u8, outcome: DiskOutcome) -> Fact {
    Fact::NicDone {
        operation: operation(7),
        nic: number,
        outcome,
    }
}

fn works(decision: &Decision) -> Vec<(u8, NicWork)> {
    let works = decision.effects.iter().filter_map(|effect| match effect {
        Effect::Nic { nic, work, .. } => Some((*nic, *work)),
        _ => None,
    });
    works.collect()
}

fn status(decision: &Decision) -> OperationStatus {
    decision.operations[0].status
}

#[test]
fn a_stopped_vm_gets_and_loses_a_card_with_its_address_by_rows_alone() {
    let got = ask(&vm_in(Phase::Stopped), attach(1));
    assert_eq!(status(&got), OperationStatus::Succeeded);
    assert_eq!(got.nics, [NicChange::Take(Box::new(nic(1)))]);
    assert!(got.effects.is_empty());
    assert_eq!(got.record.nics[0].state, NicState::Attached);
    let lost = ask(&got.record, Command::DetachNic(1));
    assert_eq!(lost.nics, [NicChange::Return(1)]);
    assert!(lost.record.nics.is_empty() && lost.effects.is_empty());
}

#[test]
fn a_running_vm_has_the_card_when_qemu_has_it_and_its_address_before() {
    let asked = ask(&vm_in(Phase::Running), attach(2));
    assert_eq!(works(&asked), [(2, NicWork::Plug)]);
    assert_eq!(asked.nics, [NicChange::Take(Box::new(nic(2)))]);
    assert_eq!(asked.record.claim.as_ref().unwrap().nics[0].nic, 2);
    let had = tell(&asked.record, done(2, DiskOutcome::Done));
    assert_eq!(status(&had), OperationStatus::Succeeded);
    assert_eq!(had.record.nics[0].state, NicState::Attached);
    assert!(had.nics.is_empty());
}

#[test]
fn a_card_that_qemu_refuses_leaves_nothing() {
    let asked = ask(&vm_in(Phase::Running), attach(1));
    let refused = tell(
        &asked.record,
        done(1, DiskOutcome::Refused("no".to_owned())),
    );
    assert_eq!(status(&refused), OperationStatus::Failed);
    assert_eq!(refused.nics, [NicChange::Return(1)]);
    assert!(refused.record.nics.is_empty());
    assert!(refused.record.claim.unwrap().nics.is_empty());
}

#[test]
fn a_guest_that_holds_its_card_keeps_it_and_its_address() {
    let record = ask(&vm_in(Phase::Stopped), attach(1)).record;
    let mut running = vm_in(Phase::Running);
    running.nics = record.nics;
    let asked = ask(&running, Command::DetachNic(1));
    assert_eq!(works(&asked), [(1, NicWork::Unplug)]);
    let held = tell(&asked.record, done(1, DiskOutcome::Held("held".to_owned())));
    let error = held.operations[0].error.as_ref().unwrap();
    assert_eq!(error.code, "guest_holds_nic");
    assert!(held.nics.is_empty());
    assert_eq!(held.record.nics, running.nics);
}

#[test]
fn what_is_under_way_with_a_card_is_done_again_after_a_restart_of_the_daemon() {
    let asked = ask(&vm_in(Phase::Running), attach(1)).record;
    let lost = step(&asked, Input::Recover, &moment(10, 1)).record;
    let found = tell(&lost, Fact::Ready(RunState::Running));
    assert_eq!(works(&found), [(1, NicWork::Plug)]);
}

#[test]
fn a_card_that_is_being_taken_out_is_asked_for_again_and_out_at_the_end_of_the_life() {
    let attached = ask(&vm_in(Phase::Stopped), attach(1)).record;
    let mut running = vm_in(Phase::Running);
    running.nics = attached.nics;
    let asked = ask(&running, Command::DetachNic(1)).record;
    let lost = step(&asked, Input::Recover, &moment(10, 1)).record;
    let found = tell(&lost, Fact::Ready(RunState::Running));
    assert_eq!(works(&found), [(1, NicWork::Unplug)]);
    let mut over = asked;
    over.phase = Phase::Releasing;
    let over = tell(&over, Fact::Released { erased: false });
    assert_eq!(status(&over), OperationStatus::Succeeded);
    assert_eq!(over.nics, [NicChange::Return(1)]);
    assert!(over.record.nics.is_empty());
    // What was being plugged in is there at the next start.
    let mut plugging = ask(&vm_in(Phase::Running), attach(1)).record;
    plugging.phase = Phase::Releasing;
    let over = tell(&plugging, Fact::Released { erased: false });
    assert_eq!(over.record.nics[0].state, NicState::Attached);
    assert!(over.nics.is_empty());
}

#[test]
fn the_first_card_stays_a_fourth_is_refused_and_one_thing_at_a_time_is_done_to_a_card() {
    let running = vm_in(Phase::Running);
    let refused = |record: &VmRecord, command| match ask(record, command).reply {
        Some(Reply::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&running, Command::DetachNic(0)), Refusal::FirstNic);
    assert_eq!(refused(&running, attach(3)), Refusal::NoFreeNicSlot);
    let detach = Command::DetachNic(1);
    assert_eq!(refused(&running, detach.clone()), Refusal::NicNotAttached);
    let plugging = ask(&running, attach(1)).record;
    assert_eq!(refused(&plugging, detach), Refusal::OperationInProgress);
}

#[test]
fn a_pulled_cable_is_told_to_qemu_once_and_stays_pulled() {
    let down = Command::SetLink {
        nic: 0,
        link: LinkState::Down,
    };
    let pulled = ask(&vm_in(Phase::Running), down.clone());
    assert_eq!(works(&pulled), [(0, NicWork::Link(LinkState::Down))]);
    let record = tell(&pulled.record, done(0, DiskOutcome::Done)).record;
    assert_eq!(record.link, LinkState::Down);
    let again = ask(&record, down);
    assert_eq!(status(&again), OperationStatus::Succeeded);
    assert!(works(&again).is_empty());
}
