//! The daemon dies at every named step of each disk operation, and is started again: files, records
//! and QEMU agree. Needs the feature `failpoints`.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

use serde_json::{Value, json};
use std::{collections::BTreeSet, fs};
use support::{
    can_run,
    daemon::{Daemon, PATIENCE},
    wait_for,
};
use vman_actors::failpoint::STEPS;

fn base() -> Option<Daemon> {
    can_run("disk_steps").then(|| {
        let daemon = Daemon::start();
        daemon.guest_template("vman.counter_ms=3600000");
        let body = json!({"template_name": "guest", "name": "vm"});
        daemon.post("/vms", &body).expect(201);
        daemon.act("vm", "start");
        daemon.wait_console("vm", "VMAN-GUEST userland up");
        daemon
    })
}

/// A daemon that dies at `step` when it comes to it.
fn armed(daemon: &mut Daemon, step: &str) {
    daemon.kill();
    daemon.set("FAILPOINT", step);
    daemon.serve();
    daemon.set("FAILPOINT", "");
}

/// Asks, and expects no answer; then a daemon without the step.
fn dies(daemon: &mut Daemon, method: &str, target: &str, body: &Value) {
    let answer = daemon.try_call(method, target, body);
    assert!(answer.is_err(), "it did not die: {answer:?}");
    daemon.ended();
    daemon.serve();
}

fn disk_files(daemon: &Daemon) -> BTreeSet<String> {
    let files = fs::read_dir(daemon.storage().join("disks")).unwrap();
    files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// The disks' files that the VM's QEMU has open.
fn open_files(daemon: &Daemon) -> BTreeSet<String> {
    let pid = daemon.pid_of("vm");
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = open
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok());
    let disks = daemon.storage().join("disks");
    targets
        .filter(|file| file.starts_with(&disks))
        .map(|file| file.file_name().unwrap().to_str().unwrap().to_owned())
        .collect()
}

/// Records, files and QEMU say the same.
fn agree(daemon: &Daemon, step: &str) {
    wait_for(&format!("{step}: all operations to end"), PATIENCE, || {
        let open = daemon.get("/operations?status=running");
        open.as_array().unwrap().is_empty().then_some(())
    });
    let disks = daemon.get("/disks");
    let disks = disks.as_array().unwrap();
    let file = |disk: &Value| format!("{}.qcow2", disk["id"].as_str().unwrap());
    let all: BTreeSet<_> = disks.iter().map(file).collect();
    assert_eq!(disk_files(daemon), all, "{step}: files and records");
    let attached = disks.iter().filter(|disk| disk["vm_id"] == "vm");
    let attached: BTreeSet<_> = attached.map(file).collect();
    wait_for(
        &format!("{step}: QEMU to have {attached:?} open"),
        PATIENCE,
        || (open_files(daemon) == attached).then_some(()),
    );
    // What a daemon is at is there for a moment; what nobody is at stays.
    let tmp = daemon.storage().join("tmp");
    wait_for(&format!("{step}: no half-made file"), PATIENCE, || {
        (fs::read_dir(&tmp).unwrap().count() == 0).then_some(())
    });
    let vm = daemon.vm("vm");
    let listed = vm["disks"].as_array().unwrap().len();
    assert_eq!(
        (listed, &vm["state"]),
        (attached.len(), &json!("running")),
        "{step}"
    );
}

fn steps_of(operation: &str) -> impl Iterator<Item = &'static str> {
    let prefix = format!("{operation}.");
    STEPS
        .iter()
        .copied()
        .filter(move |step| step.starts_with(&prefix))
}

/// Each body with each step of an operation.
fn each_with<'a>(
    bodies: [&'a Value; 2],
    operation: &'static str,
) -> impl Iterator<Item = (&'a Value, &'static str)> {
    let steps = move |body| steps_of(operation).map(move |step| (body, step));
    bodies.into_iter().flat_map(steps)
}

fn make(daemon: &Daemon, name: &str) {
    daemon
        .post("/disks", &json!({"name": name, "size_mib": 16}))
        .expect(201);
}

#[test]
fn a_daemon_that_dies_while_it_makes_or_deletes_a_disk_leaves_all_or_nothing() {
    let Some(mut daemon) = base() else { return };
    let file = daemon.folder().join("image");
    fs::write(&file, vec![7; 4 << 20]).unwrap();
    daemon.put_image("image", "disk", &file);
    let plain = json!({"name": "made", "size_mib": 16});
    let clone = json!({"name": "made", "size_mib": 16, "image": "image"});
    for (body, step) in each_with([&plain, &clone], "create") {
        armed(&mut daemon, step);
        dies(&mut daemon, "POST", "/disks", body);
        agree(&daemon, step);
        let there = daemon.get("/disks").as_array().unwrap().len();
        assert_eq!(there, usize::from(step == "create.committed"), "{step}");
        if there == 1 {
            daemon.delete("/disks/made").expect(204);
        }
    }
    for (body, step) in each_with([&plain, &clone], "delete") {
        let mut body = body.clone();
        body["name"] = "gone".into();
        daemon.post("/disks", &body).expect(201);
        armed(&mut daemon, step);
        dies(&mut daemon, "DELETE", "/disks/gone", &Value::Null);
        agree(&daemon, step);
        assert_eq!(daemon.get("/disks"), json!([]), "{step}");
    }
}

#[test]
fn a_daemon_that_dies_while_it_attaches_or_detaches_goes_through_with_it() {
    let Some(mut daemon) = base() else { return };
    make(&daemon, "data");
    let to = json!({"vm_id": "vm"});
    for step in steps_of("attach") {
        armed(&mut daemon, step);
        dies(&mut daemon, "POST", "/disks/data/attach", &to);
        agree(&daemon, step);
        assert_eq!(daemon.get("/disks/data")["state"], "attached", "{step}");
        daemon.post("/disks/data/detach", &Value::Null).expect(200);
        agree(&daemon, step);
    }
    for step in steps_of("detach") {
        let seen = daemon.console("vm").matches("disk vda added").count();
        daemon.post("/disks/data/attach", &to).expect(200);
        wait_for("the guest to see the disk", PATIENCE, || {
            (daemon.console("vm").matches("disk vda added").count() > seen).then_some(())
        });
        armed(&mut daemon, step);
        dies(&mut daemon, "POST", "/disks/data/detach", &Value::Null);
        agree(&daemon, step);
        assert_eq!(daemon.get("/disks/data")["state"], "available", "{step}");
    }
}

#[test]
fn a_daemon_that_dies_while_a_disk_grows_leaves_it_with_the_size_it_tells() {
    let Some(mut daemon) = base() else { return };
    make(&daemon, "data");
    let mut size = 16;
    for attached in [false, true] {
        if attached {
            daemon
                .post("/disks/data/attach", &json!({"vm_id": "vm"}))
                .expect(200);
            daemon.wait_console("vm", "disk vda added");
        }
        for step in steps_of("resize") {
            size += 16;
            armed(&mut daemon, step);
            let body = json!({"size_mib": size});
            dies(&mut daemon, "POST", "/disks/data/resize", &body);
            agree(&daemon, step);
            assert_eq!(daemon.get("/disks/data")["size_mib"], size, "{step}");
        }
    }
    // The guest sees what the record says, and so does the file at its next use.
    daemon.act("vm", "restart?force=true");
    let added = format!("disk vda added size_mib={size} serial=data");
    daemon.wait_console("vm", &added);
}
