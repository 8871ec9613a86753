//! A backup of the store that a daemon makes, and a daemon that starts from it.

use crate::support::daemon::Daemon;
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command};

fn backup(daemon: &Daemon) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_vman"))
        .args(["store", "backup", "-o", "json", "--socket"])
        .arg(daemon.socket())
        .env_clear()
        .current_dir(daemon.folder())
        .output()
        .unwrap();
    let told = serde_json::from_slice(&output.stdout);
    told.unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn names(daemon: &Daemon) -> Vec<String> {
    let vms = daemon.get("/vms");
    let ids = vms.as_array().unwrap().iter();
    ids.map(|vm| vm["id"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_daemon_starts_from_a_backup_that_another_made_while_it_was_busy() {
    let mut daemon = Daemon::start_with(&[("VMAN_NETWORK_MODE", "none")]);
    daemon.tiny_template();
    let make = |name: &str| {
        let vm = json!({"template_name": "tiny", "name": name});
        daemon.post("/vms", &vm).expect(201);
    };
    make("early");
    let made = std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..20 {
                make(&format!("vm-{number:02}"));
            }
        });
        backup(&daemon)
    });
    make("late");
    let file = Path::new(made["file"].as_str().unwrap());
    assert_eq!(file.parent().unwrap(), daemon.storage().join("backups"));
    assert_eq!(made["size_bytes"], fs::metadata(file).unwrap().len());
    daemon.terminate();
    fs::write(file.with_extension("part"), "what a killed daemon left").unwrap();
    fs::copy(file, daemon.storage().join("vman.redb")).unwrap();
    daemon.serve();
    let there = names(&daemon);
    assert_eq!(there.first().map(String::as_str), Some("early"));
    assert!(!there.contains(&"late".to_owned()), "{there:?}");
    // Made one after the other: those of before that moment, and no other.
    for (number, name) in there.iter().skip(1).enumerate() {
        assert_eq!(*name, format!("vm-{number:02}"));
    }
    assert!(!file.with_extension("part").exists());
    assert!(file.exists());
    let vm = json!({"template_name": "tiny", "name": "afterwards"});
    daemon.post("/vms", &vm).expect(201);
}

/// `vman store …` with these words; what it printed, and its exit code.
fn store(daemon: &Daemon, words: &[&str]) -> (String, i32) {
    let output = Command::new(env!("CARGO_BIN_EXE_vman"))
        .arg("store")
        .args(words)
        .env_clear()
        .current_dir(daemon.folder())
        .output()
        .unwrap();
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told).into_owned();
    (told, output.status.code().unwrap())
}

#[test]
fn a_store_is_checked_and_exported_while_it_is_used_and_checked_while_it_is_not() {
    let mut daemon = Daemon::start_with(&[("VMAN_NETWORK_MODE", "none")]);
    daemon.tiny_vms(&["one", "two"]);
    let (socket, storage) = (daemon.socket(), daemon.storage());
    let (socket, storage) = (socket.to_str().unwrap(), storage.to_str().unwrap());
    let (told, code) = store(&daemon, &["check", "--socket", socket]);
    assert!(
        code == 0 && told.contains("2 vms") && told.contains("all is well"),
        "{told}"
    );
    let (told, code) = store(&daemon, &["export", "--socket", socket]);
    let last: Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    assert_eq!((code, &last["end"]), (0, &json!(true)), "{told}");
    assert!(told.contains(r#""table":"vms","key":"two""#), "{told}");
    let offline = ["check", "--offline", "--storage-path", storage];
    let (told, code) = store(&daemon, &offline);
    assert!(
        code == 4 && told.contains("stop it first"),
        "{code}: {told}"
    );
    daemon.terminate();
    let (told, code) = store(&daemon, &offline);
    assert!(code == 0 && told.contains("all is well"), "{code}: {told}");
    let manifest = daemon.storage().join("manifests/vms/two.json");
    fs::remove_file(manifest).unwrap();
    let (told, code) = store(&daemon, &offline);
    assert!(
        code == 0 && told.contains("note: manifest vms/two is missing"),
        "{code}: {told}"
    );

    // A flipped byte somewhere in a record, which redb or its own checksum finds.
    let file = daemon.storage().join("vman.redb");
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(4).position(|bytes| bytes == b"tiny").unwrap();
    bytes[at] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let (told, code) = store(&daemon, &offline);
    assert!(code == 1, "{told}");
    assert!(
        told.contains("corrupt") || told.contains("cannot be read"),
        "{told}"
    );
    assert_eq!(fs::read(&file).unwrap(), bytes, "it is left as it is");
}
