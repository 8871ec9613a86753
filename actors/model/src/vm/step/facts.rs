//! What facts of the present incarnation do.

use super::{
    KILL_AGAIN_MS, LAUNCH_DEADLINE_MS, POWERDOWN_AGAIN_MS, RELEASE_AGAIN_MS,
    commands::{Cpus, begin_stop},
    disks, nics,
    release::{end_by_exit, end_by_gone, release, released},
    space,
    turn::{Turn, is_action, wants_end, wants_running},
};
use crate::{
    ids::OperationId,
    operation::{OperationKind, OperationStatus, Problem},
    vm::{
        messages::{Effect, ExitStatus, Fact, QmpAction, RunState, Timer},
        phase::{Desired, Phase},
        record::{Claim, OpenOperation, ProcessIdentity, Reason, StopIntent},
    },
};

pub(super) fn fact(turn: &mut Turn<'_>, fact: Fact) {
    match fact {
        Fact::Claimed(claim) => claimed(turn, claim),
        Fact::ClaimDenied { detail } => {
            if turn.record.phase == Phase::Claiming {
                turn.ending(Reason::StartFailed, detail);
                release(turn);
            }
        }
        Fact::Spawned(identity) | Fact::Found(identity) => identified(turn, identity),
        Fact::LaunchFailed { detail } => {
            if matches!(turn.record.phase, Phase::Launching | Phase::Killing) {
                turn.ending(Reason::StartFailed, detail);
                release(turn);
            }
        }
        Fact::Ready(state) => ready(turn, state),
        Fact::RunStateChanged(state) => run_state_changed(turn, state),
        Fact::GuestReset => guest_reset(turn),
        Fact::Deaf { detail } => deaf(turn, detail),
        Fact::Exited { status, stderr } => exited(turn, &status, &stderr),
        Fact::Gone => {
            if turn.record.phase == Phase::Unknown {
                end_by_gone(turn);
            }
        }
        Fact::ActionDone {
            operation,
            action,
            error,
        } => {
            action_done(turn, &operation, action, error);
        }
        Fact::Released { erased } => {
            if turn.record.phase == Phase::Releasing {
                released(turn, erased);
            }
        }
        Fact::ReleaseFailed { detail } => {
            if turn.record.phase == Phase::Releasing {
                turn.record.detail = format!("cannot release what it held, trying again: {detail}");
                turn.arm(Timer::ReleaseAgain, RELEASE_AGAIN_MS);
            }
        }
        Fact::TimerDue(timer) => timer_due(turn, timer),
        Fact::DiskDone {
            operation,
            disk,
            outcome,
        } => disks::done(turn, &operation, &disk, outcome),
        Fact::DisksSeen(seen) => disks::seen(turn, &seen),
        Fact::DiskLetGo(disk) => disks::let_go(turn, &disk),
        Fact::DiskFailed {
            disk,
            no_space,
            detail,
        } => space::failed(turn, disk, no_space, &detail),
        Fact::NicDone {
            operation,
            nic,
            outcome,
        } => nics::done(turn, &operation, nic, outcome),
        Fact::SpaceSeen { available } => space::space_seen(turn, available),
    }
}

fn claimed(turn: &mut Turn<'_>, claim: Claim) {
    // A claim that comes in another phase is late: the release that follows
    // gives back whatever is held by id, so nothing needs to be noted.
    if turn.record.phase == Phase::Claiming {
        turn.record.claim = Some(claim);
        turn.enter(Phase::Launching, "QEMU is being started");
        turn.effect(Effect::Launch);
        turn.arm(Timer::LaunchDeadline, LAUNCH_DEADLINE_MS);
    }
}

fn identified(turn: &mut Turn<'_>, identity: ProcessIdentity) {
    if turn.record.phase.may_have_process() {
        turn.record.process = Some(identity);
    }
}

fn ready(turn: &mut Turn<'_>, state: RunState) {
    match turn.record.phase {
        Phase::Launching => alive(turn, state),
        Phase::Unknown => adopted(turn, state),
        Phase::Running | Phase::Paused => {
            turn.record.unresponsive = false;
            alive(turn, state);
            disks::ask_again(turn);
            nics::go_on(turn);
        }
        Phase::Stopping => {
            turn.record.unresponsive = false;
            if state == RunState::Running {
                // It may not have heard while QMP was away.
                turn.effect(Effect::Powerdown);
            }
            run_state_changed(turn, state);
        }
        Phase::Stopped
        | Phase::Claiming
        | Phase::Killing
        | Phase::Releasing
        | Phase::Backoff
        | Phase::Failed => {}
    }
}

fn run_state_changed(turn: &mut Turn<'_>, state: RunState) {
    match turn.record.phase {
        Phase::Launching | Phase::Running | Phase::Paused => alive(turn, state),
        Phase::Stopping => match state {
            RunState::Shutdown => turn.terminate("the guest has powered off"),
            RunState::GuestPanicked | RunState::InternalError => {
                turn.terminate("the guest can no longer power off by itself");
            }
            RunState::Running | RunState::Paused | RunState::Prelaunch | RunState::IoError => {}
        },
        // Adoption is still asking: its Ready tells the state as it is then.
        Phase::Unknown
        | Phase::Stopped
        | Phase::Claiming
        | Phase::Killing
        | Phase::Releasing
        | Phase::Backoff
        | Phase::Failed => {}
    }
}

