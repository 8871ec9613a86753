//! What one command or one piece of news leads to, said plainly: for what the laws leave open.
#![allow(clippy::unwrap_used)] // also in what the tests call

use super::{
    given::{DELETE, FORCED_STOP, RESTART, STOP, context, identity, moment, nic, operation},
    table::vm_in,
};
use crate::{
    ids::Incarnation,
    operation::{OperationKind, OperationStatus},
    power::StartSpec,
    vm::{
        messages::{
            Command, Effect, ExitStatus, Fact, Input, QmpAction, Refusal, Reply, RunState, Timer,
        },
        phase::{Desired, Phase},
        record::{Reason, VmRecord},
        step::{
            Decision, KILL_AGAIN_MS, LAUNCH_DEADLINE_MS, POWERDOWN_AGAIN_MS, RELEASE_AGAIN_MS, step,
        },
    },
};

fn ask(record: &VmRecord, command: Command) -> Decision {
    let id = 100 + record.operations.len() as u64;
    step(record, Input::Command(command, context(id)), &moment(10, 1))
}

fn tell(record: &VmRecord, fact: Fact) -> Decision {
    let input = Input::Fact(record.incarnation, fact);
    step(record, input, &moment(10, 1))
}

fn lost(record: &VmRecord) -> VmRecord {
    step(record, Input::Recover, &moment(10, 1)).record
}

fn deaf(record: &VmRecord) -> Decision {
    let detail = "no answer".to_owned();
    tell(record, Fact::Deaf { detail })
}

fn due(record: &VmRecord, timer: Timer) -> Decision {
    tell(record, Fact::TimerDue(timer))
}

/// How the first operation of this kind ended, and with which code.
fn end(decision: &Decision, kind: OperationKind) -> (OperationStatus, Option<&str>) {
    let of_kind = |row: &&crate::OperationRecord| row.kind == kind;
    let row = decision.operations.iter().find(of_kind).unwrap();
    (
        row.status,
        row.error.as_ref().map(|error| error.code.as_str()),
    )
}

fn refusal(decision: &Decision) -> Option<Refusal> {
    match &decision.reply {
        Some(Reply::Refused(refusal)) => Some(*refusal),
        _ => None,
    }
}

#[test]
fn news_of_an_earlier_life_changes_nothing() {
    let running = vm_in(Phase::Running);
    let gone = Fact::RunStateChanged(RunState::Shutdown);
    let late = Input::Fact(Incarnation(running.incarnation.0 - 1), gone);
    let decision = step(&running, late, &moment(10, 1));
    assert_eq!((decision.record, decision.effects), (running, Vec::new()));
}

#[test]
fn a_stop_is_taken_as_far_as_it_asks_for_more_than_is_under_way() {
    let restarting = |phase| {
        let mut record = vm_in(phase);
        record.desired = Desired::Running;
        record.restarting = true;
        record
    };
    // A polite stop that is under way can be made one by force, and not another polite one.
    assert_eq!(
        ask(&vm_in(Phase::Stopping), FORCED_STOP).record.phase,
        Phase::Killing
    );
    for phase in [Phase::Stopping, Phase::Killing, Phase::Releasing] {
        let again = ask(&vm_in(phase), STOP);
        assert_eq!(refusal(&again), Some(Refusal::BeingStopped), "{phase:?}");
        let turned = ask(&restarting(phase), STOP).record;
        assert_eq!(turned.desired, Desired::Stopped, "{phase:?}");
        assert!(!turned.restarting, "{phase:?}");
    }
    let mut unknown = lost(&vm_in(Phase::Running));
    assert_eq!(refusal(&ask(&unknown, STOP)), None);
    unknown.desired = Desired::Stopped;
    assert_eq!(refusal(&ask(&unknown, STOP)), Some(Refusal::BeingStopped));
    assert_eq!(refusal(&ask(&unknown, FORCED_STOP)), None);
}

