//! Commands that change something: keys, repeating, waiting, and what is told of failures.

use super::{
    operation, problem,
    server::{Daemon, Reply, Seen},
    vm,
};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU32, Ordering};

/// Hangs up the first time, and then answers.
fn hang_up_once(
    answer: impl Fn(&Seen) -> Reply + Send + Sync,
) -> impl Fn(&Seen) -> Reply + Send + Sync {
    let asked = AtomicU32::new(0);
    move |seen| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::HangUp,
        _ => answer(seen),
    }
}

#[tokio::test]
async fn a_lost_post_is_repeated_under_the_same_key_and_a_lost_delete_is_not() {
    let daemon = Daemon::start(hang_up_once(|_| Reply::Json(201, vm("hello", "stopped")))).await;
    let ran = daemon
        .run(&[
            "vm",
            "create",
            "hello",
            "-t",
            "small",
            "--restart",
            "always",
            "--cpu-quota",
            "150",
            "-o",
            "name",
        ])
        .await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "hello\n"), "{}", ran.err);
    let seen = daemon.seen();
    let keys: Vec<&str> = seen
        .iter()
        .map(|seen| seen.header("idempotency-key"))
        .collect();
    assert!(
        keys.len() == 2 && keys[0] == keys[1] && keys[0].len() == 32,
        "{keys:?}"
    );
    assert_eq!(
        seen[0].json(),
        json!({"template_name": "small", "name": "hello", "restart": {"policy": "always"}, "cpu_quota": 150})
    );
    let daemon = Daemon::start(hang_up_once(|_| Reply::Json(204, Value::Null))).await;
    let ran = daemon.run(&["vm", "delete", "hello"]).await;
    assert_eq!((ran.code, daemon.seen().len()), (3, 1));
    assert!(ran.err.contains("look before you repeat it"), "{}", ran.err);
}

#[tokio::test]
async fn launch_creates_starts_and_waits_also_over_an_absence_of_the_daemon() {
    let waits = AtomicU32::new(0);
    let daemon = Daemon::start(move |seen| match seen.line.as_str() {
        "POST /vms" => Reply::Json(201, vm("hello", "stopped")),
        "POST /vms/hello/actions/start" => Reply::Json(202, operation("running")),
        "GET /vms/hello" => Reply::Json(200, vm("hello", "running")),
        wait if wait.starts_with("GET /operations/op-1/wait?timeout_s=") => {
            match waits.fetch_add(1, Ordering::SeqCst) {
                0 => Reply::Json(200, operation("running")),
                // More often than one request is tried: the wait itself must go on.
                1..=4 => Reply::HangUp,
                _ => Reply::Json(200, operation("succeeded")),
            }
        }
        other => panic!("{other}"),
    })
    .await;
    let ran = daemon
        .run(&["vm", "launch", "hello", "--template", "small"])
        .await;
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "hello is running at 10.0.2.15\n"),
        "{}",
        ran.err
    );
}

#[tokio::test]
async fn an_operation_that_fails_is_exit_code_1_with_its_cause() {
    let daemon = Daemon::start(|seen| {
        if seen.line == "POST /vms" {
            return Reply::Json(201, vm("hello", "stopped"));
        }
        let mut failed = operation("failed");
        failed["error"] = json!({"code": "start_failed", "detail": "QEMU exited with 1"});
        Reply::Json(200, failed)
    })
    .await;
    let ran = daemon.run(&["vm", "launch", "hello", "-t", "small"]).await;
    assert_eq!(ran.code, 1);
    let parts = [
        "vm.start of hello has failed: QEMU exited with 1 (start_failed)",
        "vman vm explain hello",
        "the VM is recorded",
    ];
    assert!(
        parts.iter().all(|part| ran.err.contains(part)),
        "{}",
        ran.err
    );
}

#[tokio::test]
async fn without_waiting_the_operation_is_answered() {
    let daemon = Daemon::start(|_| Reply::Json(202, operation("running"))).await;
    let ran = daemon.run(&["vm", "start", "hello", "--no-wait"]).await;
    assert_eq!(ran.out, "vm.start of hello goes on as operation op-1\n");
    let ran = daemon
        .run(&["vm", "start", "hello", "--no-wait", "-o", "json"])
        .await;
    assert_eq!(
        serde_json::from_str::<Value>(&ran.out).unwrap(),
        operation("running")
    );
    assert_eq!(daemon.seen().len(), 2);
}

#[tokio::test]
async fn a_wait_that_is_over_says_how_to_wait_on() {
    let daemon = Daemon::start(|_| Reply::Json(202, operation("running"))).await;
    let ran = daemon.run(&["vm", "start", "hello", "--wait", "0"]).await;
    assert!(
        ran.code == 1 && ran.err.contains("`vman operation wait op-1`"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn one_refusal_does_not_keep_the_other_vms_waiting() {
    let daemon = Daemon::start(|seen| match seen.line.as_str() {
        "POST /vms/bad/actions/stop?timeout_s=7" => Reply::Json(409, problem()),
        line if line.starts_with("POST /vms/good") => Reply::Json(200, operation("succeeded")),
        _ => Reply::Json(200, vm("good", "stopped")),
    })
    .await;
    let ran = daemon
        .run(&["vm", "stop", "bad", "good", "--timeout", "7"])
        .await;
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (1, "good is stopped (user)\n")
    );
    assert!(ran.err.contains("vm_already_running"));
}
