//! The original VMAN's workflows, and what one bad VM does to the others.

use crate::support::{
    can_run,
    daemon::{Daemon, PATIENCE},
    host, wait_for,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::Duration;

#[test]
fn the_original_workflows_work_from_template_to_delete() {
    if !can_run("the_original_workflows_work_from_template_to_delete") {
        return;
    }
    let daemon = Daemon::start();
    let template = json!({"name": "small", "cpu_count": 1, "ram_amount": 1});
    daemon.post("/templates", &template).expect(201);
    let made = daemon
        .post("/vms", &json!({"template_name": "small", "name": "web"}))
        .expect(201);
    assert_eq!(made["id"], "web");
    assert_eq!(made["state"], "stopped");
    assert_eq!(made["vm_template"]["ram_amount"], 1);

    let operation = daemon.act("web", "start");
    assert_eq!(operation["status"], "succeeded", "{operation}");
    let running = daemon.vm("web");
    assert_eq!(running["state"], "running");
    let pid = daemon.pid_of("web");
    assert!(host::lives(pid));
    let again = daemon
        .post("/vms/web/actions/start", &Value::Null)
        .expect(409);
    assert_eq!(again["code"], "vm_already_running");

    let operation = daemon.act("web", "restart?force=true");
    assert_eq!(operation["status"], "succeeded", "{operation}");
    assert_eq!(daemon.vm("web")["state"], "running");
    assert!(!host::lives(pid));
    assert_ne!(daemon.pid_of("web"), pid);

    // Firmware alone hears no power button: the stop falls back to force.
    let operation = daemon.act("web", "stop?timeout_s=1");
    assert_eq!(operation["status"], "succeeded", "{operation}");
    let stopped = daemon.vm("web");
    assert_eq!(stopped["state"], "stopped");
    assert_eq!(stopped["reason"], "user");
    let again = daemon
        .post("/vms/web/actions/stop", &Value::Null)
        .expect(409);
    assert_eq!(again["code"], "vm_not_running");
    assert_eq!(daemon.qemus(), []);

    assert_eq!(daemon.delete("/templates/small").status, 409);
    assert_eq!(daemon.delete("/vms/web").status, 204);
    assert_eq!(daemon.call("GET", "/vms/web", &Value::Null).status, 404);
    assert_eq!(daemon.delete("/templates/small").status, 204);
}

#[test]
fn pause_resume_and_reset_act_on_the_real_machine() {
    if !can_run("pause_resume_and_reset_act_on_the_real_machine") {
        return;
    }
    let daemon = Daemon::start();
    daemon.tiny_vms(&["a"]);
    assert_eq!(daemon.act("a", "start")["status"], "succeeded");
    assert_eq!(daemon.act("a", "pause")["status"], "succeeded");
    assert_eq!(daemon.vm("a")["state"], "paused");
    let refused = daemon
        .post("/vms/a/actions/pause", &Value::Null)
        .expect(409);
    assert_eq!(refused["code"], "vm_already_paused");
    assert_eq!(daemon.act("a", "resume")["status"], "succeeded");
    assert_eq!(daemon.vm("a")["state"], "running");
    assert_eq!(daemon.act("a", "reset")["status"], "succeeded");
    assert_eq!(daemon.vm("a")["state"], "running");
    // A VM that runs is deleted by force.
    assert_eq!(daemon.delete("/vms/a").status, 204);
    assert_eq!(daemon.qemus(), []);
}

#[test]
fn a_qemu_killed_from_outside_is_an_error_that_says_so() {
    if !can_run("a_qemu_killed_from_outside_is_an_error_that_says_so") {
        return;
    }
    let daemon = Daemon::start();
    daemon.tiny_vms(&["a"]);
    daemon.act("a", "start");
    host::signal(daemon.pid_of("a"), Signal::KILL);
    let vm = daemon.wait_state("a", "error");
    assert_eq!(vm["reason"], "qemu_signal");
    assert!(vm["detail"].as_str().unwrap().contains("signal 9"), "{vm}");
    let explained = daemon.get("/vms/a/explain").to_string();
    assert!(explained.contains("signal 9"), "{explained}");
    assert_eq!(
        daemon.act("a", "start")["status"],
        "succeeded",
        "an error is no dead end"
    );
}

#[test]
fn the_restart_policy_starts_a_killed_vm_again_and_gives_up_a_crash_loop() {
    if !can_run("the_restart_policy_starts_a_killed_vm_again_and_gives_up_a_crash_loop") {
        return;
    }
    let daemon = Daemon::start();
    daemon.tiny_template();
    let restart = json!({"policy": "on-failure", "max_restarts": 2, "window_s": 600,
        "backoff_ms": 10, "backoff_max_ms": 20});
    let body = json!({"template_name": "tiny", "name": "a", "restart": restart});
    daemon.post("/vms", &body).expect(201);
    daemon.act("a", "start");
    for _ in 0..2 {
        let before = daemon.pid_of("a");
        host::signal(before, Signal::KILL);
        wait_for("the policy to start it again", PATIENCE, || {
            let vm = daemon.vm("a");
            let again = vm["state"] == "running" && vm["pid"] != json!(before);
            again.then_some(())
        });
    }
    host::signal(daemon.pid_of("a"), Signal::KILL);
    let vm = daemon.wait_state("a", "error");
    assert_eq!(vm["reason"], "crash_loop");
    assert_eq!(daemon.qemus(), []);
}

#[test]
fn a_qemu_that_is_stopped_by_a_signal_delays_nobody_and_can_be_stopped_by_force() {
    if !can_run("a_qemu_that_is_stopped_by_a_signal_delays_nobody_and_can_be_stopped_by_force") {
        return;
    }
    let daemon = Daemon::start();
    daemon.tiny_vms(&["hung", "fine"]);
    daemon.act("hung", "start");
    let pid = daemon.pid_of("hung");
    host::signal(pid, Signal::STOP);
    // A command to it hangs; reads, and the other VM, do not.
    daemon
        .post("/vms/hung/actions/pause", &Value::Null)
        .expect(202);
    assert_eq!(daemon.get("/vms").as_array().unwrap().len(), 2);
    assert_eq!(daemon.act("fine", "start")["status"], "succeeded");
    assert_eq!(daemon.act("hung", "stop?force=true")["status"], "succeeded");
    assert!(!host::lives(pid));
    assert_eq!(daemon.vm("fine")["state"], "running");
    let open = daemon.get("/operations");
    let open: Vec<_> = open
        .as_array()
        .unwrap()
        .iter()
        .filter(|op| op["status"] == "running")
        .collect();
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn many_starts_at_once_all_succeed_and_never_more_than_allowed_launch_together() {
    if !can_run("many_starts_at_once_all_succeed_and_never_more_than_allowed_launch_together") {
        return;
    }
    let daemon = Daemon::start_with(&[("VMAN_MAX_LAUNCHES", "2")]);
    let names: Vec<_> = (0..8).map(|n| format!("vm{n}")).collect();
    daemon.tiny_vms(&names.iter().map(String::as_str).collect::<Vec<_>>());
    for name in &names {
        daemon
            .post(&format!("/vms/{name}/actions/start"), &Value::Null)
            .expect(202);
    }
    for name in &names {
        daemon.wait_state(name, "running");
    }
    assert_eq!(daemon.qemus().len(), 8);
}

#[test]
fn an_event_stream_tells_a_start_and_resumes_where_it_was_cut() {
    if !can_run("an_event_stream_tells_a_start_and_resumes_where_it_was_cut") {
        return;
    }
    let daemon = Daemon::start();
    daemon.tiny_vms(&["a"]);
    daemon.act("a", "start");
    let events = wait_for("the start's events", Duration::from_secs(10), || {
        let answer = daemon.call("GET", "/events?since=0&limit=1000", &Value::Null);
        let events = answer.json();
        let list = events.as_array().unwrap().clone();
        list.iter().any(|e| e["to"] == "running").then_some(list)
    });
    let revisions: Vec<_> = events
        .iter()
        .map(|e| e["revision"].as_u64().unwrap())
        .collect();
    assert!(revisions.is_sorted_by(|a, b| a < b), "{revisions:?}");
    let middle = revisions[revisions.len() / 2];
    let rest = daemon.get(&format!("/events?since={middle}&limit=1000"));
    let rest: Vec<_> = rest
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["revision"].as_u64().unwrap())
        .collect();
    let expected: Vec<_> = revisions.into_iter().filter(|r| *r > middle).collect();
    assert!(rest.starts_with(&expected), "{rest:?} {expected:?}");
}
