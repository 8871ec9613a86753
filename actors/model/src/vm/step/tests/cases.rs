//! Histories that went wrong once, or are easy to get wrong.

use super::{
    given::{DELETE, FORCED_STOP, RESTART, STOP, context, identity, moment, operation},
    table::vm_in,
};
use crate::{
    operation::OperationStatus,
    restart::RestartMode,
    vm::{
        messages::{Command, Effect, ExitStatus, Fact, Input, QmpAction, Reply, RunState, Timer},
        phase::{Desired, Phase},
        record::{Claim, Ending, Reason, VmRecord},
        step::{
            Decision, KILL_AGAIN_MS, LAUNCH_DEADLINE_MS, SPACE_AGAIN_MS, TERMINATE_GRACE_MS, step,
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

fn recover(record: &VmRecord, boot: u64) -> Decision {
    step(record, Input::Recover, &moment(10, boot))
}

fn exit(status: ExitStatus) -> Fact {
    let stderr = String::new();
    Fact::Exited { status, stderr }
}

fn deaf() -> Fact {
    let detail = "no answer".to_owned();
    Fact::Deaf { detail }
}

const RELEASED: Fact = Fact::Released { erased: false };

/// A running VM whose daemon was restarted.
fn lost() -> VmRecord {
    recover(&vm_in(Phase::Running), 1).record
}

/// A VM whose start was just asked for and that is being launched.
fn launching() -> VmRecord {
    let record = ask(&vm_in(Phase::Stopped), Command::Start).record;
    tell(&record, Fact::Claimed(Claim::default())).record
}

fn ends(decision: &Decision) -> Vec<OperationStatus> {
    let ended = decision.operations.iter().filter(|row| row.status.is_end());
    ended.map(|row| row.status).collect()
}

#[test]
fn a_life_claimed_before_a_reboot_and_launched_after_it_is_of_the_new_boot() {
    let claiming = ask(&vm_in(Phase::Stopped), Command::Start).record;
    let record = recover(&claiming, 2).record;
    let record = tell(&record, Fact::Claimed(Claim::default())).record;
    let record = tell(&record, Fact::Ready(RunState::Running)).record;
    let found = recover(&record, 2);
    assert_eq!(
        found.record.phase,
        Phase::Unknown,
        "its QEMU lives in this boot"
    );
    assert_eq!(found.effects, [Effect::Adopt]);
}

#[test]
fn a_guest_that_powers_off_before_its_start_was_told_has_been_started() {
    let record = launching();
    let off = tell(&record, Fact::Ready(RunState::Shutdown));
    assert_eq!(ends(&off), [OperationStatus::Succeeded]);
    let record = tell(&off.record, exit(ExitStatus::Code(0))).record;
    let record = tell(&record, RELEASED).record;
    assert_eq!(
        (record.phase, record.reason),
        (Phase::Stopped, Reason::GuestShutdown)
    );
    assert!(record.operations.is_empty());
}

#[test]
fn a_guest_that_panics_at_once_fails_the_start_that_waits_for_it() {
    let panicked = tell(&launching(), Fact::Ready(RunState::GuestPanicked)).record;
    let record = tell(&panicked, exit(ExitStatus::Code(0))).record;
    let failed = tell(&record, RELEASED);
    assert_eq!(failed.record.phase, Phase::Failed);
    assert_eq!(failed.record.reason, Reason::GuestPanic);
    assert_eq!(ends(&failed), [OperationStatus::Failed]);
}

#[test]
fn a_guest_found_powered_off_says_so_although_a_stop_was_asked_for_meanwhile() {
    let record = ask(&lost(), STOP).record;
    let record = tell(&record, Fact::Ready(RunState::Shutdown)).record;
    assert_eq!(record.phase, Phase::Killing);
    let record = tell(&record, exit(ExitStatus::Signal(15))).record;
    let record = tell(&record, RELEASED).record;
    assert_eq!(
        (record.phase, record.reason),
        (Phase::Stopped, Reason::GuestShutdown)
    );
}

#[test]
fn a_guest_that_powered_itself_off_stays_off_when_the_host_reboots_then() {
    let off = tell(
        &vm_in(Phase::Running),
        Fact::RunStateChanged(RunState::Shutdown),
    )
    .record;
    let record = recover(&off, 2).record;
    let record = tell(&record, RELEASED).record;
    assert_eq!(
        (record.phase, record.reason),
        (Phase::Stopped, Reason::GuestShutdown)
    );
    assert_eq!(record.desired, Desired::Stopped);
}

#[test]
fn a_running_vm_is_started_again_after_a_reboot_and_a_stopping_one_is_not() {
    let again = tell(&recover(&vm_in(Phase::Running), 2).record, RELEASED).record;
    assert_eq!(
        (again.phase, again.reason),
        (Phase::Claiming, Reason::HostReboot)
    );
    let rest = tell(&recover(&vm_in(Phase::Stopping), 2).record, RELEASED).record;
    assert_eq!(
        (rest.phase, rest.reason),
        (Phase::Stopped, Reason::HostReboot)
    );
}

#[test]
fn a_vm_found_running_again_after_an_io_error_does_not_go_on_telling_of_it() {
    let full = tell(
        &vm_in(Phase::Running),
        Fact::RunStateChanged(RunState::IoError),
    )
    .record;
    assert_eq!((full.phase, full.reason), (Phase::Paused, Reason::IoError));
    let record = recover(&full, 1).record;
    let record = tell(&record, Fact::Ready(RunState::Running)).record;
    assert_eq!(
        (record.phase, record.reason),
        (Phase::Running, Reason::User)
    );
}

#[test]
fn a_guest_that_cannot_hear_is_not_asked_politely() {
    for state in [
        RunState::Prelaunch,
        RunState::Shutdown,
        RunState::GuestPanicked,
        RunState::InternalError,
    ] {
        let record = ask(&lost(), STOP).record;
        let decision = tell(&record, Fact::Ready(state));
        assert_eq!(decision.record.phase, Phase::Killing, "{state:?}");
    }
}

#[test]
fn a_guest_found_standing_still_is_let_run_before_it_is_asked_to_power_off() {
    for state in [RunState::Paused, RunState::IoError] {
        let record = ask(&lost(), STOP).record;
        let effects = tell(&record, Fact::Ready(state)).effects;
        assert_eq!(
            effects[..2],
            [Effect::Continue, Effect::Powerdown],
            "{state:?}"
        );
    }
}

#[test]
fn a_stop_whose_guest_had_its_time_is_not_polite_again_after_a_restart() {
    let record = ask(&vm_in(Phase::Running), STOP).record;
    let record = tell(&record, Fact::TimerDue(Timer::StopDeadline)).record;
    assert_eq!(record.phase, Phase::Killing);
    let record = recover(&record, 1).record;
    let decision = tell(&record, Fact::Ready(RunState::Running));
    assert_eq!(decision.record.phase, Phase::Killing);
}

#[test]
fn a_launch_that_stays_deaf_after_adoption_has_one_deadline_however_often_it_is_told() {
    let mut record = vm_in(Phase::Launching);
    record = recover(&record, 1).record;
    let first = tell(&record, deaf());
    assert_eq!(
        first.effects,
        [Effect::Arm(Timer::LaunchDeadline, LAUNCH_DEADLINE_MS)]
    );
    assert_eq!(tell(&first.record, deaf()).effects, []);
    let due = tell(&first.record, Fact::TimerDue(Timer::LaunchDeadline));
    assert_eq!(due.record.phase, Phase::Killing);
}

#[test]
fn a_resume_that_ran_into_the_full_disk_again_leaves_the_vm_paused() {
    let full = tell(
        &vm_in(Phase::Running),
        Fact::RunStateChanged(RunState::IoError),
    )
    .record;
    let asked = ask(&full, Command::Resume).record;
    let record = tell(&asked, Fact::RunStateChanged(RunState::Running)).record;
    let record = tell(&record, Fact::RunStateChanged(RunState::IoError)).record;
    let answered = tell(&record, done(&asked, QmpAction::Resume));
    assert_eq!(answered.record.phase, Phase::Paused);
    assert_eq!(ends(&answered), [OperationStatus::Succeeded]);
}

fn done(asked: &VmRecord, action: QmpAction) -> Fact {
    let operation = asked.operations[0].id.clone();
    let error = None;
    Fact::ActionDone {
        operation,
        action,
        error,
    }
}

#[test]
fn a_users_pause_outlasts_an_io_error_in_whatever_order_they_are_told() {
    let asked = ask(&vm_in(Phase::Running), Command::Pause).record;
    let orders = [
        [done(&asked, QmpAction::Pause), io_error()],
        [io_error(), done(&asked, QmpAction::Pause)],
    ];
    for order in orders {
        let both = order.into_iter();
        let record = both.fold(asked.clone(), |record, fact| tell(&record, fact).record);
        assert_eq!((record.phase, record.reason), (Phase::Paused, Reason::User));
        assert_eq!(tell(&record, space()).effects, []);
    }
}

/// A guest that stood for want of space when its user paused it, which QEMU does not tell.
fn paused_when_the_storage_was_full() -> VmRecord {
    let asked = ask(&vm_in(Phase::Running), Command::Pause).record;
    let full = tell(&asked, io_error()).record;
    tell(&full, done(&asked, QmpAction::Pause)).record
}

#[test]
fn a_users_pause_outlasts_an_io_error_whoever_is_told_of_it_anew() {
    let paused = paused_when_the_storage_was_full();
    let found = recover(&paused, 1);
    assert_eq!(found.effects, [Effect::Adopt]);
    for record in [paused, found.record] {
        let anew = tell(&record, Fact::Ready(RunState::IoError));
        assert!(
            anew.effects
                .iter()
                .all(|effect| !matches!(effect, Effect::Arm(..)))
        );
        let anew = anew.record;
        assert_eq!((anew.phase, anew.reason), (Phase::Paused, Reason::User));
        assert_eq!(tell(&anew, space()).effects, []);
        let resumed = ask(&anew, Command::Resume);
        assert!(matches!(resumed.reply, Some(Reply::Accepted(_))));
    }
}

#[test]
fn a_resumed_guest_that_meets_the_full_storage_again_waits_for_space() {
    let paused = paused_when_the_storage_was_full();
    let resumed = ask(&paused, Command::Resume).record;
    // The daemon dies before it is told that the guest ran for a moment.
    let found = recover(&resumed, 1).record;
    let anew = tell(&found, Fact::Ready(RunState::IoError)).record;
    assert_eq!((anew.phase, anew.reason), (Phase::Paused, Reason::IoError));
    assert_eq!(tell(&anew, space()).effects, [Effect::Continue]);
}

#[test]
fn a_guest_waits_for_space_while_it_is_being_paused() {
    let asked = ask(&vm_in(Phase::Running), Command::Pause).record;
    let full = tell(&asked, io_error()).record;
    let again = [Effect::Arm(Timer::SpaceAgain, SPACE_AGAIN_MS)];
    assert_eq!(tell(&full, space()).effects, again);
}

fn io_error() -> Fact {
    Fact::RunStateChanged(RunState::IoError)
}

fn space() -> Fact {
    let available = u64::MAX;
    Fact::SpaceSeen { available }
}

#[test]
fn a_pause_answered_after_the_stop_began_changes_nothing() {
    let asked = ask(&vm_in(Phase::Running), Command::Pause).record;
    let stopping = ask(&asked, FORCED_STOP);
    assert_eq!(ends(&stopping), [OperationStatus::Cancelled]);
    let late = tell(&stopping.record, done(&asked, QmpAction::Pause));
    assert_eq!(late.record, stopping.record);
    assert!(late.event.is_none() && late.effects.is_empty());
}

#[test]
fn a_polite_stop_of_a_restarting_vm_brings_its_own_deadline() {
    let record = ask(&vm_in(Phase::Running), RESTART).record;
    let (force, timeout_ms) = (false, 2_000);
    let stopped = ask(&record, Command::Stop { force, timeout_ms });
    assert_eq!(ends(&stopped), [OperationStatus::Cancelled]);
    assert_eq!(
        stopped.effects,
        [Effect::Arm(Timer::StopDeadline, timeout_ms)]
    );
}

#[test]
fn a_start_cut_by_the_daemons_end_is_gone_through_again_for_its_own_reason() {
    let mut record = launching();
    record.reason = Reason::RestartPolicy;
    let record = recover(&record, 1).record;
    let record = tell(&record, Fact::Gone).record;
    let again = tell(&record, RELEASED);
    assert_eq!(again.record.phase, Phase::Claiming);
    assert_eq!(again.record.reason, Reason::RestartPolicy);
    assert_eq!(
        again.record.operations.len(),
        1,
        "the start is still awaited"
    );
}

#[test]
fn a_stop_while_qemu_is_being_started_ends_it_until_it_has_ended() {
    let stopped = ask(&launching(), STOP);
    assert_eq!(stopped.record.phase, Phase::Killing);
    assert_eq!(
        stopped.effects,
        [
            Effect::Terminate,
            Effect::Arm(Timer::KillAgain, TERMINATE_GRACE_MS)
        ]
    );
    // The spawn came after the signal: the next one reaches it.
    let spawned = tell(&stopped.record, Fact::Spawned(identity(3))).record;
    let again = tell(&spawned, Fact::TimerDue(Timer::KillAgain));
    assert_eq!(
        again.effects,
        [Effect::Kill, Effect::Arm(Timer::KillAgain, KILL_AGAIN_MS)]
    );
    for last in [exit(ExitStatus::Signal(9)), exit(ExitStatus::NeverSpawned)] {
        let record = tell(&spawned, last).record;
        let record = tell(&record, RELEASED).record;
        assert_eq!(
            (record.phase, record.reason),
            (Phase::Stopped, Reason::User)
        );
    }
}

#[test]
fn an_exit_told_before_the_spawn_leaves_no_process_behind() {
    let record = tell(&launching(), exit(ExitStatus::Code(1))).record;
    assert_eq!(record.phase, Phase::Releasing);
    let late = tell(&record, Fact::Spawned(identity(3)));
    assert_eq!(late.record, record);
    let failed = tell(&record, RELEASED).record;
    assert_eq!(
        (failed.phase, failed.reason),
        (Phase::Failed, Reason::StartFailed)
    );
    assert!(failed.process.is_none());
}

#[test]
fn a_deaf_qemu_that_ran_is_reported_and_ended_only_when_a_stop_comes() {
    let told = tell(&lost(), deaf());
    assert_eq!(told.record.phase, Phase::Unknown);
    assert!(told.record.unresponsive && told.effects.is_empty());
    assert!(told.event.is_some());
    let forced = ask(&told.record, FORCED_STOP);
    assert_eq!(forced.record.phase, Phase::Killing);
    let deleted = ask(&told.record, DELETE);
    assert_eq!(deleted.record.phase, Phase::Killing);
    let polite = ask(&told.record, STOP);
    assert_eq!(polite.record.phase, Phase::Stopping, "the deadline ends it");
}

#[test]
fn a_delete_during_a_release_releases_once_more_and_erases() {
    let record = ask(&vm_in(Phase::Releasing), DELETE).record;
    let more = tell(&record, RELEASED);
    let keep_root_disk = false;
    let erase = true;
    assert_eq!(
        more.effects,
        [Effect::Release {
            erase,
            keep_root_disk
        }]
    );
    let gone = tell(&more.record, Fact::Released { erased: true });
    assert!(gone.erased.is_some());
    assert_eq!(ends(&gone), [OperationStatus::Succeeded]);
}

#[test]
fn a_guest_that_powers_off_is_started_again_only_by_the_policy_always() {
    for (mode, to) in [
        (RestartMode::Never, Phase::Stopped),
        (RestartMode::OnFailure, Phase::Stopped),
        (RestartMode::Always, Phase::Backoff),
    ] {
        let mut record = vm_in(Phase::Releasing);
        record.desired = Desired::Running;
        record.spec.restart.mode = mode;
        record.ending = Some(Ending {
            reason: Reason::GuestShutdown,
            detail: "off".to_owned(),
        });
        assert_eq!(tell(&record, RELEASED).record.phase, to, "{mode:?}");
    }
}

#[test]
fn an_operation_that_the_end_of_a_life_did_not_expect_is_ended_all_the_same() {
    let mut record = ask(&vm_in(Phase::Releasing), DELETE).record;
    record.desired = Desired::Stopped;
    let rest = tell(&record, RELEASED);
    assert_eq!(rest.record.phase, Phase::Stopped);
    assert_eq!(rest.operations[0].id, operation(100));
    assert_eq!(ends(&rest), [OperationStatus::Cancelled]);
}
