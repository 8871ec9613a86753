//! On a bus of the test's own, with a systemd that says yes or no.

use super::*;
use crate::host::cgroup::note::{note_down, oom_kills, remove_by};
use std::io::{BufRead as _, BufReader};
use std::{
    collections::BTreeMap,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};
use zbus::{DBusError, OwnedVariant, interface};

const LIMITS: Limits = Limits {
    memory_max: 1 << 30,
    cpu_weight: 200,
    cpu_quota_percent: Some(150),
    tasks_max: 77,
    io_weight: None,
};

type Asked = BTreeMap<String, OwnedVariant>;

/// What systemd says no with.
#[derive(Debug, DBusError)]
#[zbus(prefix = "org.freedesktop.systemd1")]
enum Refusal {
    #[zbus(error)]
    ZBus(zbus::Error),
    NoSuchUnit(String),
    Forbidden(String),
}

/// A manager that says yes, or no, and moves the process as systemd does.
struct Manager {
    folder: PathBuf,
    asked: Arc<Mutex<Vec<(String, Asked)>>>,
    refuses: bool,
}

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    #[zbus(property)]
    fn version(&self) -> String {
        format!("252 ({})", if self.refuses { "refuses" } else { "starts" })
    }

    fn stop_unit(&self, name: String, mode: String) -> Result<OwnedObjectPath, Refusal> {
        assert_eq!(mode, "replace");
        let group = self.folder.join("cgroup/vman.slice").join(&name);
        if self.refuses {
            return Err(Refusal::Forbidden("polkit says no".to_owned()));
        }
        if !group.exists() {
            return Err(Refusal::NoSuchUnit(name));
        }
        fs::remove_dir_all(group).unwrap();
        Ok(OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/2").unwrap())
    }

    fn start_transient_unit(
        &self,
        name: String,
        mode: String,
        properties: Vec<(String, OwnedVariant)>,
        others: Vec<(String, Vec<(String, OwnedVariant)>)>,
    ) -> Result<OwnedObjectPath, Refusal> {
        assert_eq!((mode.as_str(), others.len()), ("fail", 0));
        if self.refuses {
            return Err(Refusal::Forbidden("polkit says no".to_owned()));
        }
        let asked: (_, Asked) = (name.clone(), properties.into_iter().collect());
        let slice = <&str>::try_from(&asked.1["Slice"]).unwrap();
        let group = format!("vman.slice/{slice}");
        fs::create_dir_all(self.folder.join("cgroup").join(&group)).unwrap();
        let told = format!("0::/{group}/{name}\n");
        fs::write(self.folder.join("proc/7/cgroup"), told).unwrap();
        self.asked.lock().unwrap().push(asked);
        Ok(OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/1").unwrap())
    }
}

/// A bus of the test's own with a manager on it.
struct Bus {
    daemon: Child,
    folder: tempfile::TempDir,
    address: String,
    asked: Arc<Mutex<Vec<(String, Asked)>>>,
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
    let systemd = Manager {
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
        wait_for(scopes.systemd.ask()).unwrap();
        scopes.put(7, "web.u-v.1", &LIMITS, bounded)
    };
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_is_put_into_a_scope_under_the_slice_with_its_limits() {
    let Some(bus) = bus(false).await else { return };
    let group = put(&bus, &Controller::ALL).await.unwrap();
    let slice = "vman-web.u_v.1.slice";
    let expected = bus.folder.path().join("cgroup/vman.slice").join(slice);
    assert_eq!(group, expected);
    let asked = bus.asked.lock().unwrap();
    let (name, properties) = &asked[0];
    assert_eq!(name, "vman.web.u-v.1.scope");
    let number = |name: &str| u64::try_from(&properties[name]).unwrap();
    assert_eq!(number("MemoryMax"), 1 << 30);
    assert_eq!(number("TasksMax"), 77);
    assert_eq!(number("CPUWeight"), 200);
    assert_eq!(number("CPUQuotaPerSecUSec"), 1_500_000);
    assert!(!properties.contains_key("IOWeight"), "it was not asked for");
    let word = |name: &str| <&str>::try_from(&properties[name]).unwrap();
    assert_eq!(word("Slice"), slice);
    let pids = Vec::<u32>::try_from(properties["PIDs"].try_clone().unwrap()).unwrap();
    assert_eq!(pids, [7]);
    let before = Vec::<String>::try_from(properties["Before"].try_clone().unwrap()).unwrap();
    assert_eq!(before, ["vman-drain.service"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slice_tells_what_was_ended_for_memory_and_goes_when_nobody_is_in_it() {
    let Some(bus) = bus(false).await else { return };
    let slice = put(&bus, &Controller::ALL).await.unwrap();
    let note = bus.folder.path().join("note");
    note_down(&note, std::slice::from_ref(&slice)).unwrap();
    // The scope's own group went with its last process.
    let told = "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\n";
    fs::write(slice.join("memory.events"), told).unwrap();
    assert_eq!(oom_kills(&note).unwrap(), Some(1));
    let remove = async || {
        let (note, systemd) = (note.clone(), Systemd::on(&bus.address));
        let work = move || remove_by(&note, &systemd);
        tokio::task::spawn_blocking(work).await.unwrap()
    };
    let events = slice.join("cgroup.events");
    fs::write(&events, "populated 1\nfrozen 0\n").unwrap();
    let held = remove().await.unwrap_err();
    assert_eq!(held.kind(), io::ErrorKind::ResourceBusy);
    assert!(slice.exists() && note.exists(), "nobody is ended by it");
    fs::write(&events, "populated 0\nfrozen 0\n").unwrap();
    remove().await.unwrap();
    assert!(!slice.exists() && !note.exists());
    remove().await.unwrap();
    let systemd = Systemd::on(&bus.address);
    let gone = tokio::task::spawn_blocking(move || systemd.stop("vman-gone.slice"));
    gone.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_systemd_refuses_is_told_in_its_words_and_so_is_its_absence() {
    let Some(mut bus) = bus(true).await else {
        return;
    };
    let refused = put(&bus, &[Controller::Pids]).await.unwrap_err();
    assert!(refused.to_string().contains("polkit says no"), "{refused}");
    let systemd = Systemd::on(&bus.address);
    let kept = tokio::task::spawn_blocking(move || systemd.stop("vman-a.slice"));
    assert!(kept.await.unwrap().is_err());
    bus.daemon.kill().unwrap();
    bus.daemon.wait().unwrap();
    let scopes = Scopes::on(&bus.address, bus.folder.path());
    let absent = tokio::task::spawn_blocking(move || scopes.put(7, "a", &LIMITS, &[]));
    assert!(absent.await.unwrap().is_err());
}
