//! The operations that the crash matrix goes through on real QEMU. Each is asked
//! for by one request, and may be asked for again.

use crate::support::{
    daemon::{Daemon, PATIENCE},
    host,
    http::{Answer, request},
    wait_for,
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fmt, io};

/// One operation.
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    /// What is there before.
    pub(crate) given: fn(&Daemon),
    pub(crate) method: &'static str,
    pub(crate) target: &'static str,
    pub(crate) body: &'static str,
}

const fn post(
    name: &'static str,
    given: fn(&Daemon),
    target: &'static str,
    body: &'static str,
) -> Operation {
    Operation {
        name,
        given,
        method: "POST",
        target,
        body,
    }
}

const fn delete(name: &'static str, given: fn(&Daemon), target: &'static str) -> Operation {
    Operation {
        name,
        given,
        method: "DELETE",
        target,
        body: "",
    }
}

const ATTACH: &str = r#"{"vm_id":"a"}"#;

/// All of them.
pub(crate) const OPERATIONS: &[Operation] = &[
    post(
        "create-vm",
        nothing,
        "/vms",
        r#"{"template_name":"tiny","name":"a","disk_gib":1}"#,
    ),
    post("start", stopped, "/vms/a/actions/start?wait_s=60", ""),
    post("stop-politely", guest, "/vms/a/actions/stop?wait_s=60", ""),
    post(
        "stop-after-deadline",
        running,
        "/vms/a/actions/stop?timeout_s=0.2&wait_s=60",
        "",
    ),
    post(
        "stop-by-force",
        running,
        "/vms/a/actions/stop?force=true&wait_s=60",
        "",
    ),
    post(
        "restart",
        running,
        "/vms/a/actions/restart?force=true&wait_s=60",
        "",
    ),
    post("pause", running, "/vms/a/actions/pause?wait_s=60", ""),
    post("resume", paused, "/vms/a/actions/resume?wait_s=60", ""),
    post("reset", running, "/vms/a/actions/reset?wait_s=60", ""),
    delete("delete-stopped", stopped, "/vms/a"),
    delete("delete-running", running, "/vms/a"),
    post(
        "start-that-fails",
        broken,
        "/vms/a/actions/start?wait_s=60",
        "",
    ),
    post(
        "create-disk",
        nothing,
        "/disks",
        r#"{"name":"new","size_mib":16}"#,
    ),
    post(
        "clone-disk",
        image,
        "/disks",
        r#"{"name":"new","image":"i"}"#,
    ),
    post(
        "attach-to-stopped",
        stopped_and_disk,
        "/disks/d/attach",
        ATTACH,
    ),
    post(
        "attach-to-running",
        running_and_disk,
        "/disks/d/attach",
        ATTACH,
    ),
    post(
        "detach-from-stopped",
        stopped_with_disk,
        "/disks/d/detach",
        "",
    ),
    post(
        "detach-from-running",
        guest_with_disk,
        "/disks/d/detach",
        "",
    ),
    post("resize-free", disk, "/disks/d/resize", r#"{"size_mib":32}"#),
    post(
        "resize-attached",
        running_with_disk,
        "/disks/d/resize",
        r#"{"size_mib":32}"#,
    ),
    delete("delete-disk", disk, "/disks/d"),
    post("attach-nic", running, "/vms/a/nics", "{}"),
    delete("detach-nic", guest_with_nic, "/vms/a/nics/nic1"),
    Operation {
        name: "pull-cable",
        given: running,
        method: "PATCH",
        target: "/vms/a/nics/nic0",
        body: r#"{"link":"down"}"#,
    },
    Operation {
        name: "put-image",
        given: nothing,
        method: "PUT",
        target: "/images/i?kind=disk",
        body: "image",
    },
    delete("delete-image", image, "/images/i"),
    post(
        "create-template",
        nothing,
        "/templates",
        r#"{"name":"other","cpu_count":1,"ram_mib":32}"#,
    ),
    delete("delete-template", template, "/templates/other"),
    post(
        "create-token",
        nothing,
        "/tokens",
        r#"{"name":"t","scope":"read"}"#,
    ),
    delete("revoke-token", token, "/tokens/t"),
];

/// A start that finds the disk made: all it begins is QEMU.
pub(crate) const START_AGAIN: Operation = post(
    "start-again",
    stopped_again,
    "/vms/a/actions/start?wait_s=60",
    "",
);

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Operation {
    /// Asks for it, under a key; an error where no answer came.
    pub(crate) fn ask(&self, daemon: &Daemon, key: &str) -> io::Result<Answer> {
        let key = ("Idempotency-Key", key);
        let kind = if self.method == "PUT" {
            "application/octet-stream"
        } else {
            "application/json"
        };
        let kind = ("Content-Type", kind);
        let bytes = if self.method == "PUT" {
            vec![0; 1 << 20]
        } else {
            self.body.as_bytes().to_vec()
        };
        let headers: &[(&str, &str)] = match (self.method, bytes.is_empty()) {
            ("POST", true) => &[key],
            ("POST", false) => &[key, kind],
            (_, true) => &[],
            (_, false) => &[kind],
        };
        request(&daemon.socket(), self.method, self.target, headers, &bytes)
    }
}

fn nothing(_: &Daemon) {}

fn vm(daemon: &Daemon, more: &Value) {
    let mut body = json!({"template_name": "tiny", "name": "a", "disk_gib": 1});
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    daemon.post("/vms", &body).expect(201);
}

fn stopped(daemon: &Daemon) {
    vm(daemon, &Value::Null);
}

fn running(daemon: &Daemon) {
    stopped(daemon);
    daemon.act("a", "start");
}

fn paused(daemon: &Daemon) {
    running(daemon);
    daemon.act("a", "pause");
}

fn stopped_again(daemon: &Daemon) {
    running(daemon);
    daemon.act("a", "stop?force=true");
}

/// It cannot be started: what is in its disk's file is no disk.
fn broken(daemon: &Daemon) {
    stopped_again(daemon);
    let file = daemon.storage().join("disks/a-root.qcow2");
    std::fs::write(file, b"this is no qcow2 file").unwrap();
}

fn guest(daemon: &Daemon) {
    daemon.guest_template("vman.counter_ms=3600000");
    let body = json!({"template_name": "guest", "name": "a"});
    daemon.post("/vms", &body).expect(201);
    daemon.act("a", "start");
    daemon.wait_console("a", "VMAN-GUEST userland up");
}

fn image(daemon: &Daemon) {
    let file = daemon.folder().join("image.raw");
    std::fs::write(&file, vec![0; 1 << 20]).unwrap();
    daemon.put_image("i", "disk", &file);
}

fn disk(daemon: &Daemon) {
    daemon
        .post("/disks", &json!({"name": "d", "size_mib": 16}))
        .expect(201);
}

fn attach(daemon: &Daemon) {
    disk(daemon);
    daemon
        .post("/disks/d/attach", &json!({"vm_id": "a"}))
        .expect(200);
}

fn stopped_and_disk(daemon: &Daemon) {
    stopped(daemon);
    disk(daemon);
}

fn running_and_disk(daemon: &Daemon) {
    running(daemon);
    disk(daemon);
}

fn stopped_with_disk(daemon: &Daemon) {
    stopped(daemon);
    attach(daemon);
}

fn running_with_disk(daemon: &Daemon) {
    running(daemon);
    attach(daemon);
}

fn guest_with_disk(daemon: &Daemon) {
    guest(daemon);
    attach(daemon);
    daemon.wait_console("a", "disk vda added");
}

fn guest_with_nic(daemon: &Daemon) {
    guest(daemon);
    daemon.post("/vms/a/nics", &json!({})).expect(201);
}

fn template(daemon: &Daemon) {
    let body = json!({"name": "other", "cpu_count": 1, "ram_mib": 32});
    daemon.post("/templates", &body).expect(201);
}

fn token(daemon: &Daemon) {
    daemon
        .post("/tokens", &json!({"name": "t", "scope": "read"}))
        .expect(201);
}

/// What a user would say there is.
pub(crate) fn summary(daemon: &Daemon) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut note = |what: &str, target: &str, fields: &[&str]| {
        for row in daemon.get(target).as_array().unwrap() {
            let told: Vec<_> = fields.iter().map(|field| row[field].to_string()).collect();
            all.insert(format!("{what} {}", told.join(" ")));
        }
    };
    note("vm", "/vms", &["id", "state", "disks"]);
    if daemon.call("GET", "/vms/a", &Value::Null).status == 200 {
        note("nic", "/vms/a/nics", &["id", "link"]);
    }
    note("disk", "/disks", &["id", "size_mib", "vm_id", "state"]);
    note("image", "/images", &["name"]);
    note("template", "/templates", &["name"]);
    note("token", "/tokens", &["name"]);
    all
}

/// A daemon with an untouched VM and what an operation needs.
pub(crate) fn daemon_for(operation: &Operation) -> Daemon {
    let daemon = Daemon::start();
    daemon.tiny_vms(&["keeper"]);
    daemon.act("keeper", "start");
    (operation.given)(&daemon);
    wait_for("the keeper to run", PATIENCE, || {
        host::lives(daemon.pid_of("keeper")).then_some(())
    });
    daemon
}
