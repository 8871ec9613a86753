//! Hosts where QEMU is missing, broken or silent.

use crate::support::daemon::Daemon;
use serde_json::Value;
use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

/// An executable that stands in for QEMU.
fn fake_qemu(daemon: &Daemon, script: &str) -> PathBuf {
    let path = daemon.folder().join("qemu-system-x86_64");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Starts VM `a` on this QEMU; answers the failed operation and the VM.
fn start_fails(binary: impl FnOnce(&Daemon) -> PathBuf) -> (Value, Value, Daemon) {
    let mut daemon = Daemon::unstarted(&[]);
    let binary = binary(&daemon);
    daemon.set("VMAN_QEMU_BINARY", &binary.display().to_string());
    daemon.serve();
    daemon.tiny_vms(&["a"]);
    let operation = daemon.act("a", "start");
    assert_eq!(operation["status"], "failed", "{operation}");
    assert_eq!(operation["error"]["code"], "start_failed");
    let vm = daemon.vm("a");
    assert_eq!(
        (vm["state"].as_str(), vm["reason"].as_str()),
        (Some("error"), Some("start_failed"))
    );
    assert_eq!(vm["pid"], Value::Null);
    assert_eq!(daemon.get("/live")["status"], "ok");
    assert!(
        !daemon.folder().join("run/vms/a").exists(),
        "nothing is left of the attempt"
    );
    (operation, vm, daemon)
}

fn detail(operation: &Value) -> &str {
    operation["error"]["detail"].as_str().unwrap()
}

#[test]
fn a_missing_qemu_fails_the_start_and_says_what_to_do() {
    let (operation, _, daemon) = start_fails(|daemon| daemon.folder().join("no-such-qemu"));
    assert!(detail(&operation).contains("no-such-qemu"), "{operation}");
    assert!(
        detail(&operation).contains("VMAN_QEMU_BINARY"),
        "{operation}"
    );
    let health = daemon.call("GET", "/health", &Value::Null);
    assert_eq!(health.status, 503);
    assert_ne!(health.json()["checks"]["qemu"], "ok");
}

#[test]
fn a_qemu_that_ends_at_once_fails_the_start_with_its_last_words() {
    let (operation, _, _) = start_fails(|daemon| {
        fake_qemu(
            daemon,
            "echo 'qemu-system-x86_64: cannot set up guest memory' >&2; exit 1",
        )
    });
    assert!(
        detail(&operation).contains("cannot set up guest memory"),
        "{operation}"
    );
    assert!(detail(&operation).contains("exit code 1"), "{operation}");
}

#[test]
fn a_qemu_that_cannot_be_executed_fails_the_start() {
    let (operation, _, _) = start_fails(|daemon| {
        let path = daemon.folder().join("not-executable");
        fs::write(&path, "no program").unwrap();
        path
    });
    assert!(detail(&operation).contains("not-executable"), "{operation}");
}

#[test]
fn a_qemu_that_never_greets_is_given_up_after_its_deadline() {
    let (operation, _, daemon) = start_fails(|daemon| fake_qemu(daemon, "exec sleep 1000"));
    assert!(detail(&operation).contains("did not answer"), "{operation}");
    assert_eq!(daemon.qemus(), []);
}
