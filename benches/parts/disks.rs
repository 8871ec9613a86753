//! Attach, detach and creation beside what they are made of.

use super::{Times, row};
use crate::{
    load::{Connection, Target, request},
    support::{daemon::Daemon, daemon::PATIENCE, qmp::Monitor, wait_for},
};
use serde_json::json;
use std::{
    process::Command,
    time::{Duration, Instant},
};
use vman::host::qemu::cmdline::{disk_device, disk_node};
use vman_actors::ports::DiskPlan;
use vman_model::{DiskFormat, DiskOptions};

const ROUNDS: usize = 30;
const CREATIONS: usize = 30;
const LISTED: usize = 1_000;
const LISTS: usize = 20;

pub(crate) fn measure() {
    hotplug();
    creation();
}

trait Bare {
    fn until_deleted(&mut self, device: &str);
    fn attach(&mut self, disk: &DiskPlan) -> Duration;
    fn detach(&mut self) -> Duration;
}

impl Bare for Monitor {
    fn until_deleted(&mut self, device: &str) {
        loop {
            let event = self.line();
            if event["event"] == "DEVICE_DELETED" && event["data"]["device"] == device {
                return;
            }
        }
    }

    fn attach(&mut self, disk: &DiskPlan) -> Duration {
        let (node, device) = (disk_node(disk).unwrap(), disk_device(disk).unwrap());
        let began = Instant::now();
        self.run("blockdev-add", &node);
        self.run("device_add", &device);
        began.elapsed()
    }

    fn detach(&mut self) -> Duration {
        let began = Instant::now();
        self.run("device_del", &json!({"id": "dev-bare"}));
        self.until_deleted("dev-bare");
        self.run("blockdev-del", &json!({"node-name": "bare"}));
        began.elapsed()
    }
}

/// A client whose connection stays open, as the bare half's does.
struct Client(Connection);

impl Client {
    /// From the request to its answer.
    fn post(&mut self, path: &str, body: &str) -> Duration {
        let mut out = Vec::new();
        request(&mut out, "POST", path, "", body.as_bytes());
        let began = Instant::now();
        let status = self.0.exchange(&out).unwrap();
        let took = began.elapsed();
        let body = String::from_utf8_lossy(self.0.body());
        assert_eq!(status, 200, "{body}");
        took
    }
}

/// Waits until the guest has told so many times that something happened.
fn told(daemon: &Daemon, what: &str, times: usize) {
    wait_for(what, PATIENCE, || {
        (daemon.console("guest").matches(what).count() >= times).then_some(())
    });
}

fn hotplug() {
    // The bare half opens a file that no daemon has handed to its QEMU's user.
    let daemon = Daemon::start_with(&[("VMAN_LOG_LEVEL", "info"), ("VMAN_JAIL", "off")]);
    daemon.guest_template("vman.counter_ms=3600000");
    daemon
        .post("/vms", &json!({"template_name": "guest", "name": "guest"}))
        .expect(201);
    daemon.act("guest", "start");
    daemon.wait_console("guest", "VMAN-GUEST userland up");
    for name in ["data", "bare"] {
        daemon
            .post("/disks", &json!({"name": name, "size_mib": 64}))
            .expect(201);
    }
    // What VMAN says of its own disk, on another port.
    let bare = DiskPlan {
        node: "bare".to_owned(),
        device: "dev-bare".to_owned(),
        path: daemon.storage().join("disks/bare.qcow2"),
        format: DiskFormat::Qcow2,
        slot: 12,
        serial: "bare".to_owned(),
        options: DiskOptions::default(),
    };
    let mut monitor = Monitor::open(&daemon.folder().join("run/vms/guest/rescue.sock"));
    let [mut attach, mut detach, mut bare_attach, mut bare_detach]: [Times; 4] = Default::default();
    let mut client = Client(Connection::open(&Target::Unix(daemon.socket())).unwrap());
    for round in 0..ROUNDS {
        attach.add(client.post("/disks/data/attach", r#"{"vm_id":"guest"}"#));
        told(&daemon, "disk vda added", 2 * round + 1);
        detach.add(client.post("/disks/data/detach", ""));
        told(&daemon, "disk vda removed", 2 * round + 1);
        bare_attach.add(monitor.attach(&bare));
        told(&daemon, "disk vda added", 2 * round + 2);
        bare_detach.add(monitor.detach());
        told(&daemon, "disk vda removed", 2 * round + 2);
    }
    let ratio = attach.at(0.5) / bare_attach.at(0.5);
    row(
        "attach: request to answer / the same two QMP commands",
        &attach,
        Some(&bare_attach),
        &format!("{ratio:.2} times (aim 1.5)"),
    );
    let more = detach.at(0.5) - bare_detach.at(0.5);
    row(
        "detach: request to answer / QMP and the guest",
        &detach,
        Some(&bare_detach),
        &format!("{more:+.1} ms (aim +20)"),
    );
}

fn creation() {
    let daemon = Daemon::start_with(&[("VMAN_LOG_LEVEL", "info")]);
    let [mut made, mut bare, mut lists]: [Times; 3] = Default::default();
    for n in 0..CREATIONS {
        let began = Instant::now();
        let body = json!({"name": format!("d{n}"), "size_mib": 1_024});
        daemon.post("/disks", &body).expect(201);
        made.add(began.elapsed());
        let file = daemon.folder().join(format!("bare-{n}.qcow2"));
        let began = Instant::now();
        let status = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&file)
            .arg("1024M")
            .status()
            .unwrap();
        assert!(status.success());
        bare.add(began.elapsed());
    }
    let ratio = made.at(0.5) / bare.at(0.5);
    row(
        "disk: request to made / qemu-img create",
        &made,
        Some(&bare),
        &format!("{ratio:.2} times (aim 1.5)"),
    );
    for n in CREATIONS..LISTED {
        let body = json!({"name": format!("d{n}"), "size_mib": 1, "format": "raw"});
        daemon.post("/disks", &body).expect(201);
    }
    for _ in 0..LISTS {
        let began = Instant::now();
        let listed = daemon.get("/disks?limit=1000");
        lists.add(began.elapsed());
        assert_eq!(listed.as_array().unwrap().len(), LISTED);
    }
    row("list of 1,000 disks", &lists, None, "no system call a disk");
}
