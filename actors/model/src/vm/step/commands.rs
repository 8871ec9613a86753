//! What users' commands do. Each gets exactly one reply.

use super::{
    POWERDOWN_AGAIN_MS, disks, nics,
    release::release,
    turn::{Turn, is_action, is_device_work},
};
use crate::{
    operation::{OperationKind, OperationStatus},
    power::StartSpec,
    vm::{
        messages::{Command, CommandContext, Effect, QmpAction, Refusal, Timer},
        phase::{Desired, Phase},
        record::{Reason, StopIntent},
    },
};

pub(super) fn command(turn: &mut Turn<'_>, command: Command, context: CommandContext) {
    if matches!(turn.record.desired, Desired::Erased { .. }) {
        return turn.refuse(Refusal::BeingDeleted);
    }
    match command {
        Command::Start => start(turn, context),
        Command::Stop { force, timeout_ms } => {
            stop(turn, StopIntent { force, timeout_ms }, context);
        }
        Command::Restart { force, timeout_ms } => {
            restart(turn, StopIntent { force, timeout_ms }, context);
        }
        Command::Pause => act(turn, QmpAction::Pause, context),
        Command::Resume => act(turn, QmpAction::Resume, context),
        Command::Reset => act(turn, QmpAction::Reset, context),
        Command::SetStart(start) => set_start(turn, start, context),
        Command::Delete { keep_root_disk } => delete(turn, keep_root_disk, context),
        Command::AttachDisk { disk, letter } => disks::attach(turn, disk, letter, context),
        Command::DetachDisk(disk) => disks::detach(turn, disk, context),
        Command::AttachNic(new) => nics::attach(turn, *new, context),
        Command::DetachNic(nic) => nics::detach(turn, nic, context),
        Command::SetLink { nic, link } => nics::set_link(turn, nic, link, context),
        Command::ResizeDisk {
            disk,
            from_mib,
            size_mib: to_mib,
        } => disks::resize(turn, disk, disks::Growth { from_mib, to_mib }, context),
    }
}

fn start(turn: &mut Turn<'_>, context: CommandContext) {
    match turn.record.phase {
        Phase::Stopped | Phase::Failed | Phase::Backoff => {
            turn.accept(OperationKind::VmStart, context);
            turn.record.desired = Desired::Running;
            turn.record.restarts.forgive();
            turn.begin_life(Reason::User, "start was asked for");
        }
        Phase::Claiming | Phase::Launching | Phase::Running | Phase::Paused => {
            turn.refuse(Refusal::AlreadyRunning);
        }
        Phase::Stopping | Phase::Killing | Phase::Releasing => turn.refuse(Refusal::BeingStopped),
        Phase::Unknown => turn.refuse(Refusal::Recovering),
    }
}

fn stop(turn: &mut Turn<'_>, intent: StopIntent, context: CommandContext) {
    let stopping_already = turn.record.desired == Desired::Stopped;
    match turn.record.phase {
        Phase::Stopped => turn.refuse(Refusal::NotRunning),
        Phase::Failed | Phase::Backoff => {
            accept_stop(turn, intent, context);
            turn.record.stop = None;
            turn.record.reason = Reason::User;
            turn.enter(Phase::Stopped, "stop was asked for");
            turn.finish(|_| true, OperationStatus::Succeeded, None);
        }
        Phase::Claiming => {
            accept_stop(turn, intent, context);
            turn.ending(Reason::User, "stop was asked for");
            release(turn);
        }
        Phase::Launching => {
            accept_stop(turn, intent, context);
            turn.ending(Reason::User, "stop was asked for");
            turn.terminate("stop was asked for while QEMU was being started");
        }
        Phase::Running | Phase::Paused => {
            let cpus = cpus(turn);
            accept_stop(turn, intent, context);
            begin_stop(turn, intent, cpus);
        }
        Phase::Stopping if intent.force => {
            accept_stop(turn, intent, context);
            turn.terminate("stop by force was asked for");
        }
        // A polite stop of a VM that is restarting makes it a stop.
        Phase::Stopping if !stopping_already => {
            accept_stop(turn, intent, context);
            turn.arm(Timer::StopDeadline, intent.timeout_ms);
        }
        Phase::Killing | Phase::Releasing if !stopping_already => {
            accept_stop(turn, intent, context);
        }
        Phase::Stopping | Phase::Killing | Phase::Releasing => turn.refuse(Refusal::BeingStopped),
        Phase::Unknown if stopping_already && !intent.force => turn.refuse(Refusal::BeingStopped),
        Phase::Unknown => {
            accept_stop(turn, intent, context);
            // A QEMU that was found but does not answer can be ended all the
            // same; otherwise adoption goes on and then stops it.
            if turn.record.unresponsive {
                begin_stop(turn, intent, Cpus::Run);
            }
        }
    }
}

fn accept_stop(turn: &mut Turn<'_>, intent: StopIntent, context: CommandContext) {
    turn.supersede("stop", |kind| {
        kind != OperationKind::VmStop && !is_device_work(kind)
    });
    turn.accept(OperationKind::VmStop, context);
    turn.record.desired = Desired::Stopped;
    turn.record.restarting = false;
    turn.record.restarts.forgive();
    turn.record.stop = Some(intent);
}

