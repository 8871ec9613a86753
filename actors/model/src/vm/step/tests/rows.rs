//! The rows of operations: when they are written, and what they say.
#![allow(clippy::unwrap_used)] // also in what the tests call

use super::{
    given::{RESTART, STOP, context, identity, moment},
    table::vm_in,
};
use crate::{
    ids::RequestId,
    operation::{OperationKind, OperationRecord, OperationStatus},
    time::UnixMs,
    vm::{
        messages::{Command, ExitStatus, Fact, Input, RunState},
        phase::Phase,
        record::{Claim, VmRecord},
        step::{Decision, step},
    },
};

fn ask(record: &VmRecord, command: Command) -> Decision {
    step(record, Input::Command(command, context(7)), &moment(10, 1))
}

fn tell(record: &VmRecord, fact: Fact) -> Decision {
    let input = Input::Fact(record.incarnation, fact);
    step(record, input, &moment(20, 1))
}

fn exit() -> Fact {
    Fact::Exited {
        status: ExitStatus::Code(1),
        stderr: String::new(),
    }
}

/// The one row of a decision: its status, step and progress.
fn row(decision: &Decision) -> (&OperationRecord, OperationStatus, &str, u8) {
    let [row] = &decision.operations[..] else {
        panic!("{:?}", decision.operations);
    };
    (row, row.status, &row.step, row.progress)
}

#[test]
fn an_operation_is_written_when_it_is_opened_with_each_change_of_phase_and_at_its_end() {
    let running = OperationStatus::Running;
    let asked = ask(&vm_in(Phase::Stopped), Command::Start);
    let (opened, status, step, progress) = row(&asked);
    assert_eq!((status, step, progress), (running, "claiming", 10));
    assert_eq!(opened.request_id, RequestId::parse("r").ok());
    assert_eq!((opened.created_at, opened.finished_at), (UnixMs(10), None));
    let claimed = tell(&asked.record, Fact::Claimed(Claim::default()));
    let (_, status, step, progress) = row(&claimed);
    assert_eq!((status, step, progress), (running, "launching", 40));
    let spawned = tell(&claimed.record, Fact::Spawned(identity(3)));
    assert!(spawned.operations.is_empty(), "no phase was changed");
    assert!(spawned.event.is_some(), "the record was");
    let ready = tell(&spawned.record, Fact::Ready(RunState::Running));
    let (ended, status, step, progress) = row(&ready);
    let succeeded = OperationStatus::Succeeded;
    assert_eq!((status, step, progress), (succeeded, "running", 100));
    assert_eq!(ended.finished_at, Some(UnixMs(20)));
    let again = tell(&ready.record, Fact::Ready(RunState::Running));
    assert!(again.operations.is_empty() && again.event.is_none());
}

#[test]
fn a_stop_tells_how_far_it_is() {
    let stopping = ask(&vm_in(Phase::Running), STOP);
    assert_eq!(row(&stopping).3, 10);
    let off = Fact::RunStateChanged(RunState::Shutdown);
    let killing = tell(&stopping.record, off);
    assert_eq!(row(&killing).3, 40);
    let releasing = tell(&killing.record, exit());
    assert_eq!(row(&releasing).3, 70);
}

#[test]
fn a_restart_begins_its_second_half_where_a_stop_would_have_ended() {
    let restarting = ask(&vm_in(Phase::Running), RESTART).record;
    let releasing = tell(&restarting, exit()).record;
    let claiming = tell(&releasing, Fact::Released { erased: false });
    assert_eq!(row(&claiming).3, 80);
    let launching = tell(&claiming.record, Fact::Claimed(Claim::default()));
    assert_eq!(row(&launching).3, 90);
}

#[test]
fn what_was_asked_of_a_guests_cpus_fails_with_its_life() {
    for command in [Command::Pause, Command::Reset] {
        let acting = ask(&vm_in(Phase::Running), command).record;
        let ended = tell(&acting, exit());
        let (failed, status, ..) = row(&ended);
        assert_eq!(status, OperationStatus::Failed);
        assert_eq!(failed.error.as_ref().unwrap().code, "vm_not_running");
        assert!(ended.record.operations.is_empty());
    }
    let resuming = ask(&vm_in(Phase::Paused), Command::Resume).record;
    let off = tell(&resuming, Fact::RunStateChanged(RunState::GuestPanicked));
    let (failed, status, ..) = row(&off);
    let kind = OperationKind::VmResume;
    assert_eq!((failed.kind, status), (kind, OperationStatus::Failed));
}

#[test]
fn one_action_at_a_time_is_asked_of_a_guest() {
    let acting = ask(&vm_in(Phase::Running), Command::Pause).record;
    for command in [Command::Pause, Command::Reset] {
        let second = ask(&acting, command);
        assert_eq!(second.record, acting);
        assert!(second.operations.is_empty() && second.effects.is_empty());
    }
}