#[test]
fn a_stop_leaves_an_earlier_stop_and_work_on_devices_open_and_ends_the_rest() {
    let running = vm_in(Phase::Running);
    let attaching = ask(&running, Command::AttachNic(Box::new(nic(1)))).record;
    let pausing = ask(&attaching, Command::Pause).record;
    let stopping = ask(&pausing, STOP);
    let left = |record: &VmRecord| -> Vec<OperationKind> {
        record.operations.iter().map(|op| op.kind).collect()
    };
    assert_eq!(
        left(&stopping.record),
        [OperationKind::NicAttach, OperationKind::VmStop]
    );
    let forced = ask(&stopping.record, FORCED_STOP).record;
    let both = [OperationKind::VmStop; 2];
    assert_eq!(left(&forced)[1..], both);
    let restarted = ask(&pausing, RESTART).record;
    assert_eq!(
        left(&restarted),
        [OperationKind::NicAttach, OperationKind::VmRestart]
    );
}

#[test]
fn a_guest_that_stands_still_is_let_run_to_hear_of_its_end() {
    let paused = ask(&vm_in(Phase::Paused), STOP).effects;
    assert_eq!(paused[..2], [Effect::Continue, Effect::Powerdown]);
    let running = ask(&vm_in(Phase::Running), STOP).effects;
    assert_eq!(running[0], Effect::Powerdown);
}

#[test]
fn how_a_vm_starts_with_the_host_is_changed_at_once_and_told() {
    let start = StartSpec {
        autostart: true,
        ..StartSpec::default()
    };
    let changed = ask(&vm_in(Phase::Running), Command::SetStart(start.clone()));
    assert_eq!(changed.record.spec.start, start);
    let succeeded = (OperationStatus::Succeeded, None);
    assert_eq!(end(&changed, OperationKind::VmConfigure), succeeded);
    assert!(changed.event.unwrap().detail.contains("with the host"));
}

#[test]
fn a_delete_ends_a_deaf_qemu_that_was_found_and_waits_for_one_that_was_not() {
    let unknown = lost(&vm_in(Phase::Running));
    let waits = ask(&unknown, DELETE);
    assert_eq!(waits.record.phase, Phase::Unknown);
    let found = deaf(&unknown).record;
    assert_eq!(ask(&found, DELETE).record.phase, Phase::Killing);
}

#[test]
fn a_claim_or_a_launch_that_fails_late_changes_nothing() {
    let denied = || Fact::ClaimDenied {
        detail: "why".to_owned(),
    };
    let failed = || Fact::LaunchFailed {
        detail: "why".to_owned(),
    };
    assert_eq!(
        tell(&vm_in(Phase::Claiming), denied()).record.phase,
        Phase::Releasing
    );
    for phase in [Phase::Running, Phase::Stopping, Phase::Unknown] {
        let record = vm_in(phase);
        assert_eq!(tell(&record, denied()).record, record);
        assert_eq!(tell(&record, failed()).record, record);
        if phase != Phase::Unknown {
            assert_eq!(tell(&record, Fact::Gone).record, record);
        }
        assert_eq!(
            tell(&record, Fact::Released { erased: false }).record,
            record
        );
    }
}

#[test]
fn a_process_is_noted_where_there_can_be_one() {
    let launching = tell(&vm_in(Phase::Launching), Fact::Spawned(identity(3)));
    assert_eq!(launching.record.process, Some(identity(3)));
    let stopped = tell(&vm_in(Phase::Stopped), Fact::Spawned(identity(3)));
    assert_eq!(stopped.record.process, None);
}

#[test]
fn a_guest_that_runs_and_is_being_stopped_is_asked_again_when_its_qemu_answers() {
    let stopping = vm_in(Phase::Stopping);
    let asked = tell(&stopping, Fact::Ready(RunState::Running)).effects;
    assert_eq!(asked, [Effect::Powerdown]);
    let still = tell(&stopping, Fact::Ready(RunState::Paused)).effects;
    assert!(still.is_empty());
}

