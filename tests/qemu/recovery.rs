//! What a daemon finds and does when it comes back.

use crate::support::{
    can_run,
    daemon::{Daemon, PATIENCE},
    host, skip, wait_for,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{fs, process::Command};

#[test]
fn a_second_daemon_on_the_same_storage_refuses_and_says_who_holds_it() {
    let daemon = Daemon::start();
    let output = daemon
        .command()
        .stderr(std::process::Stdio::piped())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(told.contains(&format!("pid {}", daemon.pid())), "{told}");
    assert_eq!(
        daemon.get("/live")["status"],
        "ok",
        "the first one is unharmed"
    );
}

#[test]
fn sigterm_leaves_guests_running_and_the_next_daemon_adopts_them() {
    if !can_run("sigterm_leaves_guests_running_and_the_next_daemon_adopts_them") {
        return;
    }
    let mut daemon = Daemon::start();
    daemon.tiny_vms(&["a"]);
    daemon.act("a", "start");
    let pid = daemon.pid_of("a");
    assert!(daemon.terminate().success());
    assert!(host::lives(pid));
    daemon.serve();
    assert_eq!(daemon.vm("a")["pid"], pid);
    assert_eq!(daemon.act("a", "stop?force=true")["status"], "succeeded");
    assert!(!host::lives(pid));
}

#[test]
fn a_start_that_was_cut_off_before_its_answer_still_comes_to_its_end() {
    if !can_run("a_start_that_was_cut_off_before_its_answer_still_comes_to_its_end") {
        return;
    }
    let mut daemon = Daemon::start();
    daemon.tiny_vms(&["a"]);
    let answer = daemon
        .post("/vms/a/actions/start", &Value::Null)
        .expect(202);
    daemon.kill();
    daemon.serve();
    let id = answer["id"].as_str().unwrap();
    let operation = daemon.get(&format!("/operations/{id}/wait?timeout_s=60"));
    assert_eq!(operation["status"], "succeeded", "{operation}");
    assert_eq!(daemon.vm("a")["state"], "running");
    assert_eq!(daemon.qemus().len(), 1);
}

#[test]
fn a_stop_that_was_under_way_is_finished_after_a_restart() {
    if !can_run("a_stop_that_was_under_way_is_finished_after_a_restart") {
        return;
    }
    let mut daemon = Daemon::start();
    daemon.tiny_vms(&["a"]);
    daemon.act("a", "start");
    let pid = daemon.pid_of("a");
    // Firmware does not hear the power button: the stop is open for its timeout.
    let answer = daemon
        .post("/vms/a/actions/stop?timeout_s=2", &Value::Null)
        .expect(202);
    daemon.kill();
    assert!(host::lives(pid));
    daemon.serve();
    let id = answer["id"].as_str().unwrap();
    let operation = daemon.get(&format!("/operations/{id}/wait?timeout_s=60"));
    assert_eq!(operation["status"], "succeeded", "{operation}");
    assert_eq!(daemon.vm("a")["state"], "stopped");
    assert!(!host::lives(pid));
}

#[test]
fn a_deaf_qemu_does_not_hold_up_the_daemons_start_and_is_killed_only_when_asked() {
    if !can_run("a_deaf_qemu_does_not_hold_up_the_daemons_start_and_is_killed_only_when_asked") {
        return;
    }
    let mut daemon = Daemon::start();
    daemon.tiny_vms(&["deaf", "fine"]);
    daemon.act("deaf", "start");
    daemon.act("fine", "start");
    let pid = daemon.pid_of("deaf");
    host::signal(pid, Signal::STOP);
    daemon.kill();
    daemon.serve();
    assert!(host::lives(pid));
    let vm = daemon.vm("deaf");
    assert_eq!(
        (&vm["state"], &vm["unresponsive"]),
        (&json!("running"), &json!(true)),
        "{vm}"
    );
    assert_eq!(daemon.vm("fine")["state"], "running");
    // When it hears again, it is found again by itself.
    host::signal(pid, Signal::CONT);
    wait_for("the VM to be responsive again", PATIENCE, || {
        (daemon.vm("deaf")["unresponsive"] == json!(false)).then_some(())
    });
    assert_eq!(daemon.pid_of("deaf"), pid);
    host::signal(pid, Signal::STOP);
    assert_eq!(daemon.act("deaf", "stop?force=true")["status"], "succeeded");
    assert!(!host::lives(pid));
}

/// Runs the daemon where `/proc/sys/kernel/random/boot_id` tells another boot.
fn with_boot_id(daemon: &Daemon, boot_id: &str) -> Option<Command> {
    let file = daemon.folder().join("boot_id");
    fs::write(&file, format!("{boot_id}\n")).unwrap();
    let mount = format!(
        "mount --bind '{}' /proc/sys/kernel/random/boot_id",
        file.display()
    );
    let tried = Command::new("unshare")
        .args(["-m", "sh", "-c", &mount])
        .output()
        .ok()?;
    if !tried.status.success() {
        return None;
    }
    let plain = daemon.command();
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &format!("{mount} && exec \"$0\" serve")]);
    command
        .arg(plain.get_program())
        .env_clear()
        .current_dir(daemon.folder());
    for (name, value) in plain.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let log = fs::File::options()
        .append(true)
        .open(daemon.folder().join("daemon.log"))
        .unwrap();
    command.stdout(log.try_clone().unwrap()).stderr(log);
    Some(command)
}