/// A QEMU that shall live told its run state.
fn alive(turn: &mut Turn<'_>, state: RunState) {
    match state {
        RunState::Running => {
            let from = turn.record.phase;
            turn.record.paused_by_user = false;
            if from != Phase::Running {
                if turn.record.reason == Reason::IoError {
                    turn.record.reason = Reason::User;
                }
                turn.record.failed_disk = None;
                turn.record.failed_for_space = false;
                turn.enter(Phase::Running, "the guest runs");
            }
            came_up(turn);
        }
        RunState::Paused => stand_still(turn, Reason::User, "the guest's CPUs stand still"),
        // Of what happened before its user's pause, which outlasts it: had the guest run
        // since, that would have been told first.
        RunState::IoError if turn.record.paused_by_user => {
            stand_still(turn, Reason::User, "the guest's CPUs stand still");
        }
        RunState::IoError => {
            let was = (turn.record.phase, turn.record.reason);
            let detail = space::io_error_detail(&turn.record);
            stand_still(turn, Reason::IoError, &detail);
            if was != (Phase::Paused, Reason::IoError) {
                space::wait_for_space(turn);
            }
        }
        RunState::Prelaunch => turn.effect(Effect::Continue),
        RunState::Shutdown => {
            // It ran, however shortly: a start that waits for it has succeeded.
            came_up(turn);
            turn.ending(Reason::GuestShutdown, "the guest powered itself off");
            turn.terminate("the guest powered itself off");
        }
        RunState::GuestPanicked => {
            turn.ending(Reason::GuestPanic, "the guest's kernel panicked");
            turn.terminate("the guest's kernel panicked");
        }
        RunState::InternalError => {
            turn.ending(
                Reason::InternalError,
                "QEMU met an internal error and stopped the guest",
            );
            turn.terminate("QEMU met an internal error and stopped the guest");
        }
    }
}

fn stand_still(turn: &mut Turn<'_>, reason: Reason, detail: &str) {
    if turn.record.phase != Phase::Paused || turn.record.reason != reason {
        turn.record.reason = reason;
        turn.enter(Phase::Paused, detail);
    }
    came_up(turn);
}

fn came_up(turn: &mut Turn<'_>) {
    if turn.record.started_at.is_none() {
        turn.record.started_at = Some(turn.moment.now);
    }
    turn.finish(wants_running, OperationStatus::Succeeded, None);
}

/// Adoption reached the QEMU: go on with what is desired.
fn adopted(turn: &mut Turn<'_>, state: RunState) {
    turn.record.unresponsive = false;
    if !wants_end(&turn.record) {
        resolve_interrupted_actions(turn, state);
        if state == RunState::Prelaunch {
            // The daemon died between the spawn and the answer.
            turn.enter(Phase::Launching, "QEMU was found and is let run");
            turn.effect(Effect::Continue);
            turn.arm(Timer::LaunchDeadline, LAUNCH_DEADLINE_MS);
            return;
        }
        alive(turn, state);
        // Also of one without disks: a file may have been opened for an attachment that was never recorded.
        turn.effect(Effect::LookAtDisks);
        nics::go_on(turn);
        return;
    }
    match state {
        RunState::Running => end_adopted(turn, Cpus::Run),
        RunState::Paused | RunState::IoError => end_adopted(turn, Cpus::StandStill),
        RunState::Shutdown => {
            turn.ending(Reason::GuestShutdown, "the guest powered itself off");
            turn.terminate("the guest has powered off");
        }
        RunState::Prelaunch | RunState::GuestPanicked | RunState::InternalError => {
            turn.ending(Reason::User, "stop was asked for");
            turn.terminate("the guest cannot power off by itself");
        }
    }
}

/// What is found alive is to end: goes on with the stop that was under way.
fn end_adopted(turn: &mut Turn<'_>, cpus: Cpus) {
    let polite = turn.record.stop.filter(|stop| !stop.force);
    match (turn.record.desired, polite) {
        (Desired::Running | Desired::Stopped, Some(stop)) => begin_stop(turn, stop, cpus),
        (Desired::Running | Desired::Stopped, None) | (Desired::Erased { .. }, _) => {
            turn.ending(Reason::User, "stop was asked for");
            turn.terminate("ending it was under way when the daemon stopped");
        }
    }
}

/// A pause, resume or reset was sent by a daemon that died before the answer:
/// the run state tells what it can.
fn resolve_interrupted_actions(turn: &mut Turn<'_>, state: RunState) {
    let came_true = |kind| match kind {
        OperationKind::VmPause => state == RunState::Paused,
        OperationKind::VmResume => state == RunState::Running,
        _ => false,
    };
    let pausing = |op: &OpenOperation| op.kind == OperationKind::VmPause;
    if state == RunState::Paused && turn.record.operations.iter().any(pausing) {
        turn.record.paused_by_user = true;
    }
    turn.finish(
        |kind| is_action(kind) && came_true(kind),
        OperationStatus::Succeeded,
        None,
    );
    fail_interrupted_actions(turn);
}

