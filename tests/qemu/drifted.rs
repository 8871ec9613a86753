//! Differences that only a store from another time, or a hand in the folders, leads to: produced
//! on real QEMU and real files.

use crate::{
    observed::{found, make_old, only},
    support::{
        can_run,
        daemon::{Daemon, PATIENCE},
        host, wait_for,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    os::unix::{fs::MetadataExt, net::UnixListener},
};
use vman::host::store_redb::RedbStorage;
use vman_actors::{
    ports::{Row, Storage, Table},
    store::codec::{Kind, decode, encode},
};
use vman_model::{
    Incarnation, OperationRecord, Revision, UnixMs,
    vm::{Desired, Phase, VmRecord},
};

/// The store, while no daemon runs.
fn store(daemon: &mut Daemon) -> RedbStorage {
    daemon.terminate();
    let storage = RedbStorage::new(daemon.storage().join("vman.redb"));
    storage.open().unwrap();
    storage
}

/// Changes a record.
fn change<T: DeserializeOwned + Serialize>(
    storage: &RedbStorage,
    (table, kind, key): (Table, Kind, &str),
    change: impl FnOnce(&mut T),
) {
    let key = key.as_bytes().to_vec();
    let bytes = storage.get(table, &key).unwrap().unwrap();
    let (revision, mut record): (Revision, T) = decode(kind, &bytes).unwrap();
    change(&mut record);
    let value = Some(encode(kind, &(revision, record)));
    storage.commit(&[Row { table, key, value }]).unwrap();
}

/// A class, and what is done to the record for it.
type Forged = (&'static str, fn(&mut VmRecord));

fn at_rest(record: &mut VmRecord) {
    (record.phase, record.desired) = (Phase::Stopped, Desired::Stopped);
    (record.process, record.claim) = (None, None);
}

#[test]
fn a_qemu_of_a_vm_that_is_recorded_stopped_and_one_of_an_earlier_life_are_ended() {
    let name = "a_qemu_of_a_vm_that_is_recorded_stopped_and_one_of_an_earlier_life_are_ended";
    if !can_run(name) {
        return;
    }
    let classes: [Forged; 2] = [
        ("qemu_of_stopped_vm", at_rest),
        ("qemu_of_another_life", |record| {
            at_rest(record);
            record.incarnation = Incarnation(record.incarnation.0 + 1);
        }),
    ];
    for (class, forged) in classes {
        let mut daemon = Daemon::start();
        daemon.tiny_vms(&["a", "b"]);
        for vm in ["a", "b"] {
            daemon.act(vm, "start");
        }
        let (pid, other) = (daemon.pid_of("a"), daemon.pid_of("b"));
        change(&store(&mut daemon), (Table::Vms, Kind::Vm, "a"), forged);
        daemon.serve();
        let ended = wait_for(&format!("{class} to be ended"), PATIENCE, || {
            let now = found(&daemon, class);
            let events = daemon.get("/events?limit=1000").to_string();
            (!host::lives(pid)).then_some((now, events))
        });
        assert!(ended.1.contains(&format!("{class}: a")), "{ended:?}");
        wait_for(&format!("no {class} any more"), PATIENCE, || {
            found(&daemon, class).is_empty().then_some(())
        });
        assert!(host::lives(other), "{class}: a guest nobody touched");
        assert_eq!(daemon.act("a", "start")["status"], "succeeded", "{class}");
    }
}

#[test]
fn a_short_disk_is_told_and_a_stale_runtime_folder_is_removed() {
    if !can_run("a_short_disk_is_told_and_a_stale_runtime_folder_is_removed") {
        return;
    }
    let daemon = Daemon::start();
    let disk = json!({"name": "d", "size_mib": 16, "format": "raw"});
    daemon.post("/disks", &disk).expect(201);
    assert_eq!(found(&daemon, "disk_file_short"), Vec::<Value>::new());
    let file = daemon.storage().join("disks/d.raw");
    let file = File::options().write(true).open(file).unwrap();
    file.set_len(100).unwrap();
    let told = only(&daemon, "disk_file_short");
    assert_eq!(
        (&told["resource_id"], &told["action"]),
        (&json!("d"), &json!("reported"))
    );

    let folder = daemon.folder().join("run/vms/ghost");
    fs::create_dir_all(&folder).unwrap();
    drop(UnixListener::bind(folder.join("qmp.sock")).unwrap());
    assert_eq!(only(&daemon, "runtime_folder_stale")["action"], "waiting");
    make_old(&folder);
    assert_eq!(only(&daemon, "runtime_folder_stale")["action"], "removed");
    assert!(!folder.exists());
}

#[test]
fn an_operation_that_is_open_for_hours_is_told_until_it_has_ended() {
    if !can_run("an_operation_that_is_open_for_hours_is_told_until_it_has_ended") {
        return;
    }
    let mut daemon = Daemon::start();
    daemon.tiny_vms(&["a"]);
    daemon.act("a", "start");
    let pid = daemon.pid_of("a");
    // Firmware hears no power button: this stop lasts as long as it may.
    let stop = daemon.post("/vms/a/actions/stop?timeout_s=3600", &Value::Null);
    let id = stop.expect(202)["id"].as_str().unwrap().to_owned();
    assert_eq!(found(&daemon, "operation_overdue"), Vec::<Value>::new());

    let hours_ago = |at: UnixMs| UnixMs(at.0 - 3 * 3_600 * 1_000);
    let storage = store(&mut daemon);
    let row = (Table::Operations, Kind::Operation, id.as_str());
    change(&storage, row, |operation: &mut OperationRecord| {
        operation.created_at = hours_ago(operation.created_at);
    });
    change(
        &storage,
        (Table::Vms, Kind::Vm, "a"),
        |vm: &mut VmRecord| {
            for open in &mut vm.operations {
                open.created_at = hours_ago(open.created_at);
            }
        },
    );
    drop(storage);
    daemon.serve();
    let told = only(&daemon, "operation_overdue");
    assert_eq!(
        (&told["resource_id"], &told["action"]),
        (&json!(id), &json!("reported"))
    );
    assert!(told["details"].to_string().contains("vm.stop"), "{told}");
    assert!(host::lives(pid), "it is only told");

    daemon.act("a", "stop?force=true");
    assert_eq!(found(&daemon, "operation_overdue"), Vec::<Value>::new());
}

#[test]
fn a_log_that_cannot_be_cut_is_told_and_cut_when_it_can_be() {
    if !can_run("a_log_that_cannot_be_cut_is_told_and_cut_when_it_can_be") {
        return;
    }
    let daemon = Daemon::start();
    daemon.tiny_vms(&["a", "b"]);
    daemon.act("a", "start");
    daemon.act("b", "start");
    let log = |vm: &str| daemon.storage().join("vms").join(vm).join("console.log");
    assert_eq!(found(&daemon, "log_not_bounded"), Vec::<Value>::new());

    let (log, aside) = (log("a"), daemon.folder().join("aside"));
    fs::rename(&log, &aside).unwrap();
    fs::create_dir(&log).unwrap();
    fs::write(&aside, vec![b'x'; 8 << 20]).unwrap();
    let told = only(&daemon, "log_not_bounded");
    assert_eq!(told["action"], "reported");
    let why = told["details"].to_string();
    assert!(why.contains("vms/a/console.log"), "{why}");

    fs::remove_dir(&log).unwrap();
    fs::rename(&aside, &log).unwrap();
    assert_eq!(found(&daemon, "log_not_bounded"), Vec::<Value>::new());
    let kept = fs::metadata(&log).unwrap().blocks() * 512;
    assert!(kept <= 2 << 20, "{kept} bytes");
}

#[test]
fn a_folder_that_cannot_be_read_is_told_and_what_was_not_seen_is_not_judged() {
    let name = "a_folder_that_cannot_be_read_is_told_and_what_was_not_seen_is_not_judged";
    if !can_run(name) {
        return;
    }
    let daemon = Daemon::start();
    let disk = json!({"name": "d", "size_mib": 16, "format": "raw"});
    daemon.post("/disks", &disk).expect(201);
    let orphan = daemon.storage().join("disks/orphan.raw");
    fs::write(&orphan, b"precious").unwrap();
    make_old(&orphan);
    let (disks, aside) = (
        daemon.storage().join("disks"),
        daemon.folder().join("aside"),
    );
    fs::rename(&disks, &aside).unwrap();
    fs::write(&disks, b"in the way").unwrap();

    let told = only(&daemon, "check_failed");
    assert_eq!(
        (&told["resource_id"], &told["action"]),
        (&json!("folders"), &json!("reported"))
    );
    for class in ["disk_file_missing", "file_without_record", "file_foreign"] {
        assert_eq!(found(&daemon, class), Vec::<Value>::new());
    }
    fs::remove_file(&disks).unwrap();
    fs::rename(&aside, &disks).unwrap();
    assert_eq!(only(&daemon, "file_without_record")["action"], "put_away");
    assert_eq!(found(&daemon, "check_failed"), Vec::<Value>::new());
}
