//! A transient scope of systemd's for a VM's QEMU, in a slice of its own under `vman.slice`: what takes the place of
//! groups of our own where systemd owns the daemon's.
//!
//! Owns: the words of the D-Bus calls (org.freedesktop.systemd1(5)). Must not: be spoken to anybody but PID 1's systemd
//! (`Scopes::find`), or keep a connection: the bus may be restarted between two launches.
//!
//! QEMU is put in when it was spawned and its CPUs still stand. A scope ends with its last process, and its group with
//! it, and so would the count of what the kernel has ended in it for memory. The slice around it counts the same and
//! stays until it is stopped, which is done when the VM is released: that is what is noted as the VM's group.

use super::{Controller, Limits};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};
use zbus::{OwnedObjectPath, Variant, connection};

const MANAGER: &str = "org.freedesktop.systemd1";
const INTERFACE: &str = "org.freedesktop.systemd1.Manager";
const PATH: &str = "/org/freedesktop/systemd1";
/// All VMs' slices are in it, by their names: `systemd-cgtop`, `systemctl status vman.slice`.
const ALL_SLICES: &str = "vman.slice";
/// What systemd says of a unit that is gone.
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
/// At shutdown scopes are stopped together with everything else: the unit that drains has to come first.
const DRAIN: &str = "vman-drain.service";
/// systemd answers in milliseconds, and in seconds while a slow host boots; one that takes this long is not well.
const DEADLINE: Duration = Duration::from_secs(30);
/// How often it is looked whether the process was moved.
const LOOK: Duration = Duration::from_millis(2);
/// 100 % of one processor, in microseconds a second.
const USEC_PER_PERCENT: u64 = 10_000;

/// systemd, as it is reached over D-Bus.
#[derive(Clone, Debug, Default)]
pub(super) struct Systemd {
    /// The bus; none for the system's.
    bus: Option<String>,
}

/// Where systemd is asked for scopes.
#[derive(Clone, Debug)]
pub(super) struct Scopes {
    systemd: Systemd,
    /// What the kernel tells of a process's groups.
    proc: PathBuf,
    /// Where version 2 is mounted.
    mounted: PathBuf,
}

impl Scopes {
    /// Where systemd is PID 1 and answers on the system's bus.
    pub(super) fn find(mounted: &Path) -> Result<Self, String> {
        let scopes = Self {
            systemd: Systemd::default(),
            proc: "/proc".into(),
            mounted: mounted.to_owned(),
        };
        let answered = wait_for(scopes.systemd.ask());
        answered.map_err(|error| format!("systemd does not answer over D-Bus: {error}"))?;
        Ok(scopes)
    }

    #[cfg(test)]
    fn on(bus: &str, folder: &Path) -> Self {
        Self {
            systemd: Systemd::on(bus),
            proc: folder.join("proc"),
            mounted: folder.join("cgroup"),
        }
    }

    /// Where a VM's group will be, unless systemd's own are below another.
    pub(super) fn group(&self, name: &str) -> PathBuf {
        self.folder().join(slice(name))
    }

    /// What all VMs' groups are in.
    pub(super) fn folder(&self) -> PathBuf {
        self.mounted.join(ALL_SLICES)
    }

    /// Puts a process of ours into a scope of its own with what is bounded, and answers the group of the slice around
    /// it. Blocks for some milliseconds; on a thread of its own within a tokio runtime.
    pub(super) fn put(
        &self,
        pid: u32,
        name: &str,
        limits: &Limits,
        bounded: &[Controller],
    ) -> io::Result<PathBuf> {
        let unit = format!("vman.{name}.scope");
        if let Some(group) = self.group_of(pid, &unit)? {
            return Ok(group);
        }
        let properties = properties(pid, &slice(name), limits, bounded);
        let put = async {
            self.systemd.start(&unit, properties).await?;
            self.moved(pid, &unit).await
        };
        wait_for(put).map_err(|error| io::Error::other(format!("{unit}: {error}")))
    }

    /// The group of the slice around the unit, if the process is in it.
    fn group_of(&self, pid: u32, unit: &str) -> io::Result<Option<PathBuf>> {
        let told = fs::read_to_string(self.proc.join(pid.to_string()).join("cgroup"))?;
        let own = told.lines().find_map(|line| line.strip_prefix("0::/"));
        let slice = own.and_then(|own| own.strip_suffix(unit)?.strip_suffix('/'));
        Ok(slice.map(|slice| self.mounted.join(slice)))
    }

