//! Data disks that come, grow and go.
#![allow(clippy::unwrap_used)] // also in what the tests call

mod found;

use super::{
    given::{STOP, context, disk, moment, operation},
    table::vm_in,
};
use crate::{
    disk::{FIRST_DATA_SLOT, MAX_DATA_DISKS},
    operation::OperationStatus,
    vm::{
        messages::{
            Command, DiskOutcome, Effect, ExitStatus, Fact, Input, Refusal, Reply, RunState,
            SeenDisk,
        },
        phase::Phase,
        record::{AttachState, Attachment, Reason, VmRecord},
        step::{Decision, DiskChange, step},
    },
};

fn ask(record: &VmRecord, command: Command) -> Decision {
    let id = 7 + record.operations.len() as u64;
    step(record, Input::Command(command, context(id)), &moment(10, 1))
}

fn tell(record: &VmRecord, fact: Fact) -> Decision {
    let input = Input::Fact(record.incarnation, fact);
    step(record, input, &moment(10, 1))
}

fn attach(number: u8) -> Command {
    Command::AttachDisk {
        disk: disk(number),
        letter: None,
    }
}

fn grow(number: u8) -> Command {
    Command::ResizeDisk {
        disk: disk(number),
        from_mib: 1,
        size_mib: 2,
    }
}

fn done(number: u8, outcome: DiskOutcome) -> Fact {
    Fact::DiskDone {
        operation: operation(7),
        disk: disk(number),
        outcome,
    }
}

fn seen(number: u8, device: bool, node: bool) -> SeenDisk {
    SeenDisk {
        disk: disk(number),
        device,
        node,
    }
}

/// A VM in this phase with these disks, as they were attached while it was stopped.
fn with_disks(phase: Phase, numbers: &[u8]) -> VmRecord {
    let mut stopped = vm_in(Phase::Stopped);
    for number in numbers {
        stopped = ask(&stopped, attach(*number)).record;
    }
    VmRecord {
        disks: stopped.disks,
        ..vm_in(phase)
    }
}

/// What of a decision is about disks on the host.
fn works(decision: &Decision) -> Vec<Effect> {
    let about_disks = |effect: &&Effect| {
        matches!(
            effect,
            Effect::Plug { .. }
                | Effect::Unplug { .. }
                | Effect::Resize { .. }
                | Effect::LookAtDisks
        )
    };
    decision
        .effects
        .iter()
        .filter(about_disks)
        .cloned()
        .collect()
}

fn plug(number: u8, slot: u8) -> Effect {
    Effect::Plug {
        operation: operation(7),
        disk: disk(number),
        slot,
    }
}

fn unplug(number: u8) -> Effect {
    Effect::Unplug {
        operation: Some(operation(7)),
        disk: disk(number),
    }
}

fn states(record: &VmRecord) -> Vec<&AttachState> {
    record.disks.iter().map(|held| &held.state).collect()
}

/// Disk, slot and letter of each.
fn places(record: &VmRecord) -> Vec<(String, u8, char)> {
    let place = |held: &Attachment| (held.disk.to_string(), held.slot, char::from(held.letter));
    record.disks.iter().map(place).collect()
}

fn place(number: u8, slot: u8, letter: char) -> (String, u8, char) {
    (disk(number).to_string(), slot, letter)
}

fn status(decision: &Decision) -> OperationStatus {
    decision.operations[0].status
}

