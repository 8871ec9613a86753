//! Disks on real QEMU and in real guests.

use crate::support::{
    can_run,
    daemon::{Daemon, PATIENCE},
    host,
    qmp::Monitor,
    wait_for,
};
use serde_json::{Value, json};
use std::{
    io::Write,
    os::unix::{
        fs::{MetadataExt, chown},
        net::UnixStream,
    },
    time::{Duration, Instant},
};

/// Runs a command in the guest's shell and waits for what it prints. What is typed is echoed, so
/// the mark is put together in the guest.
fn run(daemon: &Daemon, vm: &str, command: &str, mark: &str) -> String {
    let socket = daemon.folder().join(format!("run/vms/{vm}/console.sock"));
    // Held until the answer is there: QEMU forgets what a client that has gone had typed.
    let mut console = UnixStream::connect(&socket).unwrap();
    let (head, tail) = mark.split_at(1);
    let line = format!("{command}; echo {head}''{tail}\n");
    console.write_all(line.as_bytes()).unwrap();
    daemon.wait_console(vm, mark)
}

fn guests(daemon: &Daemon, names: &[&str]) {
    daemon.guest_template("vman.counter_ms=3600000");
    for name in names {
        let body = json!({"template_name": "guest", "name": name});
        daemon.post("/vms", &body).expect(201);
        assert_eq!(daemon.act(name, "start")["status"], "succeeded");
    }
    for name in names {
        daemon.wait_console(name, "VMAN-GUEST userland up");
    }
}

fn make_disk(daemon: &Daemon, name: &str) -> Value {
    daemon
        .post("/disks", &json!({"name": name, "size_mib": 64}))
        .expect(201)
}

fn attach(daemon: &Daemon, disk: &str, vm: &str) -> Value {
    daemon
        .post(&format!("/disks/{disk}/attach"), &json!({"vm_id": vm}))
        .expect(200)
}

fn detach(daemon: &Daemon, disk: &str) -> Value {
    daemon
        .post(&format!("/disks/{disk}/detach"), &Value::Null)
        .expect(200)
}

#[test]
fn what_one_guest_writes_to_a_disk_another_reads_from_it() {
    if !can_run("what_one_guest_writes_to_a_disk_another_reads_from_it") {
        return;
    }
    let daemon = Daemon::start();
    guests(&daemon, &["one", "two"]);
    let disk = make_disk(&daemon, "data");
    assert_eq!(
        (&disk["state"], &disk["vm_id"]),
        (&json!("available"), &Value::Null)
    );

    let done = attach(&daemon, "data", "one");
    assert_eq!(done["status"], "attached");
    assert_eq!(done["disk"]["state"], "attached");
    let device = done["disk"]["mount_point"].as_str().unwrap().to_owned();
    let name = device.strip_prefix("/dev/").unwrap();
    daemon.wait_console(
        "one",
        &format!("VMAN-GUEST disk {name} added size_mib=64 serial=data"),
    );
    assert_eq!(daemon.vm("one")["disks"][0]["mount_point"], device.as_str());
    let write = format!("echo PATTERN-4711 | dd of={device} bs=512 conv=sync,fsync 2>/dev/null");
    run(&daemon, "one", &write, "written-1");

    let done = detach(&daemon, "data");
    assert_eq!(done["status"], "detached");
    assert_eq!(done["disk"]["vm_id"], Value::Null);
    daemon.wait_console("one", &format!("VMAN-GUEST disk {name} removed"));

    let done = attach(&daemon, "data", "two");
    let device = done["disk"]["mount_point"].as_str().unwrap().to_owned();
    daemon.wait_console("two", "VMAN-GUEST disk vda added");
    let read = format!("head -c 12 {device} | tr P X");
    let console = run(&daemon, "two", &read, "read-1");
    assert!(console.contains("XATTERN-4711"), "{console}");
}