    /// Waits until the job is done, which is when the kernel says so.
    async fn moved(&self, pid: u32, unit: &str) -> zbus::Result<PathBuf> {
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(group) = self.group_of(pid, unit)? {
                return Ok(group);
            }
            if Instant::now() > until {
                let why = format!("the process was not moved within {DEADLINE:?}");
                return Err(zbus::Error::Failure(why));
            }
            sleep(LOOK).await;
        }
    }
}

impl Systemd {
    #[cfg(test)]
    fn on(bus: &str) -> Self {
        Self {
            bus: Some(bus.to_owned()),
        }
    }

    async fn connect(&self) -> zbus::Result<zbus::Connection> {
        let builder = match &self.bus {
            Some(bus) => connection::Builder::address(bus.as_str()),
            None => connection::Builder::system(),
        };
        builder.method_timeout(DEADLINE).build().await
    }

    async fn ask(&self) -> zbus::Result<()> {
        let (connection, message) = (self.connect().await?, (INTERFACE, "Version"));
        let properties = Some("org.freedesktop.DBus.Properties");
        let answered = connection.call_method(Some(MANAGER), PATH, properties, "Get", &message);
        answered.await.map(drop)
    }

    async fn start(&self, unit: &str, properties: Properties) -> zbus::Result<()> {
        let others: Vec<(&str, Properties)> = Vec::new();
        let words = (unit, "fail", properties, others);
        self.job("StartTransientUnit", &words).await
    }

    /// Has a slice go whose processes have all ended; one that systemd does not know has gone. Blocks as `put` does.
    pub(super) fn stop(&self, slice: &str) -> io::Result<()> {
        match wait_for(self.job("StopUnit", &(slice, "replace"))) {
            Err(zbus::Error::MethodError(name, ..)) if name.as_str() == NO_SUCH_UNIT => Ok(()),
            stopped => stopped.map_err(|error| io::Error::other(format!("{slice}: {error}"))),
        }
    }

    async fn job<W>(&self, method: &str, words: &W) -> zbus::Result<()>
    where
        W: serde::Serialize + zbus::zvariant::DynamicType,
    {
        let connection = self.connect().await?;
        let answer = connection
            .call_method(Some(MANAGER), PATH, Some(INTERFACE), method, words)
            .await?;
        answer.body().deserialize::<OwnedObjectPath>().map(drop)
    }
}

/// The slice of a VM's life. A dash would be another level.
fn slice(name: &str) -> String {
    format!("vman-{}.slice", name.replace('-', "_"))
}

type Properties = Vec<(&'static str, Variant<'static>)>;

/// What systemd is told of a scope (systemd.resource-control(5), by the names that D-Bus has).
fn properties(pid: u32, slice: &str, limits: &Limits, bounded: &[Controller]) -> Properties {
    let mut out = vec![
        ("Description", Variant::from("A QEMU of VMAN's")),
        ("PIDs", Variant::from(vec![pid])),
        ("Slice", Variant::from(slice.to_owned())),
        ("Before", Variant::from(vec![DRAIN])),
        // One that ended badly is told by VMAN, and must not stand in the way of its successor.
        ("CollectMode", Variant::from("inactive-or-failed")),
    ];
    for controller in bounded {
        match controller {
            Controller::Memory => out.push(("MemoryMax", Variant::from(limits.memory_max))),
            Controller::Pids => out.push(("TasksMax", Variant::from(limits.tasks_max))),
            Controller::Cpu => {
                out.push(("CPUWeight", Variant::from(limits.cpu_weight)));
                if let Some(percent) = limits.cpu_quota_percent {
                    let quota = percent.saturating_mul(USEC_PER_PERCENT);
                    out.push(("CPUQuotaPerSecUSec", Variant::from(quota)));
                }
            }
            Controller::Io => {
                if let Some(weight) = limits.io_weight {
                    out.push(("IOWeight", Variant::from(weight)));
                }
            }
        }
    }
    out
}

/// Waits on this thread, which is one for what blocks.
fn wait_for<T>(work: impl Future<Output = zbus::Result<T>>) -> zbus::Result<T> {
    tokio::runtime::Handle::current().block_on(async {
        timeout(2 * DEADLINE, work)
            .await
            .unwrap_or_else(|_| Err(zbus::Error::Failure("no answer in time".to_owned())))
    })
}

#[cfg(test)]
mod tests;