#[test]
fn after_a_reboot_of_the_host_what_ran_starts_again_and_what_was_stopped_stays_so() {
    let name = "after_a_reboot_of_the_host_what_ran_starts_again_and_what_was_stopped_stays_so";
    if !can_run(name) {
        return;
    }
    let mut daemon = Daemon::start();
    daemon.tiny_vms(&["ran", "stopping", "never"]);
    daemon.act("ran", "start");
    daemon.act("stopping", "start");
    daemon
        .post("/vms/stopping/actions/stop?timeout_s=600", &Value::Null)
        .expect(202);
    let incarnation = daemon.vm("ran")["incarnation"].as_u64().unwrap();
    daemon.kill();
    for qemu in daemon.qemus() {
        host::signal(qemu.pid, Signal::KILL);
    }
    wait_for("the QEMUs to be gone, as after a reboot", PATIENCE, || {
        daemon.qemus().is_empty().then_some(())
    });
    let Some(mut command) = with_boot_id(&daemon, "11111111-2222-3333-4444-555555555555") else {
        skip(name, "a private mount namespace is not permitted here");
        return;
    };
    let mut child = command.spawn().unwrap();
    let socket = daemon.socket();
    wait_for("the daemon to be ready", PATIENCE, || {
        let answer = crate::support::http::request(&socket, "GET", "/ready", &[], b"").ok()?;
        (answer.status == 200).then_some(())
    });
    let ran = daemon.wait_state("ran", "running");
    assert_eq!(ran["reason"], "host_reboot");
    assert_eq!(ran["incarnation"].as_u64().unwrap(), incarnation + 1);
    let stopped = daemon.wait_state("stopping", "stopped");
    assert_eq!(stopped["reason"], "host_reboot");
    assert_eq!(daemon.vm("never")["reason"], "created");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_drained_host_starts_again_after_its_boot_what_ran() {
    let name = "a_drained_host_starts_again_after_its_boot_what_ran";
    if !can_run(name) {
        return;
    }
    let mut daemon = Daemon::start();
    daemon.tiny_vms(&["db", "web", "rests", "auto"]);
    for vm in ["db", "web"] {
        daemon.act(vm, "start");
    }
    let change = json!({"depends_on": [{"vm": "db"}]});
    daemon.call("PATCH", "/vms/web", &change).expect(200);
    let change = json!({"autostart": true, "priority": 9});
    daemon.call("PATCH", "/vms/auto", &change).expect(200);
    // Firmware does not hear the power button: its time is up soon.
    let drained = daemon
        .post("/host/actions/drain?timeout_s=2&wait_s=60", &Value::Null)
        .expect(200);
    assert_eq!(drained["status"], "succeeded", "{drained}");
    assert!(daemon.qemus().is_empty());
    let refused = daemon.post("/vms/db/actions/start", &Value::Null);
    assert_eq!(refused.expect(409)["code"], "host_draining");
    daemon.kill();
    let Some(mut command) = with_boot_id(&daemon, "11111111-2222-3333-4444-666666666666") else {
        skip(name, "a private mount namespace is not permitted here");
        return;
    };
    let mut child = command.spawn().unwrap();
    let socket = daemon.socket();
    wait_for("the daemon to be ready", PATIENCE, || {
        let answer = crate::support::http::request(&socket, "GET", "/ready", &[], b"").ok()?;
        (answer.status == 200).then_some(())
    });
    let started = |vm: &str| {
        let vm = daemon.wait_state(vm, "running");
        vm["started_at"].as_str().unwrap().to_owned()
    };
    let (auto, db, web) = (started("auto"), started("db"), started("web"));
    assert!(auto <= db && db <= web, "{auto} {db} {web}");
    assert_eq!(daemon.vm("rests")["reason"], "created");
    assert_eq!(daemon.get("/host")["draining"], false);
    child.kill().unwrap();
    child.wait().unwrap();
}
