//! Where the metrics come from that neither the tree nor the front end counts.

use crate::{
    host::{proc, qmp::CommandTimes},
    http::{MetricsSources, ProcessUsage},
    telemetry::LogControl,
};
use rustix::process::{Pid, getpid};
use std::sync::{Arc, OnceLock};
use vman_model::{BootId, vm::ProcessIdentity};

/// Sources on the real host; a simulated one has no processes of the pids it tells.
pub(super) fn sources(log: LogControl, qmp: Arc<CommandTimes>, simulated: bool) -> MetricsSources {
    let boot = proc::boot_id().ok().filter(|_| !simulated);
    let started = proc::start_time(getpid()).ok().flatten();
    MetricsSources {
        vm: Arc::new(move |identity| of_vm(boot.as_ref()?, identity)),
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
