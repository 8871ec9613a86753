//! A guest that fills the host's storage.

use crate::{
    explained::story,
    observed::{found, only},
    support::{
        can_run,
        daemon::{Daemon, PATIENCE},
        skip, wait_for,
    },
};
use serde_json::{Value, json};
use std::{
    fs,
    io::{self, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

/// A small file system in memory over the disks folder, gone with this.
pub(crate) struct Small(PathBuf);

impl Small {
    fn over(folder: &Path) -> Option<Self> {
        fs::create_dir_all(folder).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=32m", "vman-test"])
            .arg(folder)
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then(|| Self(folder.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // QEMUs that still have files on it end a moment later.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The whole storage path on a small file system.
pub(crate) fn daemon_on_small_storage(test: &str) -> Option<(Small, Daemon)> {
    if !can_run(test) {
        return None;
    }
    let mut daemon = Daemon::unstarted(&[]);
    let Some(small) = Small::over(&daemon.storage()) else {
        skip(test, "a tmpfs cannot be mounted: it needs root");
        return None;
    };
    daemon.serve();
    Some((small, daemon))
}

/// Boots guests that count.
pub(crate) fn boot(daemon: &Daemon, names: &[&str]) {
    daemon.guest_template("vman.counter_ms=200");
    for name in names {
        let body = json!({"template_name": "guest", "name": name});
        daemon.post("/vms", &body).expect(201);
        daemon.act(name, "start");
    }
    for name in names {
        daemon.wait_console(name, "VMAN-GUEST userland up");
    }
}

/// A storage without space.
pub(crate) struct Full(PathBuf);

impl Full {
    /// Gives each of these guests a disk, and fills the rest by a file.
    pub(crate) fn under(daemon: &Daemon, small: &Small, names: &[&str]) -> Self {
        for name in names {
            let disk = format!("{name}-data");
            let body = json!({"name": disk, "size_mib": 64});
            daemon.post("/disks", &body).expect(201);
            let target = format!("/disks/{disk}/attach");
            daemon.post(&target, &json!({"vm_id": name})).expect(200);
            daemon.wait_console(name, "VMAN-GUEST disk vda added");
        }
        let ballast = small.0.join("ballast");
        fill(&ballast);
        Self(ballast)
    }

    /// Gives space.
    pub(crate) fn free(&self) {
        fs::remove_file(&self.0).unwrap();
    }
}

/// Lets a guest write more to its disk than there is space for. It says "done" when it could.
pub(crate) fn write_much(daemon: &Daemon, name: &str) {
    let socket = format!("run/vms/{name}/console.sock");
    let mut console = UnixStream::connect(daemon.folder().join(socket)).unwrap();
    let write = "dd if=/dev/urandom of=/dev/vda bs=64k count=32 conv=fsync && echo d''one\n";
    console.write_all(write.as_bytes()).unwrap();
    // Who listens and does not read stops the console after some hundred writes, and its guest.
    thread::spawn(move || io::copy(&mut console, &mut io::sink()));
}

#[test]
fn a_guest_on_a_full_storage_stands_still_and_goes_on_when_there_is_space() {
    let test = "a_guest_on_a_full_storage_stands_still_and_goes_on_when_there_is_space";
    let Some((small, daemon)) = daemon_on_small_storage(test) else {
        return;
    };
    boot(&daemon, &["writer", "other"]);
    let pid = daemon.pid_of("writer");
    // Kernel and initrd take their part; the rest is filled by a file and the guest.
    let full = Full::under(&daemon, &small, &["writer"]);
    write_much(&daemon, "writer");
    let vm = daemon.wait_state("writer", "paused");
    assert_eq!(vm["reason"], "io_error");
    // Where a look at its QEMU came first, that is told a moment later.
    wait_for("the disk to be named", PATIENCE, || {
        let vm = daemon.vm("writer");
        let detail = vm["detail"].as_str()?;
        detail.contains("disk writer-data").then_some(())
    });
    let told = only(&daemon, "guest_stands");
    assert_eq!(
        (&told["resource_id"], &told["action"]),
        (&json!("writer"), &json!("reported"))
    );
    assert!(
        told["details"].to_string().contains("disk writer-data"),
        "{told}"
    );
    assert_eq!(daemon.vm("other")["state"], "running");
    let before = daemon.counter("other");
    wait_for("the other guest to count on", PATIENCE, || {
        (daemon.counter("other") > before).then_some(())
    });
    let events = daemon.get("/vms/writer/explain").to_string();
    assert!(events.contains("disk.failed"), "{events}");
    let told = story(&daemon, "writer");
    assert!(
        told.starts_with("paused ← disk writer-data")
            && told.contains("no space is left on the storage"),
        "{told}"
    );
    let metrics = daemon.call("GET", "/metrics", &Value::Null);
    let told = "vman_vm_disk_errors_total{vm=\"writer\",disk=\"writer-data\",reason=\"no_space\"}";
    assert!(String::from_utf8_lossy(&metrics.body).contains(told));

    full.free();
    daemon.wait_state("writer", "running");
    assert_eq!(daemon.pid_of("writer"), pid, "the same QEMU goes on");
    daemon.wait_console("writer", "\ndone");
    assert_eq!(found(&daemon, "guest_stands"), Vec::<Value>::new());
}

/// Leaves about a MiB of space.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    let piece = vec![0xff; 64 << 10];
    while file.write_all(&piece).is_ok() {}
    let written = file.metadata().unwrap().len();
    file.set_len(written - (1 << 20)).unwrap();
}

#[test]
fn a_disk_that_does_not_fit_is_507_and_leaves_nothing() {
    let test = "a_disk_that_does_not_fit_is_507_and_leaves_nothing";
    if !can_run(test) {
        return;
    }
    let mut daemon = Daemon::unstarted(&[]);
    // Only where files are made: the store is not what is tried here.
    let tmp = daemon.storage().join("tmp");
    let Some(small) = Small::over(&tmp) else {
        skip(test, "a tmpfs cannot be mounted: it needs root");
        return;
    };
    daemon.serve();
    let mut ballast = fs::File::create(small.0.join("ballast")).unwrap();
    let piece = vec![0xff; 4 << 10];
    while ballast.write_all(&piece).is_ok() {}
    let answer = daemon.post("/disks", &json!({"name": "big", "size_mib": 64}));
    let problem = answer.expect(507);
    assert_eq!(problem["code"], "storage_full");
    assert_eq!(daemon.get("/disks"), json!([]));
    assert_eq!(
        fs::read_dir(&small.0).unwrap().count(),
        1,
        "only the ballast"
    );
}
