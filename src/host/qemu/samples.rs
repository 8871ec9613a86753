//! What guests have read, written and hold, as their QEMUs count it: asked over QMP now and then, for the metrics.
//!
//! Owns: asking all living machines side by side, each with a deadline, and keeping what they said last. Must not: make
//! anybody wait (who reads gets what is there, and has the next sample begun), or ask while nobody reads.
//! Look next: `host::qmp` for the protocol; `app::figures` for who reads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::sleep;
use vman_model::{DiskId, VmId};

use super::hotplug::disk_of_device;
use super::machine::QemuMachine;
use super::{Machines, QemuHost};

/// However many scrape, guests are asked no more often.
const PAUSE: Duration = Duration::from_secs(5);
/// A QEMU that does not answer within this is asked again the next time.
const DEADLINE: Duration = Duration::from_secs(1);
/// Machines asked at once: thousands of commands at once would delay those of users.
const AT_ONCE: usize = 32;

/// What one guest's disk has done since its QEMU was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSample {
    /// The disk.
    pub disk: DiskId,
    /// Bytes read and written.
    pub bytes: (u64, u64),
    /// Requests to read, to write and to flush.
    pub requests: (u64, u64, u64),
}

/// What one guest said last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestSample {
    /// Bytes of memory the guest holds by its balloon; none without a balloon.
    pub balloon: Option<u64>,
    /// Its disks.
    pub disks: Vec<DiskSample>,
}

/// What all guests said last.
#[derive(Debug, Default)]
pub struct Samples {
    wanted: Notify,
    last: Mutex<BTreeMap<VmId, GuestSample>>,
}

impl Samples {
    /// What is known, and has it asked for again.
    pub fn read(&self) -> BTreeMap<VmId, GuestSample> {
        self.wanted.notify_one();
        self.last().clone()
    }

    fn last(&self) -> MutexGuard<'_, BTreeMap<VmId, GuestSample>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QemuHost {
    /// The same host, telling there what its guests say. Within a tokio runtime; ends with `samples`.
    #[must_use]
    pub fn sampled(self, samples: &Arc<Samples>) -> Self {
        let (machines, samples) = (Arc::clone(&self.machines), Arc::downgrade(samples));
        tokio::spawn(keep_asking(machines, samples));
        self
    }
}

async fn keep_asking(machines: Arc<Mutex<Machines>>, samples: Weak<Samples>) {
    while let Some(samples) = samples.upgrade() {
        samples.wanted.notified().await;
        let living: Vec<(VmId, Arc<QemuMachine>)> = machines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter_map(|(vm, (_, machine))| Some((vm.clone(), machine.upgrade()?)))
            .filter(|(_, machine)| !machine.is_gone())
            .collect();
        let asked = living.into_iter().map(|(vm, machine)| async move {
            let sample = ask(&machine).await;
            (vm, sample)
        });
        let answers: Vec<_> = futures_util::stream::iter(asked)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        {
            let mut last = samples.last();
            let mut before = std::mem::take(&mut *last);
            for (vm, sample) in answers {
                // What a deaf one said last still stands: it counts on when it is heard again.
                if let Some(sample) = sample.or_else(|| before.remove(&vm)) {
                    last.insert(vm, sample);
                }
            }
        }
        drop(samples);
        sleep(PAUSE).await;
    }
}

async fn ask(machine: &QemuMachine) -> Option<GuestSample> {
    let client = machine.client()?;
    let (disks, balloon) = tokio::join!(
        client.execute("query-blockstats", None, DEADLINE),
        client.execute("query-balloon", None, DEADLINE),
    );
    let disks = disks.ok()?;
    let disks = disks.as_array().into_iter().flatten().filter_map(disk);
    Some(GuestSample {
        // A machine without a balloon refuses.
        balloon: balloon.ok().and_then(|told| told.get("actual")?.as_u64()),
        disks: disks.collect(),
    })
}

/// What `query-blockstats` says of one device; none for what is no disk of a VM's.
fn disk(told: &Value) -> Option<DiskSample> {
    // `/machine/peripheral/dev-disk-web-1-root/virtio-backend`
    let disk = told
        .get("qdev")?
        .as_str()?
        .split('/')
        .find_map(disk_of_device)?;
    let stats = told.get("stats")?;
    let number = |name: &str| stats.get(name).and_then(Value::as_u64).unwrap_or_default();
    Some(DiskSample {
        disk,
        bytes: (number("rd_bytes"), number("wr_bytes")),
        requests: (
            number("rd_operations"),
            number("wr_operations"),
            number("flush_operations"),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_disk_is_told_by_its_device_and_other_devices_are_not() {
        let stats = json!({"rd_bytes": 512, "wr_bytes": 1024, "rd_operations": 1, "wr_operations": 2, "flush_operations": 3});
        let told =
            json!({"qdev": "/machine/peripheral/dev-disk-web-root/virtio-backend", "stats": stats});
        let sample = disk(&told).unwrap();
        assert_eq!(sample.disk.as_str(), "web-root");
        assert_eq!((sample.bytes, sample.requests), ((512, 1024), (1, 2, 3)));
        for other in [
            json!({"device": "pflash0", "stats": stats}),
            json!({"qdev": "/machine/unattached/device[3]", "stats": stats}),
            json!({"qdev": "/machine/peripheral/dev-disk-a"}),
            json!(7),
        ] {
            assert_eq!(disk(&other), None, "{other}");
        }
    }
}