#[test]
fn a_state_told_twice_is_entered_once() {
    let running = vm_in(Phase::Running);
    let same = tell(&running, Fact::RunStateChanged(RunState::Running));
    assert_eq!(same.record, running);
    let paused = tell(&running, Fact::RunStateChanged(RunState::Paused)).record;
    assert_eq!((paused.phase, paused.reason), (Phase::Paused, Reason::User));
    let later = Input::Fact(paused.incarnation, Fact::RunStateChanged(RunState::Paused));
    assert_eq!(step(&paused, later, &moment(99, 1)).record, paused);
    let failed = tell(&paused, Fact::Ready(RunState::IoError)).record;
    assert_eq!(failed.reason, Reason::IoError, "another reason is news");
}

#[test]
fn an_action_whose_answer_was_lost_is_told_by_the_run_state_as_far_as_it_can() {
    let succeeded = (OperationStatus::Succeeded, None);
    let failed = (OperationStatus::Failed, Some("interrupted"));
    for (phase, command, kind, state, expected) in [
        (
            Phase::Running,
            Command::Pause,
            OperationKind::VmPause,
            RunState::Paused,
            succeeded,
        ),
        (
            Phase::Running,
            Command::Pause,
            OperationKind::VmPause,
            RunState::Running,
            failed,
        ),
        (
            Phase::Paused,
            Command::Resume,
            OperationKind::VmResume,
            RunState::Running,
            succeeded,
        ),
        (
            Phase::Paused,
            Command::Resume,
            OperationKind::VmResume,
            RunState::Paused,
            failed,
        ),
        (
            Phase::Running,
            Command::Reset,
            OperationKind::VmReset,
            RunState::Running,
            failed,
        ),
    ] {
        let acting = lost(&ask(&vm_in(phase), command).record);
        let found = tell(&acting, Fact::Ready(state));
        assert_eq!(end(&found, kind), expected, "{kind:?} {state:?}");
    }
    // A start that waits is no action, and a deaf QEMU tells nothing.
    let acting = lost(&ask(&vm_in(Phase::Running), Command::Pause).record);
    assert_eq!(end(&deaf(&acting), OperationKind::VmPause), failed);
}

#[test]
fn an_action_is_done_when_qemu_says_so_and_changes_what_it_is_about() {
    let done = |record: &VmRecord, action, error: Option<&str>| {
        let answer = Fact::ActionDone {
            operation: operation(100),
            action,
            error: error.map(str::to_owned),
        };
        tell(record, answer)
    };
    let pausing = ask(&vm_in(Phase::Running), Command::Pause).record;
    let paused = done(&pausing, QmpAction::Pause, None);
    assert_eq!(paused.record.phase, Phase::Paused);
    let resuming = ask(&paused.record, Command::Resume).record;
    let running = done(&resuming, QmpAction::Resume, None);
    assert_eq!(running.record.phase, Phase::Running);
    let refused = done(&pausing, QmpAction::Pause, Some("no"));
    let failed = (OperationStatus::Failed, Some("qmp_failed"));
    assert_eq!(end(&refused, OperationKind::VmPause), failed);
    assert_eq!(refused.record.phase, Phase::Running);
    // Of another operation, or of none.
    let other = Fact::ActionDone {
        operation: operation(99),
        action: QmpAction::Pause,
        error: None,
    };
    assert_eq!(tell(&pausing, other).record, pausing);
}

#[test]
fn a_reset_of_the_machine_is_told_where_there_is_one() {
    let reset = tell(&vm_in(Phase::Running), Fact::GuestReset);
    assert!(reset.event.unwrap().detail.contains("was reset"));
    assert!(
        tell(&vm_in(Phase::Killing), Fact::GuestReset)
            .event
            .is_none()
    );
}

#[test]
fn a_qemu_that_falls_silent_is_told_once() {
    let silent = deaf(&vm_in(Phase::Running));
    assert!(silent.record.unresponsive);
    assert!(silent.event.is_some());
    let again = deaf(&silent.record);
    assert!(again.event.is_none() && again.record == silent.record);
    let answers = tell(&silent.record, Fact::Ready(RunState::Running));
    assert!(!answers.record.unresponsive);
}

