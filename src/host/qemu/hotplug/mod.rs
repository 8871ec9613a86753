//! Disks that come and go while a QEMU lives.
//!
//! Owns: what is done to a disk, and whose its file is meanwhile. Must not: decide which disk goes
//! where.
//!
//! | work (`work.rs`) | is |
//! |---|---|
//! | open | `blockdev-add`; the next work on the disk goes on once that is sent |
//! | plug | `blockdev-add` unless that was sent, `device_add` in one go; if the second fails, `blockdev-del` |
//! | unplug | `device_del`, `DEVICE_DELETED` awaited, `blockdev-del` |
//! | resize | `block_resize` |
//! | limit | `block_set_io_throttle` |
//!
//! Look next: `seen.rs` for what QEMU is asked when nobody knows, `devices.rs` for what disks and
//! network cards have in common.

mod seen;
#[cfg(test)]
mod tests;
mod work;

use std::path::PathBuf;

use vman_actors::ports::{BoxFuture, DiskAction, DiskError, device_name};
use vman_model::DiskId;

pub(super) use self::seen::{disk_of_node, disks};
use self::work::Work;
pub(super) use self::work::throttle;
use super::devices::{Devices, refused};
use crate::host::jail;

/// The devices of ours among all.
const DEVICE_PREFIX: &str = "dev-disk-";

/// The disk of a device.
pub(super) fn disk_of_device(device: &str) -> Option<DiskId> {
    DiskId::parse(device.strip_prefix(DEVICE_PREFIX)?).ok()
}

/// The work on one machine's disks.
pub(super) struct Hotplug {
    devices: Devices,
    owner: Owner,
}

/// Whose the files of disks are while they are plugged in.
#[derive(Clone)]
pub(super) struct Owner {
    /// The QEMU.
    pub(super) pid: u32,
    /// Where disks' files are.
    pub(super) disks: PathBuf,
}

impl Owner {
    /// The QEMU may run under a user of its own, which has to own what it opens.
    async fn hand(&self, path: PathBuf) -> Result<(), DiskError> {
        let pid = self.pid;
        // Whoever made the plan has just opened the file: this waits for no storage.
        if jail::has_disk(pid, &path).unwrap_or(false) {
            return Ok(());
        }
        let handed = tokio::task::spawn_blocking(move || jail::hand_disk(pid, &path)).await;
        let handed = handed.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        handed.map_err(|error| {
            DiskError::Refused(format!("its file cannot be handed to QEMU: {error}"))
        })
    }

    /// A QEMU that has let go of a disk shall not be able to open it again.
    async fn take(&self, disk: &DiskId) {
        let files = DISK_SUFFIXES.map(|suffix| self.disks.join(format!("{disk}.{suffix}")));
        let taken = tokio::task::spawn_blocking(move || {
            let mut there = files.iter().filter(|file| file.exists());
            there.try_for_each(|file| jail::take_disk(file))
        });
        if let Ok(Err(error)) = taken.await {
            tracing::warn!(disk_id = %disk, %error, "a disk's file cannot be taken back from QEMU's user");
        }
    }
}

/// How disks' files end.
const DISK_SUFFIXES: [&str; 2] = ["qcow2", "raw"];

impl Hotplug {
    pub(super) fn new(devices: Devices, owner: Owner) -> Self {
        Self { devices, owner }
    }

    /// Begins a piece of work. It ends with the connection it began on.
    pub(super) fn begin(&self, action: DiskAction) -> BoxFuture<'static, Result<(), DiskError>> {
        let Some(disk) = disk_of(&action) else {
            return Box::pin(async { Err(refused("its device has no disk's name")) });
        };
        let owner = self.owner.clone();
        self.devices
            .begin_in_turn(device_name(&disk), |monitor, turn| async move {
                let work = Work {
                    owner,
                    monitor,
                    disk,
                };
                work.run(action, turn).await
            })
    }
}

fn disk_of(action: &DiskAction) -> Option<DiskId> {
    match action {
        DiskAction::Open(plan) | DiskAction::Plug { plan, .. } => disk_of_device(&plan.device),
        DiskAction::Unplug(disk) | DiskAction::Resize(disk, _) | DiskAction::Limit(disk, _) => {
            Some(disk.clone())
        }
    }
}
