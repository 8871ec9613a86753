//! What happens to a VM: `step(record, input, moment) -> decision`.
//!
//! Pure and total: every phase answers every input. The actor persists
//! `Decision::record`, its operations and its event in one commit, and only
//! then dispatches `Decision::effects`.
//!
//! | phase | input → next |
//! |---|---|
//! | Stopped | Start → Claiming; Delete → Releasing |
//! | Claiming | claimed → Launching; denied, Stop or Delete → Releasing |
//! | Launching | QMP ready → Running or Paused; guest powered off or panicked, deadline, Stop or Delete → Killing; exit → Releasing |
//! | Running, Paused | Pause, Resume, Reset; Stop or Restart → Stopping (force → Killing); guest powered off or panicked, Delete → Killing; exit → Releasing |
//! | Stopping | guest powered off, deadline, Stop by force, Delete → Killing; exit → Releasing |
//! | Killing | exit → Releasing |
//! | Releasing | released → Stopped, Claiming, Backoff, Failed or erased |
//! | Backoff | due or Start → Claiming; Stop → Stopped; Delete → Releasing |
//! | Failed | Start → Claiming; Stop → Stopped; Delete → Releasing |
//! | Unknown | ready → Launching (never let run), Running, Paused, Stopping or Killing; gone or exit → Releasing; alive but deaf → reported, and ended only if a stop or delete is desired |
//!
//! Recover (the daemon or the actor started again) leads every phase that may
//! have a QEMU to Unknown, or to Releasing if the host was booted meanwhile;
//! the others repeat their effect. `docs/vm-lifecycle.md` tells it to people.
//!
//! Every exit passes Releasing, which is retried until it has succeeded: a
//! Stopped or Failed VM holds nothing.
//! Look next: `commands.rs`, `facts.rs`, `release.rs`, `disks.rs`, `nics.rs`, and `turn.rs` for
//! the small vocabulary they are written in.

mod commands;
mod disks;
mod facts;
mod nics;
mod release;
mod space;
mod turn;

#[cfg(test)]
pub(crate) mod tests;

use crate::{
    event::EventDraft,
    ids::DiskId,
    network::NewNic,
    operation::OperationRecord,
    vm::{
        messages::{Effect, Fact, Input, Moment, Reply},
        phase::Phase,
        record::VmRecord,
    },
};
use turn::Turn;

/// How long QEMU may take from its start to its first QMP answer. Generous: a
/// host under load may swap; a QEMU that never answers is told as it is.
pub const LAUNCH_DEADLINE_MS: u64 = 30_000;
/// How often a guest is asked again to power off: a guest that was booting has
/// not heard the first time.
pub const POWERDOWN_AGAIN_MS: u64 = 3_000;
/// How long QEMU may take to end by SIGTERM before SIGKILL.
pub const TERMINATE_GRACE_MS: u64 = 1_000;
/// How often SIGKILL is repeated; a process in uninterruptible sleep may take long.
pub const KILL_AGAIN_MS: u64 = 5_000;
/// How long after a failed release the next is tried.
pub const RELEASE_AGAIN_MS: u64 = 1_000;
/// How often it is looked whether a full storage has space again.
pub const SPACE_AGAIN_MS: u64 = 1_000;
/// The space from which on a guest that waits for it is let go on, in bytes:
/// with less it would stop again at its next clusters.
pub const ENOUGH_SPACE: u64 = 4 << 20;

/// That a VM's record is to be erased with this commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Erasure {
    /// Whether its root disk stays, as a disk of its own.
    pub keep_root_disk: bool,
}

/// What happens to a disk's row in the commit of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskChange {
    /// It becomes this VM's; it must be free.
    Attach(DiskId),
    /// It is free again.
    Detach(DiskId),
    /// It has this size in MiB.
    Size(DiskId, u64),
}

/// What happens to the rows of a network card in the commit of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NicChange {
    /// The VM gets it: its addresses must be free.
    Take(Box<NewNic>),
    /// The address of this card is free again.
    Return(u8),
}

/// What is to be persisted, answered and then done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The new record.
    pub record: VmRecord,
    /// Whether the record is to be erased instead of written.
    pub erased: Option<Erasure>,
    /// Operations opened, moved on or ended by this decision.
    pub operations: Vec<OperationRecord>,
    /// What happens to disks' rows.
    pub disks: Vec<DiskChange>,
    /// What happens to network cards' rows.
    pub nics: Vec<NicChange>,
    /// The event that tells it; none if nothing has changed and nothing needs
    /// to be written.
    pub event: Option<EventDraft>,
    /// What to do, in this order, once it is durable.
    pub effects: Vec<Effect>,
    /// The answer, exactly for commands.
    pub reply: Option<Reply>,
}

