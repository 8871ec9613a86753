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
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    os::unix::net::UnixListener,
};
use vman::host::store_redb::RedbStorage;
use vman_actors::{
    ports::{Row, Storage, Table},
    store::codec::{Kind, decode, encode},
};
use vman_model::{
    Incarnation, Revision,
    vm::{Desired, Phase, VmRecord},
};

/// Changes a VM's record while no daemon runs.
fn forge(daemon: &mut Daemon, vm: &str, change: impl FnOnce(&mut VmRecord)) {
    daemon.terminate();
    let storage = RedbStorage::new(daemon.storage().join("vman.redb"));
    storage.open().unwrap();
    let (table, key) = (Table::Vms, vm.as_bytes().to_vec());
    let bytes = storage.get(table, &key).unwrap().unwrap();
    let (revision, mut record): (Revision, VmRecord) = decode(Kind::Vm, &bytes).unwrap();
    change(&mut record);
    let value = Some(encode(Kind::Vm, &(revision, record)));
    storage.commit(&[Row { table, key, value }]).unwrap();
    drop(storage);
    daemon.serve();
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
        forge(&mut daemon, "a", forged);
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
