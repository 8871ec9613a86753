//! Guests that stand still, and who let them: their user, somebody at QEMU's own monitor, or a
//! storage without space, with a daemon or while there is none.

use crate::{
    storage_full::{Full, boot, daemon_on_small_storage, write_much},
    support::{
        can_run,
        daemon::{Daemon, PATIENCE},
        host,
        qmp::Monitor,
        wait_for,
    },
};
use serde_json::{Value, json};

/// What somebody does at QEMU's own monitor, behind VMAN's back.
fn by_hand(daemon: &Daemon, vm: &str, command: &str) {
    Monitor::open(&daemon.monitor(vm)).run(command, &json!({}));
}

/// What QEMU itself says of its guest.
fn status(daemon: &Daemon, vm: &str) -> Value {
    Monitor::open(&daemon.monitor(vm)).run("query-status", &json!({}))
}

/// Waits until VM `a` is told so, and holds it against what QEMU says. Answers what it was
/// before, and what led it there.
#[track_caller]
fn assert_is(daemon: &Daemon, state: &str) -> (String, String) {
    daemon.wait_state("a", state);
    assert_eq!(status(daemon, "a")["running"], state == "running");
    let events = daemon.get("/events?limit=1000");
    let events = events.as_array().unwrap().iter();
    let changes =
        events.filter(|event| event["kind"] == "vm.phase_changed" && event["vm_id"] == "a");
    let last = changes
        .max_by_key(|event| event["revision"].as_u64())
        .unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&last["from"]), text(&last["cause"]["input"]))
}

#[test]
fn a_guest_that_somebody_stops_or_continues_at_its_monitor_is_told_as_it_is() {
    if !can_run("a_guest_that_somebody_stops_or_continues_at_its_monitor_is_told_as_it_is") {
        return;
    }
    let mut daemon = Daemon::start();
    daemon.tiny_vms(&["a"]);
    daemon.act("a", "start");
    let pid = daemon.pid_of("a");
    // With a daemon, which hears of it before it asks by itself.
    let heard = |from: &str| (from.to_owned(), "run_state_changed".to_owned());
    by_hand(&daemon, "a", "stop");
    assert_eq!(assert_is(&daemon, "paused"), heard("running"));
    daemon.act("a", "resume");
    daemon.act("a", "pause");
    by_hand(&daemon, "a", "cont");
    assert_eq!(assert_is(&daemon, "running"), heard("paused"));

    // Without one: the next one finds the guest as it is, and leaves it so.
    for (asked, done, found) in [("pause", "cont", "running"), ("resume", "stop", "paused")] {
        daemon.act("a", asked);
        daemon.kill();
        by_hand(&daemon, "a", done);
        daemon.serve();
        let (from, _) = assert_is(&daemon, found);
        assert_eq!(from, "unknown", "it was never told to be anything else");
        // So it may be asked again, and is done.
        let asked_for = daemon.act("a", asked);
        assert_eq!(asked_for["status"], "succeeded");
        assert_is(
            &daemon,
            if asked == "pause" {
                "paused"
            } else {
                "running"
            },
        );
    }
    assert_eq!(daemon.pid_of("a"), pid);
    assert!(host::lives(pid));
}

#[test]
fn a_users_pause_outlasts_the_daemon_and_a_want_of_space_behind_its_back() {
    let test = "a_users_pause_outlasts_the_daemon_and_a_want_of_space_behind_its_back";
    let Some((small, mut daemon)) = daemon_on_small_storage(test) else {
        return;
    };
    let both = ["held", "waits"];
    boot(&daemon, &both);
    let full = Full::under(&daemon, &small, &both);
    daemon.act("held", "pause");

    // QEMU tells of the failed disk alone then, not of the pause before it.
    daemon.kill();
    by_hand(&daemon, "held", "cont");
    for vm in both {
        write_much(&daemon, vm);
    }
    for vm in both {
        wait_for("the guest to stand for want of space", PATIENCE, || {
            (status(&daemon, vm)["status"] == "io-error").then_some(())
        });
    }
    daemon.serve();
    for (vm, reason) in [("held", "user"), ("waits", "io_error")] {
        let told = daemon.wait_state(vm, "paused");
        assert_eq!(told["reason"], reason, "{told}");
    }

    full.free();
    // The other one goes on, and for seconds in which the first would have done so too.
    daemon.wait_console("waits", "\ndone");
    let counter = wait_for("it to count", PATIENCE, || daemon.counter("waits"));
    wait_for("the other guest to count on", PATIENCE, || {
        (daemon.counter("waits")? > counter + 15).then_some(())
    });
    let told = daemon.vm("held");
    assert_eq!(
        (&told["state"], &told["reason"]),
        (&json!("paused"), &json!("user"))
    );
    assert_eq!(status(&daemon, "held")["running"], false);
    daemon.act("held", "resume");
    daemon.wait_console("held", "\ndone");
}
