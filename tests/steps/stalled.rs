//! A disk that stalls: strace(1) lets each sync of the daemon hang for seconds.

use crate::{
    injected::Strace,
    support::{
        can_run,
        daemon::{Daemon, PATIENCE},
        host, skip, wait_for,
    },
};
use serde_json::{Value, json};

/// What `/health` says of the store.
fn store_health(daemon: &Daemon) -> String {
    let health = daemon.call("GET", "/health", &Value::Null).json();
    health["checks"]["store"].as_str().unwrap().to_owned()
}

#[test]
fn a_sync_that_hangs_delays_no_read_and_no_guest_and_health_says_so() {
    let name = "a_sync_that_hangs_delays_no_read_and_no_guest_and_health_says_so";
    if !can_run(name) {
        return;
    }
    let daemon = Daemon::start();
    daemon.tiny_vms(&["a"]);
    daemon.act("a", "start");
    let pid = daemon.pid_of("a");
    assert_eq!(store_health(&daemon), "ok");
    let hang = [
        "-e",
        "trace=fdatasync",
        "-e",
        "inject=fdatasync:delay_enter=6000000",
    ];
    let Some(strace) = Strace::attach(&daemon, &hang.map(str::to_owned)) else {
        return skip(name, "strace is not installed, or may not trace");
    };
    let template = json!({"name": "late", "cpu_count": 1, "ram_mib": 32});
    std::thread::scope(|scope| {
        let change = scope.spawn(|| daemon.post("/templates", &template).expect(201));
        let mut reads = 0;
        wait_for("health to tell of it", PATIENCE, || {
            assert_eq!(daemon.vm("a")["state"], "running");
            assert_eq!(daemon.get("/templates").as_array().unwrap().len(), 1);
            reads += 1;
            let told = store_health(&daemon);
            told.contains("waited for the disk").then_some(())
        });
        assert!(
            !change.is_finished(),
            "nothing is answered before it is on disk"
        );
        assert!(reads > 10, "{reads} reads");
        change.join().unwrap();
    });
    strace.detach();
    wait_for("health to be well again", PATIENCE, || {
        (store_health(&daemon) == "ok").then_some(())
    });
    assert_eq!(daemon.get("/templates").as_array().unwrap().len(), 2);
    assert!(daemon.pid_of("a") == pid && host::lives(pid));
}