fn fail_interrupted_actions(turn: &mut Turn<'_>) {
    let problem = Problem::new(
        "interrupted",
        "the daemon was restarted before QEMU answered; it may or may not have been done",
    );
    turn.finish(is_action, OperationStatus::Failed, Some(&problem));
}

fn guest_reset(turn: &mut Turn<'_>) {
    if matches!(
        turn.record.phase,
        Phase::Running | Phase::Paused | Phase::Stopping
    ) {
        disks::name_anew(&mut turn.record);
        turn.tell("the guest's machine was reset");
    }
}

fn deaf(turn: &mut Turn<'_>, detail: String) {
    match turn.record.phase {
        Phase::Running | Phase::Paused | Phase::Stopping => {
            if !turn.record.unresponsive {
                turn.record.unresponsive = true;
                turn.tell(format!("QEMU lives but does not answer: {detail}"));
            }
        }
        Phase::Unknown => {
            let known = std::mem::replace(&mut turn.record.unresponsive, true);
            turn.record.detail = format!("its QEMU lives but does not answer: {detail}");
            fail_interrupted_actions(turn);
            if wants_end(&turn.record) {
                end_adopted(turn, Cpus::Run);
            } else if turn.record.started_at.is_none() && !known {
                // It never ran: a launch that hangs is given up like any other.
                // Told again, its deadline does not begin anew.
                turn.arm(Timer::LaunchDeadline, LAUNCH_DEADLINE_MS);
            }
        }
        // The launch has a deadline of its own; the rest has no living QEMU.
        Phase::Launching
        | Phase::Stopped
        | Phase::Claiming
        | Phase::Killing
        | Phase::Releasing
        | Phase::Backoff
        | Phase::Failed => {}
    }
}

fn exited(turn: &mut Turn<'_>, status: &ExitStatus, stderr: &str) {
    if turn.record.phase.may_have_process() {
        end_by_exit(turn, status, stderr);
    }
}

fn action_done(
    turn: &mut Turn<'_>,
    operation: &OperationId,
    action: QmpAction,
    error: Option<String>,
) {
    let Some(open) = turn.record.operations.iter().find(|op| op.id == *operation) else {
        return;
    };
    let kind = open.kind;
    if let Some(error) = error {
        let problem = Problem::new("qmp_failed", error);
        return turn.finish(|k| k == kind, OperationStatus::Failed, Some(&problem));
    }
    turn.finish(|k| k == kind, OperationStatus::Succeeded, None);
    match (turn.record.phase, action) {
        // After an I/O error too: the user's pause outlasts the want of space.
        (Phase::Running | Phase::Paused, QmpAction::Pause) => {
            turn.record.paused_by_user = true;
            alive(turn, RunState::Paused);
        }
        // After an I/O error the CPUs may have stopped again before this answer
        // came, so only the run state itself tells that they run.
        (Phase::Paused, QmpAction::Resume) if turn.record.reason != Reason::IoError => {
            alive(turn, RunState::Running);
        }
        _ => {}
    }
}

fn timer_due(turn: &mut Turn<'_>, timer: Timer) {
    let phase = turn.record.phase;
    match timer {
        Timer::LaunchDeadline => {
            let hangs = phase == Phase::Launching
                || (phase == Phase::Unknown && turn.record.started_at.is_none());
            if hangs {
                let detail = format!(
                    "QEMU did not answer within {} s",
                    LAUNCH_DEADLINE_MS / 1_000
                );
                turn.ending(Reason::StartFailed, detail.clone());
                turn.kill(detail);
            }
        }
        Timer::PowerdownAgain => {
            if phase == Phase::Stopping {
                turn.effect(Effect::Powerdown);
                turn.arm(Timer::PowerdownAgain, POWERDOWN_AGAIN_MS);
            }
        }
        Timer::StopDeadline => {
            if phase == Phase::Stopping {
                let seconds = turn
                    .record
                    .stop
                    .as_ref()
                    .map_or(0, |stop: &StopIntent| stop.timeout_ms)
                    .div_ceil(1_000);
                turn.terminate(format!("the guest did not power off within {seconds} s"));
            }
        }
        Timer::KillAgain => {
            if phase == Phase::Killing {
                turn.effect(Effect::Kill);
                turn.arm(Timer::KillAgain, KILL_AGAIN_MS);
            }
        }
        Timer::ReleaseAgain => {
            if phase == Phase::Releasing {
                release(turn);
            }
        }
        Timer::SpaceAgain => space::look_for_space(turn),
        Timer::BackoffDue => {
            if phase == Phase::Backoff {
                turn.begin_life(Reason::RestartPolicy, "started again by the restart policy");
            }
        }
    }
}
