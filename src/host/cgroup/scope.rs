//! A transient scope of systemd's for a VM's QEMU, under `vman.slice`: what takes the place of groups of our own where
//! systemd owns the daemon's.
//!
//! Owns: the words of the D-Bus call (org.freedesktop.systemd1(5)). Must not: be spoken to anybody but PID 1's systemd
//! (`Scopes::find`), or keep a connection: the bus may be restarted between two launches.
//!
//! QEMU is put in when it was spawned and its CPUs still stand. A scope ends with its last process, and its group with
//! it: systemd takes it away, we need not.

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
/// All VMs' scopes are in it: `systemd-cgtop`, `systemctl status vman.slice`.
const SLICE: &str = "vman.slice";
/// At shutdown scopes are stopped together with everything else: the unit that drains has to come first.
const DRAIN: &str = "vman-drain.service";
/// systemd answers in milliseconds, and in seconds while a slow host boots; one that takes this long is not well.
const DEADLINE: Duration = Duration::from_secs(30);
/// How often it is looked whether the process was moved.
const LOOK: Duration = Duration::from_millis(2);
/// 100 % of one processor, in microseconds a second.
const USEC_PER_PERCENT: u64 = 10_000;

/// Where systemd is asked for scopes.
#[derive(Clone, Debug)]
pub(super) struct Scopes {
    /// The bus; none for the system's.
    bus: Option<String>,
    /// What the kernel tells of a process's groups.
    proc: PathBuf,
    /// Where version 2 is mounted.
    mounted: PathBuf,
}

impl Scopes {
    /// Where systemd is PID 1 and answers on the system's bus.
    pub(super) fn find(mounted: &Path) -> Result<Self, String> {
        let scopes = Self {
            bus: None,
            proc: "/proc".into(),
            mounted: mounted.to_owned(),
        };
        let answered = wait_for(scopes.ask());
        answered.map_err(|error| format!("systemd does not answer over D-Bus: {error}"))?;
        Ok(scopes)
    }

