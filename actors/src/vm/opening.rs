//! A disk whose file QEMU opens while the attachment is being committed.
//!
//! To open a file takes QEMU as long as to add its device, and shows the guest nothing: it is the one
//! part of an attachment that may come before its record. If there comes none the file is closed
//! again, or the next adoption closes what no record speaks of. Nobody else works on the file
//! meanwhile. Must not: add a device. Look next: `disks.rs`.

use super::{VmDeps, VmState, disks};
use crate::{
    disks::FileTurn,
    ports::{DiskAction, DiskError, DiskPlan, Machine},
};
use std::sync::{Arc, Weak};
use tokio::{sync::oneshot, task::JoinHandle};
use vman_model::{DiskFile, DiskId, DiskRecord, VmId, vm::Effect};

/// A file that is being opened.
pub(super) struct Opening {
    disk: DiskId,
    machine: Weak<dyn Machine>,
    /// Told when QEMU has been asked to.
    begun: oneshot::Receiver<DiskPlan>,
    /// The turn on the file: while QEMU has it open for no record, nobody else may come upon its lock.
    opened: JoinHandle<Result<FileTurn, DiskError>>,
}

impl Opening {
    pub(super) fn is_of(&self, disk: &DiskId) -> bool {
        self.disk == *disk
    }

    /// What QEMU was asked to open, if it came to that; it may have the device added at once.
    pub(super) async fn begun(&mut self) -> Option<DiskPlan> {
        (&mut self.begun).await.ok()
    }

    /// What was opened, if all went well; if not it is tried again in the ordinary way, which says why not.
    pub(super) async fn opened(self) -> Option<FileTurn> {
        match self.opened.await {
            Ok(Ok(turn)) => Some(turn),
            Ok(Err(error)) => {
                tracing::debug!(disk_id = %self.disk, %error, "a disk was not opened early");
                None
            }
            Err(_) => None,
        }
    }

    /// Closes what was opened for nothing.
    async fn close(self) {
        let (disk, machine) = (self.disk.clone(), self.machine.clone());
        let Some(_turn) = self.opened().await else {
            return;
        };
        let closed = machine
            .upgrade()
            .map(|machine| machine.disk(DiskAction::Unplug(disk.clone())));
        // Without its machine it stays open until the next one looks which disks QEMU has.
        if let Some(closed) = closed
            && let Err(error) = closed.await
        {
            tracing::warn!(disk_id = %disk, %error, "a disk that was opened for nothing stays open");
        }
    }
}

impl VmState {
    /// Opens, beside the commit, the disk that is to be plugged in after it.
    pub(super) fn open_early(&mut self, effects: &[Effect]) {
        let plugged = effects.iter().find_map(|effect| match effect {
            Effect::Plug { disk, slot, .. } => Some((disk.clone(), *slot)),
            _ => None,
        });
        let (Some((disk, slot)), Some((_, machine))) = (plugged, &self.machine) else {
            return;
        };
        let (deps, vm, of) = (self.deps.clone(), self.id.clone(), disk.clone());
        let (machine, weak) = (machine.clone(), Arc::downgrade(machine));
        let (begins, begun) = oneshot::channel();
        self.opening = Some(Opening {
            disk,
            machine: weak,
            begun,
            opened: tokio::spawn(async move { open(&deps, &vm, &of, slot, machine, begins).await }),
        });
    }

    /// The commit came to nothing.
    pub(super) fn close_early(&mut self) {
        if let Some(opening) = self.opening.take() {
            tokio::spawn(opening.close());
        }
    }
}

async fn open(
    deps: &VmDeps,
    vm: &VmId,
    disk: &DiskId,
    slot: u8,
    machine: Arc<dyn Machine>,
    begins: oneshot::Sender<DiskPlan>,
) -> Result<FileTurn, DiskError> {
    let changed = || DiskError::Refused("it is not free".to_owned());
    let row = disks::row(deps, disk).filter(|row| may_open(row, vm));
    let held = disks::hold(deps, &row.ok_or_else(changed)?).await;
    let held = held.map_err(DiskError::Refused)?;
    // It may have become somebody else's until the turn was ours; from now on they wait.
    let row = disks::row(deps, disk).filter(|row| may_open(row, vm));
    let plan = disks::planned(held.path, &row.ok_or_else(changed)?, slot);
    let opening = machine.disk(DiskAction::Open(plan.clone()));
    let (opened, _) = tokio::join!(biased; opening, async { begins.send(plan) });
    opened?;
    Ok(held.turn)
}

/// What somebody has is somebody's to look after; and a file that was never made is made only once
/// the disk is this VM's, or it could come after the disk's deletion.
fn may_open(row: &DiskRecord, vm: &VmId) -> bool {
    row.file == DiskFile::Made && row.vm_id.as_ref().is_none_or(|of| of == vm)
}
