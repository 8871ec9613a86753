//! A store that was lost under running VMs, and made again.

use crate::support::{
    can_run,
    daemon::{Daemon, PATIENCE},
    host, wait_for,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

/// What is done to the store's file, and whether a start is refused for it.
type Damage = (&'static str, fn(&Path));

const DAMAGES: &[Damage] = &[
    ("truncated", |store| {
        let length = fs::metadata(store).unwrap().len();
        let file = fs::File::options().write(true).open(store).unwrap();
        file.set_len(length / 3).unwrap();
    }),
    ("zeroed", |store| {
        let length = fs::metadata(store).unwrap().len();
        fs::write(store, vec![0; usize::try_from(length).unwrap()]).unwrap();
    }),
    ("bits flipped", |store| {
        let mut bytes = fs::read(store).unwrap();
        for byte in bytes.iter_mut().step_by(97) {
            *byte ^= 0x10;
        }
        fs::write(store, bytes).unwrap();
    }),
    ("deleted", |store| fs::remove_file(store).unwrap()),
    ("deleted with its marker", |store| {
        fs::remove_file(store).unwrap();
        fs::remove_file(store.with_extension("redb.created")).unwrap();
    }),
];

/// Runs another command of the program with the daemon's settings.
fn vman(daemon: &Daemon, words: &[&str]) -> Output {
    let plain = daemon.command();
    let mut command = Command::new(plain.get_program());
    command.args(words).env_clear().current_dir(daemon.folder());
    for (name, value) in plain.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command.output().unwrap()
}

/// All records, without what is told of the moment.
fn records(daemon: &Daemon) -> Value {
    let list = |what: &str| daemon.get(&format!("/{what}"));
    let mut vms = list("vms");
    for vm in vms.as_array_mut().unwrap() {
        let vm = vm.as_object_mut().unwrap();
        vm.retain(|key, _| {
            [
                "id",
                "state",
                "pid",
                "incarnation",
                "mac",
                "disks",
                "vm_template",
                "labels",
                "desired",
            ]
            .contains(&key.as_str())
        });
    }
    let mut disks = list("disks");
    for disk in disks.as_array_mut().unwrap() {
        let disk = disk.as_object_mut().unwrap();
        disk.remove("revision");
        disk.remove("allocated_bytes");
    }
    let names = |what: &str| -> Vec<Value> {
        let all = list(what);
        all.as_array()
            .unwrap()
            .iter()
            .map(|row| row["name"].clone())
            .collect()
    };
    json!({
        "vms": vms,
        "disks": disks,
        "templates": names("templates"),
        "images": names("images"),
        "tokens": names("tokens"),
    })
}

fn furnish(daemon: &Daemon) {
    daemon.tiny_vms(&["runs", "paused", "rests", "new"]);
    let image = daemon.folder().join("image");
    fs::write(&image, vec![0; 1 << 20]).unwrap();
    daemon.put_image("blank", "disk", &image);
    daemon
        .post("/tokens", &json!({"name": "ci", "scope": "read"}))
        .expect(201);
    daemon
        .post("/disks", &json!({"name": "data", "size_mib": 16}))
        .expect(201);
    daemon
        .post("/disks", &json!({"name": "spare", "size_mib": 16}))
        .expect(201);
    for vm in ["runs", "paused", "rests"] {
        daemon.act(vm, "start");
    }
    daemon.act("paused", "pause");
    daemon.act("rests", "stop?force=true");
    daemon
        .post("/disks/data/attach", &json!({"vm_id": "rests"}))
        .expect(200);
}

/// The manifests follow the store within a moment.
fn wait_kept(daemon: &Daemon) {
    let attached = daemon.storage().join("manifests/disks/data.json");
    wait_for("the manifests to follow", PATIENCE, || {
        let text = fs::read_to_string(&attached).ok()?;
        text.contains("\"vm_id\": \"rests\"").then_some(())
    });
}

#[test]
fn a_lost_store_is_refused_and_made_again_with_everything_and_the_same_qemus() {
    let name = "a_lost_store_is_refused_and_made_again_with_everything_and_the_same_qemus";
    if !can_run(name) {
        return;
    }
    let mut daemon = Daemon::start();
    furnish(&daemon);
    wait_kept(&daemon);
    let before = records(&daemon);
    let qemus = daemon.qemus();
    assert_eq!(qemus.len(), 2);
    let store = daemon.storage().join("vman.redb");
    for (what, damage) in DAMAGES {
        daemon.kill();
        damage(&store);
        daemon.spawn();
        assert!(!daemon.ended().success(), "{what}: an empty start");
        assert!(daemon.log().contains("vman store rebuild"), "{what}");
        let output = vman(&daemon, &["store", "rebuild"]);
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{what}: {error}");
        assert!(told.contains("2 VMs have a running QEMU"), "{what}: {told}");
        assert!(!told.contains("note:"), "{what}: {told}");
        daemon.serve();
        assert_eq!(records(&daemon), before, "{what}");
        assert_eq!(daemon.qemus(), qemus, "{what}");
    }
    for vm in ["runs", "paused"] {
        assert_eq!(daemon.act(vm, "stop?force=true")["status"], "succeeded");
    }
    daemon.act("rests", "start");
    assert!(daemon.delete("/vms/rests").status < 300);
    for qemu in qemus {
        assert!(!host::lives(qemu.pid));
    }
}

#[test]
fn a_store_that_can_be_read_is_rebuilt_only_by_force_and_never_under_a_daemon() {
    let mut daemon = Daemon::start();
    daemon.tiny_template();
    let under_a_daemon = vman(&daemon, &["store", "rebuild", "--force"]);
    assert_eq!(under_a_daemon.status.code(), Some(4));
    let manifest = daemon.storage().join("manifests/templates/tiny.json");
    wait_for("the manifest", PATIENCE, || manifest.exists().then_some(()));
    daemon.kill();
    let readable = vman(&daemon, &["store", "rebuild"]);
    let told = String::from_utf8_lossy(&readable.stderr).into_owned();
    assert_eq!(readable.status.code(), Some(1));
    assert!(told.contains("--force"), "{told}");
    let forced = vman(&daemon, &["store", "rebuild", "--force"]);
    assert!(forced.status.success());
    daemon.serve();
    assert_eq!(daemon.get("/templates")[0]["name"], "tiny");
}
