//! A guest that stands still because a disk failed, and what it waits for.

use super::{
    given::{FORCED_STOP, context, disk, moment},
    table::vm_in,
};
use crate::{
    event::EventKind,
    vm::{
        messages::{Command, Effect, Fact, Input, RunState, Timer},
        phase::{Desired, Phase},
        record::{Ending, Reason, VmRecord},
        spec::IoErrorPolicy,
        step::{Decision, ENOUGH_SPACE, SPACE_AGAIN_MS, step},
    },
};

fn tell(record: &VmRecord, fact: Fact) -> Decision {
    let input = Input::Fact(record.incarnation, fact);
    step(record, input, &moment(10, 1))
}

fn ask(record: &VmRecord, command: Command) -> VmRecord {
    step(record, Input::Command(command, context(7)), &moment(10, 1)).record
}

/// A disk failed in a running guest, which QEMU stopped then.
fn stopped_by(no_space: bool, policy: IoErrorPolicy) -> Decision {
    let mut running = vm_in(Phase::Running);
    running.spec.io_error = policy;
    let detail = "I/O error".to_owned();
    let failed = Fact::DiskFailed {
        disk: disk(1),
        no_space,
        detail,
    };
    let failed = tell(&running, failed);
    let told = failed.event.expect("it is told");
    assert_eq!(told.kind, EventKind::DiskFailed);
    let words = if no_space { "no space" } else { "I/O error" };
    assert!(told.detail.contains(words), "{}", told.detail);
    tell(&failed.record, Fact::RunStateChanged(RunState::IoError))
}

fn waiting() -> VmRecord {
    stopped_by(true, IoErrorPolicy::Resume).record
}

const AGAIN: Effect = Effect::Arm(Timer::SpaceAgain, SPACE_AGAIN_MS);
const LOOK: Fact = Fact::TimerDue(Timer::SpaceAgain);
const ENOUGH: Fact = Fact::SpaceSeen {
    available: ENOUGH_SPACE,
};

#[test]
fn a_guest_that_stood_before_its_disk_was_told_names_it_all_the_same() {
    let failed = Fact::DiskFailed {
        disk: disk(1),
        no_space: true,
        detail: String::new(),
    };
    let stands = Fact::RunStateChanged(RunState::IoError);
    let stands = tell(&vm_in(Phase::Running), stands).record;
    assert!(!stands.detail.contains("disk-1"), "{}", stands.detail);
    assert_eq!(
        tell(&stands, failed.clone()).record.detail,
        waiting().detail
    );
    // Who stands still for another reason keeps it.
    let paused = vm_in(Phase::Paused);
    assert_eq!(tell(&paused, failed).record.detail, paused.detail);
}

#[test]
fn a_guest_without_space_says_so_looks_for_it_and_goes_on_when_there_is_enough() {
    let waits = stopped_by(true, IoErrorPolicy::Resume);
    let record = waits.record;
    assert_eq!(
        (record.phase, record.reason),
        (Phase::Paused, Reason::IoError)
    );
    assert!(record.detail.contains("disk-1") && record.detail.contains("goes on"));
    assert_eq!(waits.effects, [AGAIN]);
    assert_eq!(tell(&record, LOOK).effects, [Effect::LookForSpace]);
    let little = Fact::SpaceSeen {
        available: ENOUGH_SPACE - 1,
    };
    assert_eq!(tell(&record, little).effects, [AGAIN]);
    assert_eq!(tell(&record, ENOUGH).effects, [Effect::Continue]);
    let runs = tell(&record, Fact::RunStateChanged(RunState::Running)).record;
    assert_eq!((runs.failed_disk, runs.failed_for_space), (None, false));
    assert_eq!(ENOUGH_SPACE, 4 * 1024 * 1024);
}

#[test]
fn a_guest_goes_on_by_itself_neither_where_it_shall_not_nor_after_another_failure() {
    for (no_space, policy, words) in [
        (true, IoErrorPolicy::Hold, "free space, then resume"),
        (false, IoErrorPolicy::Resume, "look at the host's log"),
        (false, IoErrorPolicy::Hold, "look at the host's log"),
    ] {
        let stopped = stopped_by(no_space, policy);
        let detail = &stopped.record.detail;
        assert!(detail.contains(words), "{detail}");
        assert!(!detail.contains("goes on"), "{detail}");
        assert!(stopped.effects.is_empty(), "{no_space} {policy:?}");
        for fact in [LOOK, ENOUGH] {
            assert!(tell(&stopped.record, fact).effects.is_empty());
        }
    }
}

#[test]
fn a_failure_nobody_told_of_is_taken_for_want_of_space() {
    let unheard = tell(
        &vm_in(Phase::Running),
        Fact::RunStateChanged(RunState::IoError),
    );
    assert_eq!(unheard.effects, [AGAIN]);
    assert!(unheard.record.detail.contains("a disk failed or"));
}

#[test]
fn who_does_not_wait_for_space_is_not_let_go_on() {
    let running = ask(&waiting(), Command::Resume);
    let running = tell(&running, Fact::RunStateChanged(RunState::Running)).record;
    let users = tell(
        &vm_in(Phase::Running),
        Fact::RunStateChanged(RunState::Paused),
    );
    let stopping = ask(&waiting(), FORCED_STOP);
    let mut deleted = waiting();
    deleted.desired = Desired::Stopped;
    let mut restarting = waiting();
    restarting.restarting = true;
    let mut ending = waiting();
    ending.ending = Some(Ending {
        reason: Reason::GuestPanic,
        detail: String::new(),
    });
    for record in [running, users.record, stopping, deleted, restarting, ending] {
        for fact in [LOOK, ENOUGH] {
            let decided = tell(&record, fact);
            assert!(decided.effects.is_empty(), "{:?}", record.phase);
        }
    }
    // What failed in a VM that is not up is no news.
    let failed = Fact::DiskFailed {
        disk: disk(1),
        no_space: true,
        detail: String::new(),
    };
    assert!(tell(&vm_in(Phase::Stopping), failed).event.is_none());
}
