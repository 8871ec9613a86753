//! The disks of the simulated QEMUs: which file each has open, and which of them its guest sees.
//!
//! Like QEMU's image lock, one that has a file open keeps it from every other. Must not: know files
//! (`files.rs`). Look next: `hypervisor.rs`, which is told to plug them.

use super::world::{Things, World, violate};
use crate::ports::{DiskAction, DiskError, DiskPlan};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Mutex as Turn;
use vman_model::{DiskId, vm::SeenDisk};

/// The disk of a file.
pub(super) fn of_path(path: &Path) -> Option<DiskId> {
    DiskId::parse(path.file_stem()?.to_str()?).ok()
}

/// The turns on one machine's disks: work on a disk is done one after the other.
#[derive(Default)]
pub(super) struct DiskTurns(Mutex<BTreeMap<DiskId, Arc<Turn<()>>>>);

impl DiskTurns {
    pub(super) fn of(&self, action: &DiskAction) -> Arc<Turn<()>> {
        let disk = match action {
            DiskAction::Open(plan) | DiskAction::Plug { plan, .. } => of_path(&plan.path),
            DiskAction::Unplug(disk) | DiskAction::Resize(disk, _) | DiskAction::Limit(disk, _) => {
                Some(disk.clone())
            }
        };
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = disk.map(|disk| turns.entry(disk).or_default().clone());
        turn.unwrap_or_default()
    }
}

/// A disk that a guest sees.
pub(super) fn shown(disk: DiskId) -> SeenDisk {
    SeenDisk {
        disk,
        device: true,
        node: true,
    }
}

impl World {
    /// A living QEMU opens a disk's file.
    pub(super) fn open(&self, pid: u32, plan: &DiskPlan) -> Result<(), DiskError> {
        match of_path(&plan.path) {
            Some(disk) => self.things().open(pid, &disk),
            None => Ok(()),
        }
    }

    /// A disk comes into a living QEMU.
    pub(super) fn plug(&self, pid: u32, plan: &DiskPlan, opened: bool) -> Result<(), DiskError> {
        let things = &mut *self.things();
        let Some(disk) = of_path(&plan.path) else {
            return Ok(());
        };
        if !opened {
            things.open(pid, &disk)?;
        }
        let held = things.qemus.get_mut(&pid).map(|qemu| &mut qemu.disks);
        match held.and_then(|disks| disks.iter_mut().find(|held| held.disk == disk)) {
            Some(held) => held.device = true,
            None => return Err(DiskError::Refused("its file is not open".to_owned())),
        }
        Ok(())
    }

    /// A disk goes out of a living QEMU.
    pub(super) fn unplug(&self, pid: u32, disk: &DiskId) {
        if let Some(qemu) = self.things().qemus.get_mut(&pid) {
            qemu.disks.retain(|held| held.disk != *disk);
        }
    }

    /// Whether the guest of a living QEMU sees a disk.
    pub(super) fn shows(&self, pid: u32, disk: &DiskId) -> bool {
        let seen = self.seen_disks(pid).unwrap_or_default();
        seen.iter().any(|held| held.disk == *disk && held.device)
    }

    /// What a living QEMU says of its disks.
    pub(super) fn seen_disks(&self, pid: u32) -> Option<Vec<SeenDisk>> {
        self.things().qemus.get(&pid).map(|qemu| qemu.disks.clone())
    }
}

impl Things {
    fn open(&mut self, pid: u32, disk: &DiskId) -> Result<(), DiskError> {
        let others = self.qemus.iter().filter(|(of, _)| **of != pid);
        let mut held = others.flat_map(|(_, qemu)| &qemu.disks);
        if let Some(held) = held.find(|held| held.disk == *disk) {
            if held.device {
                violate(self, format!("disk {disk} was plugged into two QEMUs"));
            }
            return Err(DiskError::Refused("its file is locked".to_owned()));
        }
        if let Some(qemu) = self.qemus.get_mut(&pid)
            && qemu.disks.iter().all(|held| held.disk != *disk)
        {
            qemu.disks.push(SeenDisk {
                device: false,
                ..shown(disk.clone())
            });
        }
        Ok(())
    }

    pub(super) fn uses_disk(&self, disk: &DiskId) -> bool {
        let mut all = self.qemus.values().flat_map(|qemu| &qemu.disks);
        all.any(|held| held.disk == *disk)
    }
}