fn refused(record: &VmRecord, command: Command) -> Refusal {
    let decision = ask(record, command);
    assert_eq!(decision.record, *record, "a refusal changes nothing");
    assert!(decision.disks.is_empty() && decision.effects.is_empty());
    match decision.reply {
        Some(Reply::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stopped_vm_gets_and_loses_a_disk_by_rows_alone() {
    let got = ask(&vm_in(Phase::Stopped), attach(1));
    assert_eq!(status(&got), OperationStatus::Succeeded);
    assert_eq!(got.disks, [DiskChange::Attach(disk(1))]);
    assert_eq!(states(&got.record), [&AttachState::Attached]);
    let lost = ask(&got.record, Command::DetachDisk(disk(1)));
    assert_eq!(status(&lost), OperationStatus::Succeeded);
    assert_eq!(lost.disks, [DiskChange::Detach(disk(1))]);
    assert!(lost.record.disks.is_empty());
    assert!(got.effects.is_empty() && lost.effects.is_empty());
}

#[test]
fn a_running_vm_has_a_disk_when_qemu_has_it_and_its_row_before() {
    let asked = ask(&vm_in(Phase::Running), attach(1));
    assert_eq!(asked.disks, [DiskChange::Attach(disk(1))]);
    assert_eq!(works(&asked), [plug(1, FIRST_DATA_SLOT)]);
    let plugging = AttachState::Plugging(operation(7));
    assert_eq!(states(&asked.record), [&plugging]);
    let had = tell(&asked.record, done(1, DiskOutcome::Done));
    assert_eq!(status(&had), OperationStatus::Succeeded);
    assert_eq!(states(&had.record), [&AttachState::Attached]);
    assert!(had.disks.is_empty());
}

#[test]
fn a_disk_that_qemu_refuses_is_free_again() {
    let asked = ask(&vm_in(Phase::Running), attach(1)).record;
    let refused = tell(&asked, done(1, DiskOutcome::Refused("no".to_owned())));
    assert_eq!(status(&refused), OperationStatus::Failed);
    assert_eq!(refused.disks, [DiskChange::Detach(disk(1))]);
    assert!(refused.record.disks.is_empty());
}

#[test]
fn a_running_vm_loses_a_disk_when_its_guest_has_let_go_of_it() {
    let running = with_disks(Phase::Running, &[1, 2]);
    let asked = ask(&running, Command::DetachDisk(disk(2)));
    assert_eq!(works(&asked), [unplug(2)]);
    assert!(asked.disks.is_empty(), "it is in the guest yet");
    let lost = tell(&asked.record, done(2, DiskOutcome::Done));
    assert_eq!(status(&lost), OperationStatus::Succeeded);
    assert_eq!(lost.disks, [DiskChange::Detach(disk(2))]);
    assert_eq!(lost.record.disks, running.disks[..1]);
    // Or keeps it.
    let held = tell(&asked.record, done(2, DiskOutcome::Held("held".to_owned())));
    let error = held.operations[0].error.as_ref().unwrap();
    assert_eq!(error.code, "guest_holds_disk");
    assert_eq!(held.record.disks, running.disks);
    assert!(held.disks.is_empty());
}

#[test]
fn late_news_of_work_that_is_settled_changes_nothing() {
    let running = with_disks(Phase::Running, &[1]);
    let late = tell(&running, done(1, DiskOutcome::Done));
    assert_eq!(late.record, running);
    assert!(late.operations.is_empty() && late.event.is_none());
}

#[test]
fn a_disk_is_attached_once_and_one_thing_at_a_time_is_done_to_it() {
    let mut running = with_disks(Phase::Running, &[1]);
    running.root_disk = Some(disk(9));
    let detach = |number| Command::DetachDisk(disk(number));
    assert_eq!(refused(&running, attach(1)), Refusal::DiskAttached);
    assert_eq!(refused(&running, attach(9)), Refusal::DiskAttached);
    assert_eq!(refused(&running, detach(9)), Refusal::RootDisk);
    assert_eq!(refused(&running, detach(2)), Refusal::DiskNotAttached);
    assert_eq!(refused(&running, grow(2)), Refusal::DiskNotAttached);
    let growing = ask(&running, grow(1)).record;
    assert_eq!(refused(&growing, detach(1)), Refusal::OperationInProgress);
    assert_eq!(refused(&growing, grow(1)), Refusal::OperationInProgress);
    // Work on one is in no other's way.
    let both = with_disks(Phase::Running, &[1, 2]);
    let growing = ask(&both, grow(1)).record;
    assert_eq!(
        status(&ask(&growing, detach(2))),
        OperationStatus::Running,
        "the other one"
    );
    assert_eq!(status(&ask(&growing, grow(2))), OperationStatus::Running);
}

#[test]
fn a_disk_has_the_new_size_before_qemu_knows_and_the_old_one_if_it_refuses() {
    let cold = ask(&with_disks(Phase::Stopped, &[1]), grow(1));
    assert_eq!(status(&cold), OperationStatus::Succeeded);
    assert_eq!(cold.disks, [DiskChange::Size(disk(1), 2)]);
    assert!(cold.effects.is_empty());
    let live = ask(&with_disks(Phase::Running, &[1]), grow(1));
    assert_eq!(live.disks, [DiskChange::Size(disk(1), 2)]);
    let resize = Effect::Resize {
        operation: operation(7),
        disk: disk(1),
    };
    assert_eq!(works(&live), [resize]);
    let grown = tell(&live.record, done(1, DiskOutcome::Done));
    assert_eq!(status(&grown), OperationStatus::Succeeded);
    assert!(grown.disks.is_empty());
    assert!(grown.event.unwrap().detail.contains("was grown"));
    let kept = tell(&live.record, done(1, DiskOutcome::Refused("no".to_owned())));
    assert_eq!(status(&kept), OperationStatus::Failed);
    assert_eq!(kept.disks, [DiskChange::Size(disk(1), 1)]);
    let mut root = vm_in(Phase::Running);
    root.root_disk = Some(disk(1));
    assert_eq!(status(&ask(&root, grow(1))), OperationStatus::Running);
}

#[test]
fn each_disk_has_a_slot_and_a_letter_of_its_own_and_a_wish_for_a_letter_finds_its_slot() {
    let first = FIRST_DATA_SLOT;
    let two = with_disks(Phase::Running, &[1, 2]);
    assert_eq!(
        places(&two),
        [place(1, first, 'a'), place(2, first + 1, 'b')]
    );
    let wish = |record: &VmRecord, letter| {
        let command = Command::AttachDisk {
            disk: disk(3),
            letter: Some(letter),
        };
        ask(record, command).record
    };
    let asked = wish(&two, b'd');
    assert_eq!(places(&asked)[2], place(3, first + 3, 'c'));
    // What is taken, or no disk's letter, is as good as none.
    for letter in [b'b', b'z', b'!'] {
        assert_eq!(places(&wish(&two, letter))[2].1, first + 2, "{letter}");
    }
    let mut rooted = two.clone();
    rooted.root_disk = Some(disk(9));
    for (held, letter) in rooted.disks.iter_mut().zip(b'b'..) {
        held.letter = letter;
    }
    let asked = wish(&rooted, b'e');
    assert_eq!(places(&asked)[2], place(3, first + 3, 'd'));
    // A guest that boots names them slot by slot.
    rooted.phase = Phase::Stopped;
    let named = wish(&rooted, b'e');
    assert_eq!(places(&named)[2], place(3, first + 3, 'd'));
    let fewer = ask(&named, Command::DetachDisk(disk(1))).record;
    let left = [place(2, first + 1, 'b'), place(3, first + 3, 'c')];
    assert_eq!(places(&fewer), left);
}

#[test]
fn the_letter_of_what_the_guest_has_let_go_of_is_given_again_and_a_ninth_disk_is_refused() {
    let running = with_disks(Phase::Running, &[1, 2]);
    let let_go = tell(&running, Fact::DiskLetGo(disk(1)));
    assert_eq!(
        states(&let_go.record),
        [&AttachState::LetGo, &AttachState::Attached]
    );
    assert!(let_go.event.unwrap().detail.contains("let go of disk"));
    let asked = ask(&let_go.record, attach(3)).record;
    assert_eq!(places(&asked)[2], place(3, FIRST_DATA_SLOT + 2, 'a'));
    // It can be detached, and is told once.
    assert_eq!(
        tell(&let_go.record, Fact::DiskLetGo(disk(1))).record,
        let_go.record
    );
    let detached = ask(&let_go.record, Command::DetachDisk(disk(1)));
    assert_eq!(works(&detached), [unplug(1)]);
    let all: Vec<u8> = (1..=MAX_DATA_DISKS).collect();
    let full = with_disks(Phase::Running, &all);
    assert_eq!(refused(&full, attach(9)), Refusal::NoFreeSlot);
    let slots: Vec<u8> = full.disks.iter().map(|held| held.slot).collect();
    let expected: Vec<u8> = (FIRST_DATA_SLOT..FIRST_DATA_SLOT + MAX_DATA_DISKS).collect();
    assert_eq!(slots, expected);
}

#[test]
fn a_vm_that_is_on_its_way_takes_no_work_on_its_disks() {
    for (phase, expected) in [
        (Phase::Claiming, Refusal::OperationInProgress),
        (Phase::Launching, Refusal::OperationInProgress),
        (Phase::Stopping, Refusal::BeingStopped),
        (Phase::Killing, Refusal::BeingStopped),
        (Phase::Releasing, Refusal::BeingStopped),
        (Phase::Unknown, Refusal::Recovering),
    ] {
        let record = with_disks(phase, &[1]);
        let detach = Command::DetachDisk(disk(1));
        for command in [attach(2), detach, grow(1)] {
            assert_eq!(refused(&record, command), expected, "{phase:?}");
        }
    }
}