    #[cfg(test)]
    pub(super) fn on(bus: &str, folder: &Path) -> Self {
        Self {
            bus: Some(bus.to_owned()),
            proc: folder.join("proc"),
            mounted: folder.join("cgroup"),
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

    /// Puts a process of ours into a scope of its own with what is bounded, and answers the scope's group. Blocks for
    /// some milliseconds; on a thread of its own within a tokio runtime.
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
        let put = async {
            self.start(pid, &unit, limits, bounded).await?;
            self.moved(pid, &unit).await
        };
        wait_for(put).map_err(|error| io::Error::other(format!("{unit}: {error}")))
    }

    async fn start(
        &self,
        pid: u32,
        unit: &str,
        limits: &Limits,
        bounded: &[Controller],
    ) -> zbus::Result<()> {
        let connection = self.connect().await?;
        let others: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
        let words = (unit, "fail", properties(pid, limits, bounded), others);
        let answer = connection
            .call_method(
                Some(MANAGER),
                PATH,
                Some(INTERFACE),
                "StartTransientUnit",
                &words,
            )
            .await?;
        answer.body().deserialize::<OwnedObjectPath>().map(drop)
    }

    /// The group of the unit, if the process is in it.
    fn group_of(&self, pid: u32, unit: &str) -> io::Result<Option<PathBuf>> {
        let told = fs::read_to_string(self.proc.join(pid.to_string()).join("cgroup"))?;
        let own = told.lines().find_map(|line| line.strip_prefix("0::/"));
        let own = own.filter(|own| own.ends_with(unit));
        Ok(own.map(|own| self.mounted.join(own)))
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

/// What systemd is told of a scope (systemd.resource-control(5), by the names that D-Bus has).
fn properties(
    pid: u32,
    limits: &Limits,
    bounded: &[Controller],
) -> Vec<(&'static str, Variant<'static>)> {
    let mut out = vec![
        ("Description", Variant::from("A QEMU of VMAN's")),
        ("PIDs", Variant::from(vec![pid])),
        ("Slice", Variant::from(SLICE)),
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
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader};
    use std::{
        collections::BTreeMap,
        process::{Child, Command, Stdio},
        sync::{Arc, Mutex},
    };
    use zbus::{OwnedVariant, fdo, interface};

    const LIMITS: Limits = Limits {
        memory_max: 1 << 30,
        cpu_weight: 200,
        cpu_quota_percent: Some(150),
        tasks_max: 77,
        io_weight: None,
    };

    type Properties = BTreeMap<String, OwnedVariant>;

    /// A manager that says yes, or no, and moves the process as systemd does.
    struct Systemd {
        folder: PathBuf,
        asked: Arc<Mutex<Vec<(String, Properties)>>>,
        refuses: bool,
    }

    #[interface(name = "org.freedesktop.systemd1.Manager")]
    impl Systemd {
        #[zbus(property)]
        fn version(&self) -> String {
            format!("252 ({})", if self.refuses { "refuses" } else { "starts" })
        }

        fn start_transient_unit(
            &self,
            name: String,
            mode: String,
            properties: Vec<(String, OwnedVariant)>,
            others: Vec<(String, Vec<(String, OwnedVariant)>)>,
        ) -> fdo::Result<OwnedObjectPath> {
            assert_eq!((mode.as_str(), others.len()), ("fail", 0));
            if self.refuses {
                return Err(fdo::Error::AccessDenied("polkit says no".to_owned()));
            }
            let group = format!("0::/vman.slice/{name}\n");
            fs::write(self.folder.join("proc/7/cgroup"), group).unwrap();
            let asked = (name, properties.into_iter().collect());
            self.asked.lock().unwrap().push(asked);
            Ok(OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/1").unwrap())
        }
    }

    /// A bus of the test's own with a manager on it.
    struct Bus {
        daemon: Child,
        folder: tempfile::TempDir,
        address: String,
        asked: Arc<Mutex<Vec<(String, Properties)>>>,
        systemd: Option<zbus::Connection>,
    }

    impl Drop for Bus {
        fn drop(&mut self) {
            self.systemd = None;
            let _ = self.daemon.kill();
            let _ = self.daemon.wait();
        }
    }

    async fn bus(refuses: bool) -> Option<Bus> {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("proc/7")).unwrap();
        fs::write(
            folder.path().join("proc/7/cgroup"),
            "0::/system.slice/vman.service\n",
        )
        .unwrap();
        let at = format!("--address=unix:path={}/bus", folder.path().display());
        let started = Command::new("dbus-daemon")
            .args([
                "--session",
                "--nofork",
                "--nopidfile",
                "--print-address",
                &at,
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut daemon) = started else {
            crate::host::testing::skip("dbus-daemon is not installed");
            return None;
        };
        let mut address = String::new();
        let mut said = BufReader::new(daemon.stdout.take().unwrap());
        said.read_line(&mut address).unwrap();
        let address = address.trim().to_owned();
        let mut bus = Bus {
            daemon,
            address,
            asked: Arc::default(),
            systemd: None,
            folder,
        };
        let systemd = Systemd {
            folder: bus.folder.path().to_owned(),
            asked: bus.asked.clone(),
            refuses,
        };
        let served = connection::Builder::address(bus.address.as_str())
            .name(MANAGER)
            .serve_at(PATH, systemd);
        bus.systemd = Some(served.build().await.unwrap());
        Some(bus)
    }

    async fn put(bus: &Bus, bounded: &'static [Controller]) -> io::Result<PathBuf> {
        let scopes = Scopes::on(&bus.address, bus.folder.path());
        let work = move || {
            wait_for(scopes.ask()).unwrap();
            scopes.put(7, "web.u.1", &LIMITS, bounded)
        };
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_qemu_is_put_into_a_scope_under_the_slice_with_its_limits() {
        let Some(bus) = bus(false).await else { return };
        let group = put(&bus, &Controller::ALL).await.unwrap();
        let expected = bus
            .folder
            .path()
            .join("cgroup/vman.slice/vman.web.u.1.scope");
        assert_eq!(group, expected);
        let asked = bus.asked.lock().unwrap();
        let (name, properties) = &asked[0];
        assert_eq!(name, "vman.web.u.1.scope");
        let number = |name: &str| u64::try_from(&properties[name]).unwrap();
        assert_eq!(number("MemoryMax"), 1 << 30);
        assert_eq!(number("TasksMax"), 77);
        assert_eq!(number("CPUWeight"), 200);
        assert_eq!(number("CPUQuotaPerSecUSec"), 1_500_000);
        assert!(!properties.contains_key("IOWeight"), "it was not asked for");
        let word = |name: &str| <&str>::try_from(&properties[name]).unwrap();
        assert_eq!(word("Slice"), "vman.slice");
        let pids = Vec::<u32>::try_from(properties["PIDs"].try_clone().unwrap()).unwrap();
        assert_eq!(pids, [7]);
        let before = Vec::<String>::try_from(properties["Before"].try_clone().unwrap()).unwrap();
        assert_eq!(before, ["vman-drain.service"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_systemd_refuses_is_told_in_its_words_and_so_is_its_absence() {
        let Some(mut bus) = bus(true).await else {
            return;
        };
        let refused = put(&bus, &[Controller::Pids]).await.unwrap_err();
        assert!(refused.to_string().contains("polkit says no"), "{refused}");
        bus.daemon.kill().unwrap();
        bus.daemon.wait().unwrap();
        let scopes = Scopes::on(&bus.address, bus.folder.path());
        let absent = tokio::task::spawn_blocking(move || scopes.put(7, "a", &LIMITS, &[]));
        assert!(absent.await.unwrap().is_err());
    }
}
