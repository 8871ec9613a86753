//! What happens when a disk of a VM fails on the host, most often for want of space.
//!
//! QEMU stops the guest's CPUs and tells; with the policy `resume` the VM looks for
//! space again and again, and lets the guest go on when there is some.

use super::{
    ENOUGH_SPACE, SPACE_AGAIN_MS,
    turn::{Turn, is_action, wants_end},
};
use crate::{
    event::EventKind,
    ids::DiskId,
    vm::{
        messages::{Effect, Timer},
        phase::Phase,
        record::{Reason, VmRecord},
        spec::IoErrorPolicy,
    },
};

/// A disk failed; that the CPUs were stopped for it is told by the run state, before or after.
pub(super) fn failed(turn: &mut Turn<'_>, disk: DiskId, no_space: bool, detail: &str) {
    if matches!(turn.record.phase, Phase::Running | Phase::Paused) {
        let told = if no_space {
            format!("disk {disk} cannot be written: no space is left on the storage")
        } else {
            format!("disk {disk} failed: {detail}")
        };
        turn.record.failed_disk = Some(disk);
        turn.record.failed_for_space = no_space;
        if turn.record.phase == Phase::Paused && turn.record.reason == Reason::IoError {
            turn.record.detail = io_error_detail(&turn.record);
        }
        turn.tell_as(EventKind::DiskFailed, told);
    }
}

pub(super) fn io_error_detail(record: &VmRecord) -> String {
    let goes_on = record.spec.io_error == IoErrorPolicy::Resume;
    match (&record.failed_disk, record.failed_for_space) {
        (Some(disk), true) if goes_on => format!(
            "disk {disk}: no space is left on the storage; the guest goes on when there is space again"
        ),
        (Some(disk), true) => {
            format!("disk {disk}: no space is left on the storage; free space, then resume")
        }
        (Some(disk), false) => {
            format!("disk {disk} failed: look at the host's log, then resume")
        }
        (None, _) => "a disk failed or the storage is full: free space, then resume".to_owned(),
    }
}

/// Whether the guest stands still for want of space and is to go on by itself. A
/// reason nobody heard of is taken for want of space: were it another, it would
/// only stop again.
fn waits_for_space(turn: &Turn<'_>) -> bool {
    let record = &turn.record;
    let for_space = record.failed_for_space || record.failed_disk.is_none();
    record.phase == Phase::Paused
        && record.reason == Reason::IoError
        && record.spec.io_error == IoErrorPolicy::Resume
        && for_space
        && !wants_end(record)
}

pub(super) fn wait_for_space(turn: &mut Turn<'_>) {
    if waits_for_space(turn) {
        turn.arm(Timer::SpaceAgain, SPACE_AGAIN_MS);
    }
}

pub(super) fn look_for_space(turn: &mut Turn<'_>) {
    if waits_for_space(turn) {
        turn.effect(Effect::LookForSpace);
    }
}

pub(super) fn space_seen(turn: &mut Turn<'_>, available: u64) {
    if !waits_for_space(turn) {
        return;
    }
    // A pause under way may have been answered, and the news of it be late: the guest
    // is not let go on behind it.
    let acting = turn.record.operations.iter().any(|op| is_action(op.kind));
    if available >= ENOUGH_SPACE && !acting {
        turn.effect(Effect::Continue);
    } else {
        turn.arm(Timer::SpaceAgain, SPACE_AGAIN_MS);
    }
}
