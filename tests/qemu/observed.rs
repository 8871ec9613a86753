//! The observer on the real host: real QEMU, real files.

use crate::support::{
    can_run,
    daemon::{Daemon, PATIENCE},
    host,
    qmp::Monitor,
    wait_for,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    fs::{self, File, FileTimes},
    path::Path,
    time::{Duration, SystemTime},
};

/// Runs a check and answers its findings of one class.
pub(crate) fn found(daemon: &Daemon, class: &str) -> Vec<Value> {
    let status = daemon.post("/observer/check", &Value::Null).expect(200);
    let issues = status["last_issues"].as_array().unwrap().clone();
    assert_eq!(status["last_issues_count"], issues.len());
    issues
        .into_iter()
        .filter(|issue| issue["issue_type"] == class)
        .collect()
}

pub(crate) fn only(daemon: &Daemon, class: &str) -> Value {
    let found = found(daemon, class);
    assert_eq!(found.len(), 1, "{class}: {found:?}");
    found[0].clone()
}

pub(crate) fn make_old(path: &Path) {
    let old = SystemTime::now() - Duration::from_hours(24);
    let times = FileTimes::new().set_modified(old).set_accessed(old);
    File::open(path).unwrap().set_times(times).unwrap();
}

/// A VM with a root disk that was started once.
fn vm_with_disk(daemon: &Daemon) {
    let template = json!({"name": "disky", "cpu_count": 1, "ram_mib": 32, "disk_gib": 1});
    daemon.post("/templates", &template).expect(201);
    let vm = json!({"template_name": "disky", "name": "a"});
    daemon.post("/vms", &vm).expect(201);
    assert_eq!(daemon.act("a", "start")["status"], "succeeded");
}

#[test]
fn files_that_are_gone_short_foreign_or_orphaned_are_told_and_the_orphan_is_put_away() {
    let name = "files_that_are_gone_short_foreign_or_orphaned_are_told_and_the_orphan_is_put_away";
    if !can_run(name) {
        return;
    }
    let daemon = Daemon::start();
    vm_with_disk(&daemon);
    daemon.act("a", "stop?force=true");
    let image = daemon.folder().join("image");
    fs::write(&image, vec![7; 4096]).unwrap();
    daemon.put_image("blob", "disk", &image);
    let status = daemon.post("/observer/check", &Value::Null).expect(200);
    assert_eq!(status["last_issues"], json!([]), "all is well at first");

    let storage = daemon.storage();
    let disk = fs::read_dir(storage.join("disks")).unwrap().next();
    fs::remove_file(disk.unwrap().unwrap().path()).unwrap();
    assert_eq!(only(&daemon, "disk_file_missing")["action"], "reported");

    let file = File::options()
        .write(true)
        .open(storage.join("images/blob"));
    file.unwrap().set_len(100).unwrap();
    assert_eq!(only(&daemon, "image_file_short")["resource_id"], "blob");
    fs::remove_file(storage.join("images/blob")).unwrap();
    assert_eq!(only(&daemon, "image_file_missing")["resource_id"], "blob");

    fs::write(storage.join("disks/read me"), b"a person's").unwrap();
    assert_eq!(only(&daemon, "file_foreign")["action"], "reported");

    let orphan = storage.join("disks/orphan.raw");
    fs::write(&orphan, b"precious").unwrap();
    assert_eq!(only(&daemon, "file_without_record")["action"], "waiting");
    make_old(&orphan);
    assert_eq!(only(&daemon, "file_without_record")["action"], "put_away");
    assert!(!orphan.exists());
    let mut trash = fs::read_dir(storage.join("trash")).unwrap();
    let kept = fs::read(trash.next().unwrap().unwrap().path()).unwrap();
    assert_eq!(kept, b"precious");
    assert_eq!(found(&daemon, "file_without_record"), Vec::<Value>::new());
    assert!(storage.join("disks/read me").exists());

    let events = daemon.get("/events");
    let told = |kind: &str, class: &str| {
        let events = events.as_array().unwrap().iter();
        let of = events.filter(|event| event["kind"] == kind && event["cause"]["input"] == class);
        of.count()
    };
    assert_eq!(told("drift.found", "disk_file_missing"), 1, "{events}");
    assert_eq!(told("drift.found", "image_file_short"), 1, "{events}");
    assert_eq!(told("drift.gone", "image_file_short"), 1, "{events}");
    // That it waits, and that it was put away.
    assert_eq!(told("drift.found", "file_without_record"), 2, "{events}");
}

