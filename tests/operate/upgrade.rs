//! `vman upgrade check` beside a running daemon.

use crate::support::daemon::Daemon;
use serde_json::{Value, json};
use std::{fs, process::Command};

fn check(daemon: &Daemon) -> (Option<i32>, Value) {
    let storage = daemon.storage();
    let output = Command::new(env!("CARGO_BIN_EXE_vman"))
        .args(["upgrade", "check", "-o", "json", "--storage-path"])
        .arg(storage)
        .env_clear()
        .current_dir(daemon.folder())
        .output()
        .unwrap();
    let told = serde_json::from_slice(&output.stdout);
    let told = told.unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), told)
}

#[test]
fn an_upgrade_is_checked_while_the_old_daemon_holds_and_writes_the_store() {
    let mut daemon = Daemon::unstarted(&[("VMAN_NETWORK_MODE", "none")]);
    let (code, told) = check(&daemon);
    assert_eq!((code, &told["verdict"]), (Some(0), &json!("no_store")));
    daemon.serve();
    daemon.tiny_template();
    let names: Vec<_> = (0..20).map(|number| format!("vm-{number}")).collect();
    let (code, told) = std::thread::scope(|scope| {
        scope.spawn(|| {
            for name in &names {
                let vm = json!({"template_name": "tiny", "name": name});
                daemon.post("/vms", &vm).expect(201);
            }
        });
        check(&daemon)
    });
    assert_eq!(
        (code, &told["verdict"]),
        (Some(0), &json!("ready")),
        "{told}"
    );
    assert_eq!(
        (&told["older"], &told["unreadable"]),
        (&json!([]), &json!([]))
    );
    let left = fs::read_dir(daemon.storage()).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    let copies = left
        .iter()
        .filter(|name| name.to_string_lossy().contains("check"));
    assert_eq!(copies.count(), 0, "{left:?}");
    assert_eq!(daemon.get("/vms").as_array().unwrap().len(), 20);
}