/// How much a QEMU has of what a disk that comes and goes could leave behind.
fn holdings(daemon: &Daemon, vm: &str) -> [usize; 4] {
    let pid = daemon.pid_of(vm);
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut monitor = Monitor::open(&daemon.monitor(vm));
    let nodes = monitor.run("query-named-block-nodes", &json!({"flat": true}));
    let devices = monitor.run("qom-list", &json!({"path": "/machine/peripheral"}));
    let slots = monitor.run("query-pci", &json!({}));
    let count = |list: &Value| list.as_array().unwrap().len();
    let functions = slots.to_string().matches("qdev_id").count();
    [
        descriptors.count(),
        count(&nodes),
        count(&devices),
        functions,
    ]
}

#[test]
fn rounds_of_attach_and_detach_leak_nothing_and_a_ninth_disk_is_refused_with_the_slots() {
    let test =
        "rounds_of_attach_and_detach_leak_nothing_and_a_ninth_disk_is_refused_with_the_slots";
    if !can_run(test) {
        return;
    }
    let daemon = Daemon::start();
    guests(&daemon, &["one"]);
    make_disk(&daemon, "d0");
    // The first round may leave what QEMU keeps once.
    attach(&daemon, "d0", "one");
    detach(&daemon, "d0");
    let before = holdings(&daemon, "one");
    for round in 0..50 {
        let done = attach(&daemon, "d0", "one");
        assert_eq!(done["disk"]["mount_point"], "/dev/vda", "round {round}");
        assert_eq!(done["disk"]["slot"], 4, "round {round}");
        if round == 0 {
            let with = holdings(&daemon, "one");
            let more = before.iter().zip(&with).filter(|(less, more)| less < more);
            assert_eq!(more.count(), with.len(), "{before:?}, then {with:?}");
        }
        detach(&daemon, "d0");
    }
    wait_for("QEMU to hold what it held before", PATIENCE, || {
        (holdings(&daemon, "one") == before).then_some(())
    });
    for n in 1..9 {
        make_disk(&daemon, &format!("d{n}"));
    }
    for n in 0..8 {
        attach(&daemon, &format!("d{n}"), "one");
    }
    for letter in 'a'..='h' {
        daemon.wait_console("one", &format!("VMAN-GUEST disk vd{letter} added"));
    }
    let refused = daemon
        .post("/disks/d8/attach", &json!({"vm_id": "one"}))
        .expect(409);
    assert_eq!(refused["code"], "no_free_disk_slot");
    assert!(
        refused["detail"].as_str().unwrap().contains("d7 in 11"),
        "{refused}"
    );
    let refused = daemon.delete("/disks/d3").expect(409);
    assert_eq!(
        (&refused["code"], &refused["vm_id"]),
        (&json!("disk_attached"), &json!("one"))
    );

    // After the next start they are where they were.
    assert_eq!(
        daemon.act("one", "restart?force=true")["status"],
        "succeeded"
    );
    wait_for("the guest to boot again", PATIENCE * 2, || {
        let console = daemon.console("one");
        (console.matches("VMAN-GUEST disk vdh added").count() == 2).then_some(())
    });
    for n in 0..8 {
        let disk = daemon.get(&format!("/disks/d{n}"));
        assert_eq!(disk["slot"], 4 + n, "{disk}");
    }
}

#[test]
fn a_guest_that_stands_still_keeps_its_disk_and_lets_go_of_it_later() {
    if !can_run("a_guest_that_stands_still_keeps_its_disk_and_lets_go_of_it_later") {
        return;
    }
    let daemon = Daemon::start();
    guests(&daemon, &["one"]);
    make_disk(&daemon, "data");
    attach(&daemon, "data", "one");
    daemon.wait_console("one", "VMAN-GUEST disk vda added");
    daemon.act("one", "pause");
    let asked = Instant::now();
    let answer = daemon.post("/disks/data/detach", &Value::Null).expect(202);
    assert!(asked.elapsed() < Duration::from_secs(12));
    let id = answer["id"].as_str().unwrap();
    let operation = daemon.get(&format!("/operations/{id}/wait?timeout_s=20"));
    assert_eq!(operation["status"], "failed", "{operation}");
    assert_eq!(operation["error"]["code"], "guest_holds_disk");
    assert_eq!(daemon.get("/disks/data")["vm_id"], "one");
    daemon.act("one", "resume");
    let done = detach(&daemon, "data");
    assert_eq!(done["status"], "detached");
    assert_eq!(daemon.get("/disks/data")["state"], "available");
    attach(&daemon, "data", "one");
}

