//! Where the metrics come from that neither the tree nor the front end counts.

use crate::{
    host::{
        proc,
        qemu::samples::{GuestSample, Samples},
        qmp::CommandTimes,
    },
    http::{DiskUsage, GuestUsage, LinkUsage, MetricsSources, ProcessUsage},
    telemetry::LogControl,
};
use rustix::process::{Pid, getpid};
use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};
use vman_model::{BootId, Capacity, VmId, vm::ProcessIdentity};

/// Sources on the real host; a simulated one, of which it is not known what it has, has no processes of the pids it tells.
pub(super) fn sources(
    log: LogControl,
    qmp: Arc<CommandTimes>,
    samples: Arc<Samples>,
    host: Option<Capacity>,
) -> MetricsSources {
    let boot = proc::boot_id().ok().filter(|_| host.is_some());
    let started = proc::start_time(getpid()).ok().flatten();
    MetricsSources {
        vm: Arc::new(move |identity| of_vm(boot.as_ref()?, identity)),
        guests: Arc::new(move || samples.read().into_iter().map(guest).collect()),
        links: Arc::new(links),
        host,
        own: Arc::new(move || used(getpid(), started?)),
        dropped_records: Arc::new(move || log.dropped()),
        qmp,
        recovery: Arc::new(OnceLock::new()),
    }
}

fn of_vm(boot: &BootId, identity: &ProcessIdentity) -> Option<ProcessUsage> {
    if identity.boot_id != *boot {
        return None;
    }
    let pid = Pid::from_raw(i32::try_from(identity.pid).ok()?)?;
    used(pid, identity.start_time)
}

fn used(pid: Pid, started: u64) -> Option<ProcessUsage> {
    let used = proc::usage(pid, started).ok().flatten()?;
    Some(ProcessUsage {
        cpu: used.cpu,
        rss_bytes: used.rss_bytes,
        threads: used.threads,
        storage: used.storage,
    })
}

fn guest((vm, sample): (VmId, GuestSample)) -> GuestUsage {
    let disks = sample.disks.into_iter().map(|disk| DiskUsage {
        disk: disk.disk.to_string(),
        bytes: disk.bytes,
        requests: disk.requests,
    });
    GuestUsage {
        vm: vm.to_string(),
        balloon: sample.balloon,
        disks: disks.collect(),
    }
}

fn links() -> BTreeMap<String, LinkUsage> {
    let counted = proc::links().unwrap_or_default().into_iter();
    let used = counted.map(|(name, counts)| {
        let used = LinkUsage {
            bytes: counts.bytes,
            packets: counts.packets,
        };
        (name, used)
    });
    used.collect()
}
