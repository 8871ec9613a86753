//! One piece of work on one disk: the order of its QMP commands, and their undoing.
//!
//! Each may be repeated: where QEMU refuses a step, it is asked whether that was done before. With
//! native PCIe hot-plug (7.2) a slot that no guest has powered gives its device up at once; a guest
//! that stands still or does not listen keeps it, and may let go long after nobody waits any more.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::time::{Instant, sleep, timeout_at};
use vman_actors::failpoint;
use vman_actors::ports::{DiskAction, DiskError, DiskPlan, device_name, node_name};
use vman_model::vm::SeenDisk;
use vman_model::{DiskId, DiskLimits};

use super::seen::disks;
use super::{DeviceEvent, Owner};
use crate::host::qemu::cmdline::{CmdlineError, disk_device, disk_node};
use crate::host::qmp::{Client, QmpError};

/// How long a guest may take to let go of a disk. A guest that listens needs 90 ms (7.2, TCG).
const RELEASE_DEADLINE: Duration = Duration::from_secs(10);

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

/// One piece of work.
pub(super) struct Work {
    pub(super) owner: Owner,
    pub(super) client: Client,
    pub(super) within: Duration,
    pub(super) disk: DiskId,
}

/// What became of one command.
enum Answer {
    Done,
    /// QEMU said no.
    No(String),
}

impl Work {
    pub(super) async fn run(
        &self,
        action: DiskAction,
        heard: broadcast::Receiver<DeviceEvent>,
    ) -> Result<(), DiskError> {
        match action {
            DiskAction::Plug(plan) => self.plug(&plan).await,
            DiskAction::Unplug(_) => self.unplug(heard).await,
            DiskAction::Resize(_, size_mib) => self.resize(size_mib).await,
            DiskAction::Limit(_, limits) => self.limit(&limits).await,
        }
    }

    async fn ask(&self, command: &str, arguments: Value) -> Result<Answer, DiskError> {
        match self
            .client
            .execute(command, Some(arguments), self.within)
            .await
        {
            Ok(_) => Ok(Answer::Done),
            Err(QmpError::Refused { desc, .. }) => Ok(Answer::No(desc)),
            Err(error) => Err(DiskError::Unknown(error.to_string())),
        }
    }

    async fn seen(&self) -> Result<SeenDisk, DiskError> {
        let unknown = |error: QmpError| DiskError::Unknown(error.to_string());
        let all = disks(&self.client, self.within).await.map_err(unknown)?;
        let found = all.into_iter().find(|seen| seen.disk == self.disk);
        Ok(found.unwrap_or(SeenDisk {
            disk: self.disk.clone(),
            device: false,
            node: false,
        }))
    }

    async fn plug(&self, plan: &DiskPlan) -> Result<(), DiskError> {
        let impossible = |error: CmdlineError| DiskError::Refused(error.to_string());
        let node = disk_node(plan).map_err(impossible)?;
        let device = disk_device(plan).map_err(impossible)?;
        self.owner.hand(plan.path.clone()).await?;
        // Both at once, in this order: a device whose node was refused is refused as well.
        let (opened, added) = tokio::join!(
            self.ask("blockdev-add", node),
            self.ask("device_add", device)
        );
        let refusals = [opened?, added?].map(|answer| match answer {
            Answer::Done => None,
            Answer::No(why) => Some(why),
        });
        if let Some(why) = refusals.into_iter().flatten().next() {
            // Or it was plugged in before.
            let seen = self.seen().await?;
            if !seen.device {
                if seen.node {
                    self.close().await?;
                }
                return Err(DiskError::Refused(why));
            }
        }
        failpoint::hit("attach.device");
        if plan.options.limits.any() {
            self.limit(&plan.options.limits).await?;
        }
        Ok(())
    }

    async fn unplug(&self, heard: broadcast::Receiver<DeviceEvent>) -> Result<(), DiskError> {
        let device = device_name(&self.disk);
        if let Answer::No(why) = self.ask("device_del", json!({"id": device})).await? {
            // It is gone already, or it is asked for already and the guest has not answered.
            if self.seen().await?.device {
                tracing::debug!(disk_id = %self.disk, why, "QEMU asks the guest already");
                self.wait_for_guest(heard, &device).await?;
            }
        } else {
            failpoint::hit("detach.asked");
            self.wait_for_guest(heard, &device).await?;
        }
        failpoint::hit("detach.released");
        self.close().await?;
        self.owner.take(&self.disk).await;
        failpoint::hit("detach.closed");
        Ok(())
    }

    async fn wait_for_guest(
        &self,
        mut heard: broadcast::Receiver<DeviceEvent>,
        device: &str,
    ) -> Result<(), DiskError> {
        let until = Instant::now() + RELEASE_DEADLINE;
        loop {
            match timeout_at(until, heard.recv()).await {
                Ok(Ok(DeviceEvent::Deleted(gone))) if gone == device => return Ok(()),
                Ok(Ok(DeviceEvent::Refused(kept))) if kept == device => {
                    return Err(DiskError::Held(
                        "the guest refused to let go of the disk; it is still attached".to_owned(),
                    ));
                }
                Ok(Ok(_)) => {}
                Ok(Err(broadcast::error::RecvError::Lagged(_))) => {
                    if !self.seen().await?.device {
                        return Ok(());
                    }
                }
                Ok(Err(broadcast::error::RecvError::Closed)) => {
                    return Err(DiskError::Unknown("the machine is gone".to_owned()));
                }
                Err(_) if !self.seen().await?.device => return Ok(()),
                Err(_) => {
                    let seconds = RELEASE_DEADLINE.as_secs();
                    return Err(DiskError::Held(format!(
                        "the guest did not let go of the disk within {seconds} s; it is still \
                         attached: try again when the guest runs and listens"
                    )));
                }
            }
        }
    }

    /// Closes the file. The device is gone, or was never there.
    async fn close(&self) -> Result<(), DiskError> {
        let node = json!({"node-name": node_name(&self.disk)});
        for _ in 0..CLOSE_TRIES {
            let Answer::No(why) = self.ask("blockdev-del", node.clone()).await? else {
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
        match self.ask("block_resize", arguments).await? {
            Answer::Done => {
                failpoint::hit("resize.done");
                Ok(())
            }
            Answer::No(why) => Err(DiskError::Refused(why)),
        }
    }

    async fn limit(&self, limits: &DiskLimits) -> Result<(), DiskError> {
        let arguments = throttle(&device_name(&self.disk), limits);
        match self.ask("block_set_io_throttle", arguments).await? {
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