#[test]
fn a_machine_without_a_guest_takes_a_disk_and_gives_it_back() {
    if !can_run("a_machine_without_a_guest_takes_a_disk_and_gives_it_back") {
        return;
    }
    let daemon = Daemon::start();
    daemon.tiny_vms(&["a"]);
    daemon.act("a", "start");
    make_disk(&daemon, "data");
    attach(&daemon, "data", "a");
    let answer = daemon.post("/disks/data/detach", &Value::Null);
    if answer.status == 200 {
        assert_eq!(daemon.get("/disks/data")["state"], "available");
        return;
    }
    let operation = answer.expect(202);
    let id = operation["id"].as_str().unwrap();
    let operation = daemon.get(&format!("/operations/{id}/wait?timeout_s=20"));
    assert_eq!(
        operation["error"]["code"], "guest_holds_disk",
        "{operation}"
    );
    daemon.act("a", "stop?force=true");
    assert_eq!(detach(&daemon, "data")["disk"]["state"], "available");
}

#[test]
fn a_stopped_vms_disks_are_configuration_and_a_deleted_vm_gives_them_back() {
    if !can_run("a_stopped_vms_disks_are_configuration_and_a_deleted_vm_gives_them_back") {
        return;
    }
    let daemon = Daemon::start();
    daemon.tiny_vms(&["a", "b"]);
    make_disk(&daemon, "data");
    assert_eq!(
        attach(&daemon, "data", "a")["disk"]["mount_point"],
        "/dev/vda"
    );
    let refused = daemon
        .post("/disks/data/attach", &json!({"vm_id": "b"}))
        .expect(409);
    assert_eq!(
        (&refused["code"], &refused["vm_id"]),
        (&json!("disk_attached"), &json!("a"))
    );
    daemon.act("a", "start");
    let open = || {
        let pid = daemon.pid_of("a");
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let targets = files
            .flatten()
            .filter_map(|fd| std::fs::read_link(fd.path()).ok());
        targets
            .filter(|file| file.ends_with("disks/data.qcow2"))
            .count()
    };
    assert!(open() > 0, "QEMU has it open");
    daemon.delete("/vms/a").expect(204);
    let disk = daemon.get("/disks/data");
    assert_eq!(
        (&disk["state"], &disk["vm_id"]),
        (&json!("available"), &Value::Null)
    );
    daemon.delete("/disks/data").expect(204);
    assert!(!daemon.storage().join("disks/data.qcow2").exists());
}

#[test]
fn a_disk_grows_while_its_guest_runs_and_while_nobody_has_it() {
    if !can_run("a_disk_grows_while_its_guest_runs_and_while_nobody_has_it") {
        return;
    }
    let daemon = Daemon::start();
    guests(&daemon, &["one"]);
    make_disk(&daemon, "data");
    let grow = |size: u64| daemon.post("/disks/data/resize", &json!({"size_mib": size}));
    assert_eq!(grow(96).expect(200)["disk"]["size_mib"], 96);
    attach(&daemon, "data", "one");
    daemon.wait_console("one", "VMAN-GUEST disk vda added size_mib=96");
    assert_eq!(grow(128).expect(200)["disk"]["size_mib"], 128);
    let console = run(
        &daemon,
        "one",
        "echo sectors=$(cat /sys/block/vda/size)",
        "grown-1",
    );
    assert!(console.contains("sectors=262144"), "{console}");
    let refused = grow(64).expect(422);
    assert!(
        refused["detail"].as_str().unwrap().contains("only grow"),
        "{refused}"
    );
    let limited = daemon.call(
        "PATCH",
        "/disks/data",
        &json!({"iops": 500, "bps": 1_000_000}),
    );
    assert_eq!(limited.expect(200)["iops"], 500);
    detach(&daemon, "data");
    assert_eq!(grow(256).expect(200)["disk"]["size_mib"], 256);
}

