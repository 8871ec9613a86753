//! A storage path that cannot be written: guests are found, reads go on, changes
//! are refused, and all is written again when it can be.

use crate::support::{
    can_run,
    daemon::{Daemon, PATIENCE},
    host, skip, wait_for,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::process::{Child, Command};

/// Starts the daemon where its storage path is mounted read-only; the QEMUs keep
/// theirs. None where that is not permitted.
fn serve_read_only(daemon: &Daemon) -> Option<Child> {
    let storage = daemon.storage().display().to_string();
    let mount =
        format!("mount --bind '{storage}' '{storage}' && mount -o remount,bind,ro '{storage}'");
    let tried = Command::new("unshare")
        .args(["-m", "sh", "-c", &mount])
        .output();
    if !tried.is_ok_and(|output| output.status.success()) {
        return None;
    }
    let script = format!("{mount} && exec \"$0\" serve");
    let mut command = daemon.command_under("unshare", &["-m", "sh", "-c", &script]);
    Some(command.spawn().unwrap())
}

fn make_writable(daemon: &Daemon, pid: u32) {
    let status = Command::new("nsenter")
        .args([
            "-t",
            &pid.to_string(),
            "-m",
            "mount",
            "-o",
            "remount,bind,rw",
        ])
        .arg(daemon.storage())
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn a_daemon_that_starts_on_a_read_only_storage_adopts_answers_reads_and_writes_again_later() {
    let name =
        "a_daemon_that_starts_on_a_read_only_storage_adopts_answers_reads_and_writes_again_later";
    if !can_run(name) {
        return;
    }
    let mut daemon = Daemon::start();
    daemon.tiny_vms(&["lives", "dies"]);
    daemon.act("lives", "start");
    daemon.act("dies", "start");
    let (lives, dies) = (daemon.pid_of("lives"), daemon.pid_of("dies"));
    daemon.kill();
    let Some(mut child) = serve_read_only(&daemon) else {
        return skip(name, "a private mount namespace is not permitted here");
    };
    daemon.until_ready();
    assert_eq!(daemon.vm("lives")["pid"], lives);
    let new = json!({"template_name": "tiny", "name": "more"});
    let refused = daemon.post("/vms", &new);
    assert_eq!(refused.expect(507)["code"], "storage_read_only");
    let stop = daemon.post("/vms/lives/actions/stop?force=true", &Value::Null);
    assert_eq!(stop.status, 507, "{}", stop.json());
    let health = daemon.call("GET", "/health", &Value::Null);
    assert_eq!(health.status, 503, "{}", health.json());
    // One that ends now is heard of, although it cannot be written down.
    host::signal(dies, Signal::KILL);
    wait_for("the QEMU to be gone", PATIENCE, || {
        (!host::lives(dies)).then_some(())
    });

    make_writable(&daemon, child.id());
    daemon.wait_state("dies", "error");
    daemon.post("/vms", &new).expect(201);
    assert_eq!(daemon.vm("lives")["pid"], lives, "no guest was touched");
    let stopped = daemon.act("lives", "stop?force=true");
    assert_eq!(stopped["status"], "succeeded");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_second_daemon_on_a_read_only_storage_refuses_too() {
    let name = "a_second_daemon_on_a_read_only_storage_refuses_too";
    let daemon = Daemon::start();
    let Some(mut second) = serve_read_only(&daemon) else {
        return skip(name, "a private mount namespace is not permitted here");
    };
    let status = wait_for("the second one to end", PATIENCE, || {
        second.try_wait().unwrap()
    });
    assert_eq!(status.code(), Some(4));
    assert_eq!(daemon.get("/live")["status"], "ok");
}
