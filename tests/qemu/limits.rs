//! A daemon that is stopped, or has too little of something.

use crate::support::{
    can_run,
    daemon::{Daemon, PATIENCE},
    host, wait_for,
};
use rustix::process::Signal;
use serde_json::json;
use std::{fs, os::unix::net::UnixStream, process::Command};

#[test]
fn guests_run_on_while_the_daemon_is_stopped() {
    if !can_run("guests_run_on_while_the_daemon_is_stopped") {
        return;
    }
    let daemon = Daemon::start();
    daemon.guest_template("");
    let vm = json!({"template_name": "guest", "name": "a"});
    daemon.post("/vms", &vm).expect(201);
    daemon.act("a", "start");
    let before = wait_for("the guest to count", PATIENCE * 2, || daemon.counter("a"));
    let pid = daemon.pid_of("a");
    host::signal(daemon.pid(), Signal::STOP);
    // Asked of the file: nobody else answers now.
    let log = daemon.storage().join("vms/a/console.log");
    wait_for("the guest to count on", PATIENCE * 2, || {
        let text = String::from_utf8_lossy(&fs::read(&log).ok()?).into_owned();
        let last = text.lines().rev().find_map(|line| {
            let (_, number) = line.split_once("VMAN-GUEST counter ")?;
            number.trim().parse::<u64>().ok()
        });
        (last? > before + 2).then_some(())
    });
    host::signal(daemon.pid(), Signal::CONT);
    assert_eq!(daemon.pid_of("a"), pid);
    assert_eq!(daemon.act("a", "stop?force=true")["status"], "succeeded");
}

/// Limits a daemon that runs, as prlimit(1) takes it.
fn limit_descriptors(daemon: &Daemon, limit: &str) {
    let status = Command::new("prlimit")
        .args(["--pid", &daemon.pid().to_string()])
        .arg(format!("--nofile={limit}"))
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn a_daemon_without_descriptors_keeps_its_guests_and_answers_when_it_has_some_again() {
    let name = "a_daemon_without_descriptors_keeps_its_guests_and_answers_when_it_has_some_again";
    if !can_run(name) {
        return;
    }
    let daemon = Daemon::start();
    daemon.tiny_vms(&["a", "b"]);
    daemon.act("a", "start");
    let pid = daemon.pid_of("a");
    limit_descriptors(&daemon, "64:");
    // The kernel takes them; the daemon cannot.
    let idle: Vec<_> = (0..200)
        .filter_map(|_| UnixStream::connect(daemon.socket()).ok())
        .collect();
    assert!(idle.len() > 64, "{} connections", idle.len());
    let full = || {
        let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
        (open.count() >= 60).then_some(())
    };
    wait_for("its descriptors to be used up", PATIENCE, full);
    assert!(host::lives(daemon.pid()) && host::lives(pid));
    drop(idle);
    wait_for("it to answer again", PATIENCE, || {
        let answer = daemon.try_call("GET", "/live", &json!(null)).ok()?;
        (answer.status == 200).then_some(())
    });
    assert_eq!(daemon.pid_of("a"), pid, "the same QEMU");
    limit_descriptors(&daemon, "1024:");
    assert_eq!(daemon.act("b", "start")["status"], "succeeded");
}

#[test]
fn a_start_beyond_a_memory_limit_fails_cleanly_and_leaves_nothing() {
    let name = "a_start_beyond_a_memory_limit_fails_cleanly_and_leaves_nothing";
    if !can_run(name) {
        return;
    }
    let mut daemon = Daemon::unstarted(&[]);
    daemon.serve_limited(&["--as=3221225472"]);
    daemon.tiny_vms(&["small"]);
    let large = json!({"name": "large", "cpu_count": 1, "ram_mib": 3072});
    daemon.post("/templates", &large).expect(201);
    let vm = json!({"template_name": "large", "name": "large"});
    daemon.post("/vms", &vm).expect(201);
    let operation = daemon.act("large", "start");
    assert_eq!(operation["status"], "failed", "{operation}");
    let vm = daemon.wait_state("large", "error");
    assert_eq!(vm["reason"], "start_failed", "{vm}");
    assert_eq!(vm["pid"], json!(null));
    assert!(daemon.qemus().is_empty());
    assert_eq!(daemon.act("small", "start")["status"], "succeeded");
}