#[test]
fn disks_are_adopted_with_their_vm_after_a_kill_of_the_daemon() {
    if !can_run("disks_are_adopted_with_their_vm_after_a_kill_of_the_daemon") {
        return;
    }
    let mut daemon = Daemon::start();
    guests(&daemon, &["one"]);
    make_disk(&daemon, "data");
    attach(&daemon, "data", "one");
    daemon.wait_console("one", "VMAN-GUEST disk vda added");
    let pid = daemon.pid_of("one");
    daemon.kill();
    assert!(host::lives(pid));
    daemon.serve();
    let disk = daemon.get("/disks/data");
    assert_eq!(
        (&disk["vm_id"], &disk["mount_point"]),
        (&json!("one"), &json!("/dev/vda"))
    );
    assert_eq!(detach(&daemon, "data")["status"], "detached");
    daemon.wait_console("one", "VMAN-GUEST disk vda removed");
}

#[test]
fn a_disk_that_was_opened_for_an_attachment_nobody_recorded_is_closed_when_its_vm_is_found_again() {
    if !can_run(
        "a_disk_that_was_opened_for_an_attachment_nobody_recorded_is_closed_when_its_vm_is_found_again",
    ) {
        return;
    }
    let mut daemon = Daemon::start();
    daemon.tiny_vms(&["a", "b"]);
    for vm in ["a", "b"] {
        assert_eq!(daemon.act(vm, "start")["status"], "succeeded");
    }
    make_disk(&daemon, "data");
    // As a daemon leaves it that dies while the attachment is on its way to the disk.
    let pid = daemon.pid_of("a");
    let file = daemon.storage().join("disks/data.qcow2");
    let user = std::fs::metadata(format!("/proc/{pid}")).unwrap().uid();
    chown(&file, Some(user), None).unwrap();
    let opened = json!({"driver": "qcow2", "node-name": "disk-data",
        "file": {"driver": "file", "filename": file}});
    let mut monitor = Monitor::open(&daemon.monitor("a"));
    monitor.run("blockdev-add", &opened);
    drop(monitor);
    daemon.kill();
    assert!(host::lives(pid));
    daemon.serve();
    assert_eq!(daemon.get("/disks/data")["vm_id"], Value::Null);
    wait_for("the file to be its own user's again", PATIENCE, || {
        let own = std::fs::metadata(&file).unwrap().uid();
        (own != user).then_some(())
    });
    assert_eq!(attach(&daemon, "data", "b")["status"], "attached");
}

#[test]
fn a_disk_whose_file_is_gone_is_told_refused_and_back_with_its_file() {
    if !can_run("a_disk_whose_file_is_gone_is_told_refused_and_back_with_its_file") {
        return;
    }
    // A file that is younger may only not have been seen yet.
    let mut daemon = Daemon::start_with(&[("VMAN_OBSERVER_GRACE", "1")]);
    daemon.tiny_vms(&["a"]);
    make_disk(&daemon, "data");
    daemon.kill();
    let file = daemon.storage().join("disks/data.qcow2");
    let elsewhere = daemon.folder().join("elsewhere");
    std::fs::rename(&file, &elsewhere).unwrap();
    daemon.serve();
    wait_for("the loss to be seen", PATIENCE, || {
        let listed = &daemon.get("/disks")[0];
        (listed["state"] == "error" && listed["detail"].is_string()).then_some(())
    });
    wait_for("the loss to be told", PATIENCE, || {
        let told = daemon.get("/observer/status")["last_issues"].to_string();
        (told.contains("disk_file_missing") && told.contains("data")).then_some(())
    });
    let to = json!({"vm_id": "a"});
    let refused = daemon.post("/disks/data/attach", &to).expect(409);
    assert_eq!(refused["code"], "disk_file_missing", "{refused}");
    assert!(!file.exists(), "no empty file takes its place");
    std::fs::rename(&elsewhere, &file).unwrap();
    assert_eq!(daemon.get("/disks/data")["state"], "available");
    attach(&daemon, "data", "a");
}