#[test]
fn a_qemu_that_does_not_answer_is_told_by_the_observer_and_lives_on() {
    let name = "a_qemu_that_does_not_answer_is_told_by_the_observer_and_lives_on";
    if !can_run(name) {
        return;
    }
    let daemon = Daemon::start_with(&[("VMAN_OBSERVER_INTERVAL", "0.5")]);
    daemon.tiny_vms(&["deaf", "fine"]);
    daemon.act("deaf", "start");
    daemon.act("fine", "start");
    let pid = daemon.pid_of("deaf");
    host::signal(pid, Signal::STOP);
    // Nobody has asked the VM anything: the observer's own question finds it.
    wait_for("it to be found deaf", PATIENCE, || {
        let issues = daemon.get("/observer/status")["last_issues"].to_string();
        issues.contains("qemu_deaf").then_some(())
    });
    assert!(host::lives(pid));
    assert_eq!(daemon.vm("fine")["state"], "running");
    host::signal(pid, Signal::CONT);
    wait_for("it to be heard again", PATIENCE, || {
        let issues = daemon.get("/observer/status")["last_issues"].to_string();
        (!issues.contains("qemu_deaf")).then_some(())
    });
    assert_eq!(daemon.pid_of("deaf"), pid);
}

#[test]
fn a_qemu_without_a_record_is_told_never_ended_and_nothing_is_put_away_while_it_lives() {
    let name = "a_qemu_without_a_record_is_told_never_ended_and_nothing_is_put_away_while_it_lives";
    if !can_run(name) {
        return;
    }
    let mut daemon = Daemon::start();
    vm_with_disk(&daemon);
    let pid = daemon.pid_of("a");
    daemon.kill();
    // The operator gives up the store by hand, with all that tells of it.
    for file in ["vman.redb", "vman.redb.created"] {
        fs::remove_file(daemon.storage().join(file)).unwrap();
    }
    // It may not have come to the first of them.
    let manifests = daemon.storage().join("manifests");
    if manifests.exists() {
        fs::remove_dir_all(manifests).unwrap();
    }
    let disk = fs::read_dir(daemon.storage().join("disks")).unwrap().next();
    let disk = disk.unwrap().unwrap().path();
    make_old(&disk);
    make_old(&daemon.storage().join("vms/a"));
    daemon.serve();
    assert_eq!(only(&daemon, "qemu_without_record")["action"], "reported");
    for issue in found(&daemon, "file_without_record") {
        assert_eq!(issue["action"], "reported", "{issue}");
    }
    assert!(host::lives(pid) && disk.exists());
}

#[test]
fn a_qemu_of_another_daemon_is_none_of_ours() {
    if !can_run("a_qemu_of_another_daemon_is_none_of_ours") {
        return;
    }
    let other = Daemon::start();
    other.tiny_vms(&["a"]);
    other.act("a", "start");
    let daemon = Daemon::start();
    let status = daemon.post("/observer/check", &Value::Null).expect(200);
    assert_eq!(status["last_issues"], json!([]));
    assert!(host::lives(other.pid_of("a")));
}

#[test]
fn a_disk_that_a_guest_let_go_of_by_itself_is_told_until_it_is_detached() {
    let name = "a_disk_that_a_guest_let_go_of_by_itself_is_told_until_it_is_detached";
    if !can_run(name) {
        return;
    }
    let daemon = Daemon::start();
    daemon.guest_template("vman.counter_ms=1000");
    let vm = json!({"template_name": "guest", "name": "a"});
    daemon.post("/vms", &vm).expect(201);
    daemon.act("a", "start");
    daemon.wait_console("a", "VMAN-GUEST userland up");
    let disk = json!({"name": "data", "size_mib": 16});
    daemon.post("/disks", &disk).expect(201);
    let to = json!({"vm_id": "a"});
    daemon.post("/disks/data/attach", &to).expect(200);
    daemon.wait_console("a", "disk vda added");
    assert_eq!(found(&daemon, "disk_let_go"), Vec::<Value>::new());

    // An operator takes it out by hand, at the monitor that is kept for people.
    let mut monitor = Monitor::open(&daemon.monitor("a"));
    let devices = monitor.run("qom-list", &json!({"path": "/machine/peripheral"}));
    let devices = devices.as_array().unwrap().iter();
    let mut names = devices.filter_map(|device| device["name"].as_str());
    let device = names.find(|name| name.contains("data")).unwrap().to_owned();
    monitor.run("device_del", &json!({"id": device}));
    daemon.wait_console("a", "disk vda removed");
    wait_for("it to be told", PATIENCE, || {
        (!found(&daemon, "disk_let_go").is_empty()).then_some(())
    });
    let told = only(&daemon, "disk_let_go");
    assert_eq!(
        (&told["resource_id"], &told["action"]),
        (&json!("data"), &json!("reported"))
    );
    daemon.post("/disks/data/detach", &json!({})).expect(200);
    assert_eq!(found(&daemon, "disk_let_go"), Vec::<Value>::new());
}