/// Whether a guest that is to be stopped could hear of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cpus {
    /// They run, as far as is known.
    Run,
    /// They have to be let run first.
    StandStill,
}

fn cpus(turn: &Turn<'_>) -> Cpus {
    if turn.record.phase == Phase::Paused {
        Cpus::StandStill
    } else {
        Cpus::Run
    }
}

/// Ends a live QEMU, politely or by force. Also how adoption goes on with a
/// stop that was under way.
pub(super) fn begin_stop(turn: &mut Turn<'_>, intent: StopIntent, cpus: Cpus) {
    turn.ending(Reason::User, "stop was asked for");
    turn.record.stop = Some(intent);
    if intent.force {
        return turn.terminate("stop by force was asked for");
    }
    turn.fail_actions("the VM is being stopped");
    if cpus == Cpus::StandStill {
        // A guest that stands still hears nothing.
        turn.effect(Effect::Continue);
    }
    turn.enter(Phase::Stopping, "the guest was asked to power off");
    turn.effect(Effect::Powerdown);
    turn.arm(Timer::PowerdownAgain, POWERDOWN_AGAIN_MS);
    turn.arm(Timer::StopDeadline, intent.timeout_ms);
}

fn restart(turn: &mut Turn<'_>, intent: StopIntent, context: CommandContext) {
    match turn.record.phase {
        Phase::Stopped | Phase::Failed => turn.refuse(Refusal::NotRunning),
        Phase::Backoff => {
            turn.accept(OperationKind::VmRestart, context);
            turn.record.restarts.forgive();
            turn.begin_life(Reason::User, "restart was asked for");
        }
        Phase::Claiming | Phase::Launching => turn.refuse(Refusal::OperationInProgress),
        Phase::Running | Phase::Paused => {
            turn.supersede("restart", |kind| !is_device_work(kind));
            turn.accept(OperationKind::VmRestart, context);
            turn.record.desired = Desired::Running;
            turn.record.restarting = true;
            turn.record.restarts.forgive();
            let cpus = cpus(turn);
            begin_stop(turn, intent, cpus);
        }
        Phase::Stopping | Phase::Killing | Phase::Releasing => turn.refuse(Refusal::BeingStopped),
        Phase::Unknown => turn.refuse(Refusal::Recovering),
    }
}

fn act(turn: &mut Turn<'_>, action: QmpAction, context: CommandContext) {
    let refusal = match (turn.record.phase, action) {
        (Phase::Running, QmpAction::Pause | QmpAction::Reset)
        | (Phase::Paused, QmpAction::Resume | QmpAction::Reset) => None,
        (Phase::Running, QmpAction::Resume) => Some(Refusal::NotPaused),
        (Phase::Paused, QmpAction::Pause) => Some(Refusal::AlreadyPaused),
        (
            Phase::Stopped | Phase::Claiming | Phase::Launching | Phase::Backoff | Phase::Failed,
            _,
        ) => Some(Refusal::NotRunning),
        (Phase::Stopping | Phase::Killing | Phase::Releasing, _) => Some(Refusal::BeingStopped),
        (Phase::Unknown, _) => Some(Refusal::Recovering),
    };
    if let Some(refusal) = refusal {
        return turn.refuse(refusal);
    }
    if turn.record.operations.iter().any(|op| is_action(op.kind)) {
        return turn.refuse(Refusal::OperationInProgress);
    }
    let kind = match action {
        QmpAction::Pause => OperationKind::VmPause,
        QmpAction::Resume => OperationKind::VmResume,
        QmpAction::Reset => OperationKind::VmReset,
    };
    let operation = context.operation.clone();
    turn.accept(kind, context);
    turn.tell(match action {
        QmpAction::Pause => "pause was asked for",
        QmpAction::Resume => "resume was asked for",
        QmpAction::Reset => "reset was asked for",
    });
    if action == QmpAction::Resume {
        turn.record.paused_by_user = false;
    }
    turn.effect(Effect::Act(operation, action));
}

/// Changes nothing of the present life, so it is done at once in every phase.
fn set_start(turn: &mut Turn<'_>, start: StartSpec, context: CommandContext) {
    let operation = context.operation.clone();
    turn.accept(OperationKind::VmConfigure, context);
    turn.record.spec.start = start;
    turn.finish_one(&operation, OperationStatus::Succeeded, None);
    turn.tell("how it is started with the host was changed");
}

fn delete(turn: &mut Turn<'_>, keep_root_disk: bool, context: CommandContext) {
    turn.supersede("delete", |_| true);
    turn.accept(OperationKind::VmDelete, context);
    turn.record.desired = Desired::Erased { keep_root_disk };
    turn.record.restarting = false;
    turn.ending(Reason::User, "delete was asked for");
    match turn.record.phase {
        Phase::Stopped | Phase::Failed | Phase::Backoff | Phase::Claiming => release(turn),
        Phase::Launching | Phase::Running | Phase::Paused | Phase::Stopping => {
            turn.terminate("delete was asked for");
        }
        // Ending already; what follows asks what is desired.
        Phase::Killing | Phase::Releasing => {}
        Phase::Unknown if turn.record.unresponsive => turn.terminate("delete was asked for"),
        Phase::Unknown => {}
    }
}
