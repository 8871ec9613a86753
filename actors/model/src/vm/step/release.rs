//! The one door every life leaves by, and where it leads.

use super::{disks, nics, turn::Turn};
use crate::{
    operation::{OperationKind, OperationStatus, Problem},
    restart::{RestartMode, Verdict},
    vm::{
        messages::{Effect, ExitStatus, Timer},
        phase::{Desired, Phase},
        record::{Ending, Reason},
    },
};

/// Gives back what is held (again). The effect is idempotent.
pub(super) fn release(turn: &mut Turn<'_>) {
    turn.fail_actions("the VM does not run any more");
    let detail = turn.record.ending.as_ref().map_or_else(
        || "what it held is being given back".to_owned(),
        |e| e.detail.clone(),
    );
    if turn.record.phase != Phase::Releasing {
        turn.enter(Phase::Releasing, detail);
    }
    let (erase, keep_root_disk) = match turn.record.desired {
        Desired::Erased { keep_root_disk } => (true, keep_root_disk),
        Desired::Running | Desired::Stopped => (false, false),
    };
    turn.effect(Effect::Release {
        erase,
        keep_root_disk,
    });
}

pub(super) fn end_by_exit(turn: &mut Turn<'_>, status: &ExitStatus, stderr: &str) {
    let told = match status {
        ExitStatus::Code(code) => format!("QEMU ended with exit code {code}"),
        ExitStatus::Signal(signal) => format!("QEMU was killed by signal {signal}"),
        ExitStatus::OomKilled => "the kernel killed QEMU for memory".to_owned(),
        ExitStatus::Unknown => {
            "QEMU has ended; its exit status is unknown because it was started by an earlier daemon"
                .to_owned()
        }
        ExitStatus::NeverSpawned => "the start was given up before QEMU was started".to_owned(),
    };
    let stderr = stderr.trim();
    let detail = if stderr.is_empty() {
        told
    } else {
        format!("{told}: {stderr}")
    };
    let reason = match (turn.record.phase, status) {
        (Phase::Launching, _) => Reason::StartFailed,
        (_, ExitStatus::Signal(_)) => Reason::QemuSignal,
        (_, ExitStatus::OomKilled) => Reason::Oom,
        _ => Reason::QemuExit,
    };
    turn.ending(reason, detail);
    release(turn);
}

/// Adoption found no process: it ended while nobody looked, or was never
/// started.
pub(super) fn end_by_gone(turn: &mut Turn<'_>) {
    let record = &mut turn.record;
    let launch_was_cut = record.started_at.is_none() && record.ending.is_none();
    if launch_was_cut && record.desired == Desired::Running {
        // The start was promised: go through it again from its beginning.
        record.restarting = true;
    }
    turn.ending(
        Reason::QemuExit,
        "its QEMU ended while the daemon was away; how is unknown",
    );
    release(turn);
}

pub(super) fn end_by_host_reboot(turn: &mut Turn<'_>) {
    let detail = "the host was booted again";
    let guest_was_done = turn
        .record
        .ending
        .as_ref()
        .is_some_and(|e| e.reason == Reason::GuestShutdown);
    // Whatever else was ending it, the reboot ended it. A guest that had powered
    // itself off stays off.
    if !guest_was_done {
        turn.record.ending = Some(Ending {
            reason: Reason::HostReboot,
            detail: detail.to_owned(),
        });
    }
    release(turn);
}

/// Nothing is held any more: where to?
pub(super) fn released(turn: &mut Turn<'_>, erased: bool) {
    disks::settle(turn);
    nics::settle(turn);
    let ending = turn.record.ending.clone().unwrap_or(Ending {
        reason: Reason::User,
        detail: "nothing of it is held any more".to_owned(),
    });
    match turn.record.desired {
        Desired::Erased { .. } if !erased => release(turn),
        Desired::Erased { keep_root_disk } => {
            turn.finish(|_| true, OperationStatus::Succeeded, None);
            "erased".clone_into(&mut turn.record.detail);
            turn.erase(keep_root_disk);
        }
        Desired::Stopped => stopped(turn, ending),
        Desired::Running => again_or_rest(turn, ending),
    }
}

fn again_or_rest(turn: &mut Turn<'_>, ending: Ending) {
    if turn.record.restarting && ending.reason == Reason::User {
        return turn.begin_life(Reason::User, "started again as asked for");
    }
    if turn.record.restarting {
        // Its launch was cut: it is still begun for what it was begun for.
        let reason = turn.record.reason;
        return turn.begin_life(reason, format!("started again: {}", ending.detail));
    }
    if ending.reason == Reason::HostReboot {
        return turn.begin_life(
            Reason::HostReboot,
            "started again after a reboot of the host",
        );
    }
    let mode = turn.record.spec.restart.mode;
    if ending.reason == Reason::GuestShutdown && mode != RestartMode::Always {
        turn.record.desired = Desired::Stopped;
        return stopped(turn, ending);
    }
    // A start that a user waits for tells its failure at once.
    let awaited = !turn.record.operations.is_empty();
    if awaited || mode == RestartMode::Never {
        return fail(turn, ending);
    }
    let budget = turn.record.spec.restart.budget;
    match turn.record.restarts.ask(&budget, turn.moment.now) {
        Verdict::After(delay_ms) => {
            turn.record.backoff_ms = delay_ms;
            let detail = format!("starting again in {delay_ms} ms: {}", ending.detail);
            rest(
                turn,
                Phase::Backoff,
                Ending {
                    reason: ending.reason,
                    detail,
                },
            );
            turn.arm(Timer::BackoffDue, delay_ms);
        }
        Verdict::GiveUp => {
            let detail = format!(
                "given up after {} restarts within {} s; the last end: {}",
                budget.max_restarts, budget.window_s, ending.detail
            );
            fail(
                turn,
                Ending {
                    reason: Reason::CrashLoop,
                    detail,
                },
            );
        }
    }
}

fn stopped(turn: &mut Turn<'_>, ending: Ending) {
    rest(turn, Phase::Stopped, ending);
    turn.finish(
        |kind| kind == OperationKind::VmStop,
        OperationStatus::Succeeded,
        None,
    );
    turn.supersede("end of the VM's run", |_| true);
}

fn fail(turn: &mut Turn<'_>, ending: Ending) {
    let problem = Problem::new(ending.reason.as_str(), ending.detail.clone());
    rest(turn, Phase::Failed, ending);
    turn.finish(|_| true, OperationStatus::Failed, Some(&problem));
}

/// Comes to rest: no QEMU, no claim.
fn rest(turn: &mut Turn<'_>, phase: Phase, ending: Ending) {
    let record = &mut turn.record;
    record.claim = None;
    record.process = None;
    record.started_at = None;
    record.ending = None;
    record.stop = None;
    record.restarting = false;
    record.unresponsive = false;
    record.reason = ending.reason;
    turn.enter(phase, ending.detail);
}
