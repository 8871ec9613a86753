//! A storage path without space: reads go on, guests are found, nothing is lost.

use crate::{
    observed::{found, only},
    support::{
        can_run,
        daemon::{Daemon, PATIENCE},
        host, skip, wait_for,
    },
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{fs, io::Write, path::PathBuf, process::Command};

/// A small file system in the place of the storage path, while it lasts.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=8M,mode=700", "tmpfs"])
            .arg(&at)
            .output()
            .is_ok_and(|output| output.status.success());
        mounted.then_some(Self(at))
    }

    /// Writes until there is no byte left.
    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("filler")).unwrap();
        for block in [1 << 16, 1 << 12, 1] {
            while file.write_all(&vec![0; block]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

/// The store has its blocks already: it is full when it would have to grow.
fn fill_the_store(daemon: &Daemon) {
    let full = (0..20_000).any(|n| {
        let vm = json!({"template_name": "tiny", "name": format!("vm-{n}")});
        let answer = daemon.post("/vms", &vm);
        assert!([201, 507].contains(&answer.status), "{}", answer.json());
        answer.status == 507
    });
    assert!(full, "a store without space for more says so");
}

/// A daemon with two guests that run, `lives` and `dies`, and no space for anything more.
fn full_with_two_guests() -> Option<(Daemon, SmallDisk)> {
    let mut daemon = Daemon::unstarted(&[]);
    let disk = SmallDisk::mount(daemon.storage())?;
    daemon.serve();
    daemon.tiny_vms(&["lives", "dies"]);
    daemon.act("lives", "start");
    daemon.act("dies", "start");
    disk.fill();
    fill_the_store(&daemon);
    Some((daemon, disk))
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_daemon_that_starts_on_a_full_disk_adopts_answers_reads_and_refuses_changes() {
    let name = "a_daemon_that_starts_on_a_full_disk_adopts_answers_reads_and_refuses_changes";
    if !can_run(name) {
        return;
    }
    let Some((mut daemon, disk)) = full_with_two_guests() else {
        return skip(name, "a tmpfs cannot be mounted here");
    };
    let (lives, dies) = (daemon.pid_of("lives"), daemon.pid_of("dies"));
    let known = daemon.get("/vms").as_array().unwrap().len();
    daemon.kill();

    daemon.serve();
    assert_eq!(daemon.vm("lives")["pid"], lives);
    assert_eq!(daemon.get("/vms").as_array().unwrap().len(), known);
    let refused = daemon.post("/vms", &json!({"template_name": "tiny", "name": "more"}));
    assert_eq!(refused.status, 507, "{}", refused.json());
    let health = daemon.call("GET", "/health", &Value::Null);
    assert_eq!(health.status, 503, "{}", health.json());
    // One that ends now is heard of, although it cannot be written down.
    host::signal(dies, Signal::KILL);
    wait_for("the QEMU to be gone", PATIENCE, || {
        (!host::lives(dies)).then_some(())
    });

    disk.free();
    let vm = daemon.wait_state("dies", "error");
    assert_eq!(vm["pid"], Value::Null, "{vm}");
    assert_eq!(daemon.vm("lives")["pid"], lives);
    assert!(host::lives(lives), "no guest was touched");
    assert_eq!(
        daemon.act("lives", "stop?force=true")["status"],
        "succeeded"
    );
    daemon.kill();
    drop(disk);
}

#[test]
fn a_qemu_whose_end_cannot_be_recorded_is_told_as_gone_until_it_can_be() {
    let name = "a_qemu_whose_end_cannot_be_recorded_is_told_as_gone_until_it_can_be";
    if !can_run(name) {
        return;
    }
    let Some((mut daemon, disk)) = full_with_two_guests() else {
        return skip(name, "a tmpfs cannot be mounted here");
    };
    let (lives, dies) = (daemon.pid_of("lives"), daemon.pid_of("dies"));
    assert_eq!(found(&daemon, "qemu_gone"), Vec::<Value>::new());
    host::signal(dies, Signal::KILL);
    wait_for("the QEMU to be gone", PATIENCE, || {
        (!host::lives(dies)).then_some(())
    });
    // Its end was heard of, but the record cannot follow: it still says that it runs.
    let told = only(&daemon, "qemu_gone");
    assert_eq!(told["resource_id"], "dies");
    assert_eq!(told["action"], "looking_again", "{told}");
    assert!(told["details"].to_string().contains(&dies.to_string()));

    disk.free();
    let vm = daemon.wait_state("dies", "error");
    assert_eq!(vm["pid"], Value::Null, "{vm}");
    assert_eq!(found(&daemon, "qemu_gone"), Vec::<Value>::new());
    assert_eq!(daemon.pid_of("lives"), lives, "no guest was touched");
    daemon.act("lives", "stop?force=true");
    daemon.kill();
    drop(disk);
}
