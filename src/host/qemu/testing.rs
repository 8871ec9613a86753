//! A real QEMU for the tests of this folder, or a loud word that there is none.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::mpsc;
use tokio::time::timeout;
use vman_actors::ports::{DiskPlan, LaunchPlan, Machine, MachineNews, NewsSink, NicPlan};
use vman_model::network::LinkState;
use vman_model::vm::{Confinement, Firmware, NetworkKind};
use vman_model::{DiskFormat, Incarnation, VmId, VmUuid};

use super::layout::Layout;
use super::{QemuHost, QemuSettings};
use crate::config::AccelChoice;
use crate::host::jail::ToolJail;
use crate::host::qmp::Deadlines;

/// Longer than anything here takes, shorter than a test runner's patience.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The binary, or `None` after saying so.
pub(crate) fn qemu_binary() -> Option<&'static str> {
    let binary = "qemu-system-x86_64";
    let found = Command::new(binary)
        .arg("-version")
        .stdout(Stdio::null())
        .status();
    if found.is_ok_and(|status| status.success()) {
        return Some(binary);
    }
    eprintln!("SKIPPED: there is no {binary} on this host");
    None
}

/// A QEMU with a monitor on `listener` and nothing else.
pub(crate) fn bare(listener: &UnixListener) -> Option<Child> {
    let binary = qemu_binary()?;
    let inherited = fcntl_dupfd_cloexec(listener, 100).expect("a descriptor");
    fcntl_setfd(&inherited, FdFlags::empty()).expect("inheritable");
    let chardev = format!(
        "socket,id=qmp0,fd={},server=on,wait=off",
        inherited.as_raw_fd()
    );
    let mut command = Command::new(binary);
    command.args(["-nodefaults", "-machine", "none", "-S", "-display", "none"]);
    command.args(["-chardev", &chardev, "-mon", "chardev=qmp0,mode=control"]);
    Some(command.stdin(Stdio::null()).spawn().expect("qemu starts"))
}

/// A host in a folder of its own, whose path is longer than a socket's may be.
pub(crate) struct Bench {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) host: QemuHost,
    uuids: Mutex<Vec<VmUuid>>,
}

/// A QEMU outlives everybody by design, also a test that failed.
impl Drop for Bench {
    fn drop(&mut self) {
        let uuids = self.uuids.lock().expect("no panic while held");
        for found in super::adopt::find_all().expect("a list") {
            if uuids.contains(&found.uuid) {
                let pid = super::process::as_pid(found.identity.pid).expect("a pid");
                let pidfd = pidfd_open(pid, PidfdFlags::empty());
                // It may be gone by now.
                let _ = pidfd.and_then(|pidfd| pidfd_send_signal(pidfd, Signal::KILL));
            }
        }
    }
}

impl Bench {
    pub(crate) fn with_binary(binary: impl Into<PathBuf>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let host = Self::host_in(folder.path(), binary.into());
        Self {
            folder,
            host,
            uuids: Mutex::default(),
        }
    }

    /// `None` if there is no QEMU, which has been said then.
    pub(crate) fn real() -> Option<Self> {
        qemu_binary().map(Self::with_binary)
    }

    /// Another daemon over the same folders.
    pub(crate) fn next_daemon(&self) -> QemuHost {
        Self::host_in(self.folder.path(), "qemu-system-x86_64".into())
    }

    fn host_in(folder: &Path, binary: PathBuf) -> QemuHost {
        let layout = Layout {
            runtime: folder.join("runtime-long".repeat(10)),
            storage: folder.join("storage, with=\"odd\" bytes"),
        };
        let second = Duration::from_secs(1);
        let deadlines = Deadlines {
            connect: second,
            greeting: second * 20,
            command: second * 2,
        };
        let jail = crate::config::JailConfig::default();
        let qemu_img = Arc::new(ToolJail::new(jail.mode, "qemu-img".into()));
        let accel = AccelChoice::Tcg;
        QemuHost::new(QemuSettings {
            taps: Arc::default(),
            binary,
            qemu_img,
            accel,
            layout,
            deadlines,
            jail,
        })
    }

    /// A small machine, booting from `sector` if there is one.
    pub(crate) fn plan(&self, vm: &str, sector: Option<&[u8]>) -> LaunchPlan {
        let disks = sector.map(|sector| {
            let path = self.folder.path().join(format!("{vm}, boot=\"disk\".raw"));
            let mut disk = sector.to_vec();
            disk.resize(510, 0);
            disk.extend_from_slice(&[0x55, 0xaa]);
            disk.resize(1024 * 1024, 0);
            std::fs::write(&path, disk).expect("a disk");
            let (node, serial) = ("root".to_owned(), "root".to_owned());
            DiskPlan {
                node,
                device: "dev-root".to_owned(),
                options: vman_model::DiskOptions::default(),
                path,
                format: DiskFormat::Raw,
                slot: 0,
                serial,
            }
        });
        let mut uuid = [0; 16];
        getrandom::fill(&mut uuid).expect("random bytes");
        let uuid = VmUuid::from_random(uuid);
        self.uuids.lock().expect("no panic while held").push(uuid);
        LaunchPlan {
            vm: VmId::parse(vm).expect("an id"),
            uuid,
            incarnation: Incarnation(3),
            cpu_count: 1,
            ram_mib: 32,
            resources: vman_model::vm::Resources::default(),
            firmware: Firmware::Bios,
            boot: None,
            disks: disks.into_iter().collect(),
            nics: vec![NicPlan {
                link: LinkState::Up,
                kind: NetworkKind::User,
                mac: [0x52, 0x54, 0, 0, 0, 1],
                slot: 1,
                tap: None,
            }],
            confinement: Confinement::default(),
        }
    }
}

/// The news of one machine, in order.
pub(crate) struct Told {
    heard: mpsc::UnboundedReceiver<MachineNews>,
}

impl Told {
    pub(crate) fn new() -> (NewsSink, Self) {
        let (told, heard) = mpsc::unbounded_channel();
        let sink = NewsSink::new(move |news| {
            // A test that has heard enough has gone.
            let _ = told.send(news);
        });
        (sink, Self { heard })
    }

    pub(crate) async fn next(&mut self) -> MachineNews {
        timeout(PATIENCE, self.heard.recv())
            .await
            .expect("news in time")
            .expect("news")
    }

    /// Skips news until one fits.
    pub(crate) async fn until(&mut self, fits: impl Fn(&MachineNews) -> bool) -> MachineNews {
        loop {
            let news = self.next().await;
            if fits(&news) {
                return news;
            }
            assert!(!matches!(news, MachineNews::Exited { .. }), "{news:?}");
        }
    }
}

/// Ends a machine however a test ends, for a QEMU outlives everybody by design.
pub(crate) struct Guard(pub(crate) Arc<dyn Machine>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.kill();
    }
}
