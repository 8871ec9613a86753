//! Why a VM is where it is, told of ends that really happened: from the present state back to what
//! set it off. Ends for want of space and for memory are told where those are tried.

use crate::support::{
    can_run,
    daemon::{Daemon, PATIENCE},
    host, wait_for,
};
use rustix::process::Signal;
use serde_json::json;

/// The sentence.
pub(crate) fn story(daemon: &Daemon, vm: &str) -> String {
    let explained = daemon.get(&format!("/vms/{vm}/explain"));
    explained["summary"].as_str().unwrap().to_owned()
}

/// The sentence has these links, and the last was asked for by such a request.
fn assert_asked_for(daemon: &Daemon, vm: &str, links: &[&str], asked: &str) {
    let told = story(daemon, vm);
    let begins = links.join(" ← ");
    assert!(told.starts_with(&begins), "{told}");
    let asked = format!(" (`{asked}`, asked by ");
    assert_eq!(told.matches("asked by").count(), 1, "{told}");
    assert!(told[begins.len()..].starts_with(&asked), "{told}");
    assert!(
        told.contains(" in request ") && told.ends_with(')'),
        "{told}"
    );
}

#[test]
fn an_end_that_was_asked_for_is_told_back_to_its_request() {
    if !can_run("an_end_that_was_asked_for_is_told_back_to_its_request") {
        return;
    }
    let daemon = Daemon::start();
    daemon.tiny_vms(&["forced", "late", "paused"]);
    for vm in ["forced", "late", "paused"] {
        daemon.act(vm, "start");
        let links = [
            "running",
            "the guest runs",
            "QEMU is being started",
            "start was asked for",
        ];
        assert_asked_for(&daemon, vm, &links, "start");
    }
    daemon.act("forced", "stop?force=true");
    let links = [
        "stopped",
        "stop was asked for",
        "stop by force was asked for",
    ];
    assert_asked_for(&daemon, "forced", &links, "stop");
    // Firmware hears no power button.
    daemon.act("late", "stop?timeout_s=1");
    let told = story(&daemon, "late");
    let due = "the guest did not power off within 1 s (`stop_deadline` was due)";
    assert!(told.contains(due), "{told}");
    let links = [
        "stopped",
        "stop was asked for",
        due,
        "the guest was asked to power off",
    ];
    assert_asked_for(&daemon, "late", &links, "stop");
    daemon.act("paused", "pause");
    let links = [
        "paused",
        "the guest's CPUs stand still",
        "pause was asked for",
    ];
    assert_asked_for(&daemon, "paused", &links, "pause");
}

#[test]
fn an_end_that_nobody_asked_for_is_told_back_to_what_did_it() {
    if !can_run("an_end_that_nobody_asked_for_is_told_back_to_what_did_it") {
        return;
    }
    let daemon = Daemon::start();
    daemon.tiny_vms(&["killed"]);
    daemon.act("killed", "start");
    let kill = |vm: &str| host::signal(daemon.pid_of(vm), Signal::KILL);
    kill("killed");
    daemon.wait_state("killed", "error");
    let killed = "QEMU was killed by signal 9";
    assert_eq!(story(&daemon, "killed"), format!("failed ← {killed}"));

    let restart = json!({"policy": "on-failure", "max_restarts": 1, "backoff_ms": 10});
    let body = json!({"template_name": "tiny", "name": "loops", "restart": restart});
    daemon.post("/vms", &body).expect(201);
    daemon.act("loops", "start");
    kill("loops");
    wait_for("its second life", PATIENCE, || {
        let vm = daemon.vm("loops");
        (vm["incarnation"] == 2 && vm["state"] == "running").then_some(())
    });
    let told = story(&daemon, "loops");
    assert!(
        told.contains("(by the restart policy)") && told.ends_with(killed),
        "{told}"
    );
    kill("loops");
    daemon.wait_state("loops", "error");
    assert_eq!(
        story(&daemon, "loops"),
        format!(
            "failed ← given up after 1 restarts within 600 s; the last end: {killed} ← {killed}"
        )
    );

    daemon.guest_template("vman.poweroff_after_ms=100");
    let body = json!({"template_name": "guest", "name": "off"});
    daemon.post("/vms", &body).expect(201);
    daemon.act("off", "start");
    daemon.wait_state("off", "stopped");
    assert_eq!(
        story(&daemon, "off"),
        "stopped ← the guest powered itself off"
    );
}