/// Decides what `input` does to a VM. Never panics.
pub fn step(record: &VmRecord, input: Input, moment: &Moment) -> Decision {
    let mut turn = Turn::new(record, &input, moment);
    match input {
        Input::Command(command, context) => commands::command(&mut turn, command, context),
        Input::Fact(incarnation, fact) if incarnation == record.incarnation => {
            facts::fact(&mut turn, fact);
        }
        // Late news of an earlier life.
        Input::Fact(..) => {}
        Input::Recover => recover(&mut turn),
    }
    turn.decide()
}

/// Drives on from whatever the record says, after the actor or the daemon died.
fn recover(turn: &mut Turn<'_>) {
    let rebooted = turn
        .record
        .boot_id
        .as_ref()
        .is_some_and(|b| *b != turn.moment.boot_id);
    match turn.record.phase {
        Phase::Stopped | Phase::Failed => {}
        Phase::Claiming => {
            // No QEMU of this life has been started: what will be, is of this
            // boot, whatever boot the claim was begun in.
            turn.record.boot_id = Some(turn.moment.boot_id.clone());
            turn.effect(Effect::Claim);
        }
        Phase::Launching
        | Phase::Running
        | Phase::Paused
        | Phase::Stopping
        | Phase::Killing
        | Phase::Unknown
            if rebooted =>
        {
            release::end_by_host_reboot(turn);
        }
        Phase::Launching
        | Phase::Running
        | Phase::Paused
        | Phase::Stopping
        | Phase::Killing
        | Phase::Unknown => {
            turn.record.unresponsive = false;
            turn.enter(
                Phase::Unknown,
                "looking for its QEMU after a restart of the daemon",
            );
            turn.effect(Effect::Adopt);
        }
        Phase::Releasing => release::release(turn),
        Phase::Backoff => {
            let delay = turn.record.backoff_ms;
            turn.arm(crate::vm::messages::Timer::BackoffDue, delay);
        }
    }
}

/// The stable word that events and logs use for an input.
pub fn input_word(input: &Input) -> &'static str {
    use crate::vm::messages::{Command, Timer};
    match input {
        Input::Command(Command::Start, _) => "start",
        Input::Command(Command::Stop { .. }, _) => "stop",
        Input::Command(Command::Restart { .. }, _) => "restart",
        Input::Command(Command::Pause, _) => "pause",
        Input::Command(Command::Resume, _) => "resume",
        Input::Command(Command::Reset, _) => "reset",
        Input::Command(Command::SetStart(_), _) => "set_start",
        Input::Command(Command::Delete { .. }, _) => "delete",
        Input::Command(Command::AttachDisk { .. }, _) => "attach_disk",
        Input::Command(Command::DetachDisk(_), _) => "detach_disk",
        Input::Command(Command::ResizeDisk { .. }, _) => "resize_disk",
        Input::Command(Command::AttachNic(_), _) => "attach_nic",
        Input::Command(Command::DetachNic(_), _) => "detach_nic",
        Input::Command(Command::SetLink { .. }, _) => "set_link",
        Input::Recover => "recover",
        Input::Fact(_, fact) => match fact {
            Fact::Claimed(_) => "claimed",
            Fact::ClaimDenied { .. } => "claim_denied",
            Fact::Spawned(_) => "spawned",
            Fact::LaunchFailed { .. } => "launch_failed",
            Fact::Ready(_) => "qmp_ready",
            Fact::RunStateChanged(_) => "run_state_changed",
            Fact::GuestReset => "guest_reset",
            Fact::Deaf { .. } => "qmp_deaf",
            Fact::Exited { .. } => "exited",
            Fact::Found(_) => "found",
            Fact::Gone => "gone",
            Fact::ActionDone { .. } => "action_done",
            Fact::Released { .. } => "released",
            Fact::ReleaseFailed { .. } => "release_failed",
            Fact::TimerDue(Timer::LaunchDeadline) => "launch_deadline",
            Fact::TimerDue(Timer::PowerdownAgain) => "powerdown_again",
            Fact::TimerDue(Timer::StopDeadline) => "stop_deadline",
            Fact::TimerDue(Timer::KillAgain) => "kill_again",
            Fact::TimerDue(Timer::ReleaseAgain) => "release_again",
            Fact::TimerDue(Timer::BackoffDue) => "backoff_due",
            Fact::TimerDue(Timer::SpaceAgain) => "space_again",
            Fact::DiskDone { .. } => "disk_done",
            Fact::DisksSeen(_) => "disks_seen",
            Fact::DiskLetGo(_) => "disk_let_go",
            Fact::DiskFailed { .. } => "disk_failed",
            Fact::SpaceSeen { .. } => "space_seen",
            Fact::NicDone { .. } => "nic_done",
        },
    }
}
