//! One piece of work on one disk: the order of its QMP commands, and their undoing.
//!
//! Each may be repeated: where QEMU refuses a step, it is asked whether that was done before. With
//! native PCIe hot-plug (7.2) a slot that no guest has powered gives its device up at once; a guest
//! that stands still or does not listen keeps it, and may let go long after nobody waits any more.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;
use vman_actors::ports::{DiskAction, DiskError, DiskPlan, device_name, node_name};
use vman_model::vm::SeenDisk;
use vman_model::{DiskId, DiskLimits};

use super::Owner;
use super::seen::disks;
use crate::host::qemu::cmdline::{CmdlineError, disk_device, disk_node};
use crate::host::qemu::devices::{Answer, DeviceTurn, Monitor, unknown};

/// A node is free a moment after its device is gone: how often, and how long apart, that is tried.
const CLOSE_TRIES: u32 = 200;
const CLOSE_PAUSE: Duration = Duration::from_millis(5);

const MIB: u64 = 1 << 20;

/// The arguments of `block_set_io_throttle`. All six rates have to be said; 0 is none.
pub(in crate::host::qemu) fn throttle(device: &str, limits: &DiskLimits) -> Value {
    let mut arguments = json!({
        "id": device,
        "iops": limits.iops, "iops_rd": 0, "iops_wr": 0,
        "bps": limits.bps, "bps_rd": 0, "bps_wr": 0,
    });
    for (name, burst) in [
        ("iops_max", limits.iops_burst),
        ("bps_max", limits.bps_burst),
    ] {
        if burst > 0 {
            arguments[name] = burst.into();
        }
    }
    arguments
}

fn impossible(error: CmdlineError) -> DiskError {
    DiskError::Refused(error.to_string())
}

/// One piece of work.
pub(super) struct Work {
    pub(super) owner: Owner,
    pub(super) monitor: Monitor,
    pub(super) disk: DiskId,
}

impl Work {
    /// Does it, and has the turn on the disk until it is done; to open it needs that only until it is sent.
    pub(super) async fn run(&self, action: DiskAction, turn: DeviceTurn) -> Result<(), DiskError> {
        match action {
            DiskAction::Open(plan) => self.open(&plan, turn).await,
            DiskAction::Plug { plan, opened } => self.plug(&plan, opened).await,
            DiskAction::Unplug(_) => self.unplug().await,
            DiskAction::Resize(_, size_mib) => self.resize(size_mib).await,
            DiskAction::Limit(_, limits) => self.limit(&limits).await,
        }
    }

    async fn seen(&self) -> Result<SeenDisk, DiskError> {
        let all = disks(&self.monitor.client, self.monitor.within).await;
        let all = all.map_err(unknown)?;
        let found = all.into_iter().find(|seen| seen.disk == self.disk);
        Ok(found.unwrap_or(SeenDisk {
            disk: self.disk.clone(),
            device: false,
            node: false,
        }))
    }

    async fn open(&self, plan: &DiskPlan, turn: DeviceTurn) -> Result<(), DiskError> {
        let node = disk_node(plan).map_err(impossible)?;
        self.owner.hand(plan.path.clone()).await?;
        // QEMU does one command after the other, so a device may be sent behind this.
        let (answer, ()) = tokio::join!(
            biased;
            self.monitor.ask("blockdev-add", node),
            async move { drop(turn) },
        );
        let Answer::No(why) = answer? else {
            return Ok(());
        };
        // Or it was opened before.
        if self.seen().await?.node {
            return Ok(());
        }
        self.owner.take(&self.disk).await;
        Err(DiskError::Refused(why))
    }

    async fn plug(&self, plan: &DiskPlan, opened: bool) -> Result<(), DiskError> {
        let device = disk_device(plan).map_err(impossible)?;
        let added = self.monitor.ask("device_add", device);
        let refusal = if opened {
            added.await?.refusal()
        } else {
            let node = disk_node(plan).map_err(impossible)?;
            self.owner.hand(plan.path.clone()).await?;
            // Both at once, in this order: a device whose node was refused is refused as well.
            let (opened, added) =
                tokio::join!(biased; self.monitor.ask("blockdev-add", node), added);
            opened?.refusal().or(added?.refusal())
        };
        if let Some(why) = refusal {
            // Or it was plugged in before.
            let seen = self.seen().await?;
            if !seen.device {
                if seen.node {
                    self.close().await?;
                }
                self.owner.take(&self.disk).await;
                return Err(DiskError::Refused(why));
            }
        }
        if plan.options.limits.any() {
            self.limit(&plan.options.limits).await?;
        }
        Ok(())
    }

    async fn unplug(&self) -> Result<(), DiskError> {
        self.monitor
            .let_go(&device_name(&self.disk), "disk")
            .await?;
        self.close().await?;
        self.owner.take(&self.disk).await;
        Ok(())
    }

    /// Closes the file. The device is gone, or was never there.
    async fn close(&self) -> Result<(), DiskError> {
        let node = json!({"node-name": node_name(&self.disk)});
        for _ in 0..CLOSE_TRIES {
            let Answer::No(why) = self.monitor.ask("blockdev-del", node.clone()).await? else {
                return Ok(());
            };
            let seen = self.seen().await?;
            if !seen.node {
                return Ok(());
            }
            if seen.device {
                return Err(DiskError::Refused(why));
            }
            sleep(CLOSE_PAUSE).await;
        }
        Err(DiskError::Unknown("its file stays open".to_owned()))
    }

    async fn resize(&self, size_mib: u64) -> Result<(), DiskError> {
        let arguments = json!({
            "node-name": node_name(&self.disk),
            "size": size_mib.saturating_mul(MIB),
        });
        match self.monitor.ask("block_resize", arguments).await? {
            Answer::Done => Ok(()),
            Answer::No(why) => Err(DiskError::Refused(why)),
        }
    }

    async fn limit(&self, limits: &DiskLimits) -> Result<(), DiskError> {
        let arguments = throttle(&device_name(&self.disk), limits);
        match self.monitor.ask("block_set_io_throttle", arguments).await? {
            Answer::Done => Ok(()),
            Answer::No(why) => Err(DiskError::Refused(why)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rate_is_said_and_a_burst_only_where_there_is_one() {
        let limits = DiskLimits {
            iops: 100,
            bps_burst: 7,
            ..DiskLimits::default()
        };
        let said = throttle("dev-disk-a", &limits);
        assert_eq!((&said["iops"], &said["bps"]), (&json!(100), &json!(0)));
        assert_eq!(said["bps_max"], 7);
        assert!(said.get("iops_max").is_none());
    }
}