#[test]
fn the_end_of_a_qemu_has_the_reason_by_which_it_ended() {
    let ended = |phase, status| {
        let stderr = " last words\n".to_owned();
        let ending = tell(&vm_in(phase), Fact::Exited { status, stderr });
        let ending = ending.record.ending.unwrap();
        assert!(ending.detail.ends_with(": last words"), "{}", ending.detail);
        ending.reason
    };
    for (status, reason) in [
        (ExitStatus::Code(0), Reason::QemuExit),
        (ExitStatus::Code(1), Reason::QemuExit),
        (ExitStatus::Signal(11), Reason::QemuSignal),
        (ExitStatus::OomKilled, Reason::Oom),
        (ExitStatus::Unknown, Reason::QemuExit),
    ] {
        assert_eq!(ended(Phase::Running, status.clone()), reason, "{status:?}");
        assert_eq!(ended(Phase::Launching, status), Reason::StartFailed);
    }
}

#[test]
fn a_qemu_that_is_gone_is_started_again_only_where_its_start_was_promised_and_cut() {
    let gone = |record: &VmRecord| tell(record, Fact::Gone).record.restarting;
    let mut launched = lost(&vm_in(Phase::Launching));
    assert!(gone(&launched));
    launched.desired = Desired::Stopped;
    assert!(!gone(&launched), "it is not wanted any more");
    let ran = lost(&vm_in(Phase::Running));
    assert!(!gone(&ran), "it had come up");
    let ending = deaf(&lost(&vm_in(Phase::Launching))).record;
    let given_up = due(&ending, Timer::LaunchDeadline).record;
    assert_eq!(given_up.phase, Phase::Killing);
    assert_eq!(given_up.ending.unwrap().reason, Reason::StartFailed);
}

#[test]
fn a_timer_does_its_work_in_its_own_phase_and_none_in_another() {
    let arms = |record: &VmRecord, timer| due(record, timer).effects;
    let again = arms(&vm_in(Phase::Stopping), Timer::PowerdownAgain);
    let rearmed = Effect::Arm(Timer::PowerdownAgain, POWERDOWN_AGAIN_MS);
    assert_eq!(again, [Effect::Powerdown, rearmed]);
    let again = arms(&vm_in(Phase::Killing), Timer::KillAgain);
    let rearmed = Effect::Arm(Timer::KillAgain, KILL_AGAIN_MS);
    assert_eq!(again, [Effect::Kill, rearmed]);
    let late = due(&vm_in(Phase::Launching), Timer::LaunchDeadline).record;
    let seconds = LAUNCH_DEADLINE_MS / 1_000;
    let told = late.ending.unwrap().detail;
    assert!(told.contains(&format!("within {seconds} s")), "{told}");
    let stopped = due(&vm_in(Phase::Stopping), Timer::StopDeadline).record;
    assert!(stopped.detail.contains("within 30 s"), "{}", stopped.detail);
    let why = || "why".to_owned();
    let failed = tell(
        &vm_in(Phase::Releasing),
        Fact::ReleaseFailed { detail: why() },
    );
    let rearmed = Effect::Arm(Timer::ReleaseAgain, RELEASE_AGAIN_MS);
    assert_eq!(failed.effects, [rearmed]);
    assert!(!arms(&failed.record, Timer::ReleaseAgain).is_empty());
    for timer in [
        Timer::PowerdownAgain,
        Timer::StopDeadline,
        Timer::KillAgain,
        Timer::LaunchDeadline,
        Timer::ReleaseAgain,
    ] {
        let running = vm_in(Phase::Running);
        let decided = due(&running, timer);
        assert_eq!((decided.record, decided.effects), (running, Vec::new()));
    }
    let failed = tell(
        &vm_in(Phase::Running),
        Fact::ReleaseFailed { detail: why() },
    );
    assert!(failed.effects.is_empty());
}
