//! A store that is well, each way in which it may not be, and what is exported of it.

use super::{Checked, at_rest, rows};
use crate::{
    fakes::MemoryStorage,
    manifests::codec as manifest,
    ports::{FoundManifest, ManifestName, Row, Storage, Table},
    store::{
        codec::{Kind, encode},
        inventory::event_key,
        load::revision_row,
        tests::given,
    },
};
use serde::Serialize;
use std::collections::BTreeSet;
use vman_model::{
    DiskFile, DiskId, DiskRecord, ImageName, ImageRecord, OperationId, OperationStatus, Revision,
    TokenId, VmId, VmUuid,
    manifest::Kept,
    vm::{Phase, VmRecord},
};

const LAST: Revision = Revision(42);

fn put<T: Serialize>(storage: &MemoryStorage, table: Table, key: &str, value: &T) {
    let kind = match table {
        Table::Vms => Kind::Vm,
        Table::Disks => Kind::Disk,
        Table::Images => Kind::Image,
        Table::Operations => Kind::Operation,
        Table::Leases => Kind::Lease,
        Table::Forwards => Kind::Forward,
        Table::Tokens => Kind::Token,
        Table::Templates => Kind::Template,
        other => panic!("{other:?} is put otherwise"),
    };
    let value = Some(encode(kind, &(Revision(7), value)));
    let key = key.as_bytes().to_vec();
    storage.plant(Row { table, key, value });
}

fn data_disk() -> DiskRecord {
    DiskRecord {
        id: DiskId::parse("data-1").unwrap(),
        root: false,
        ..given::disk()
    }
}

fn image(name: &str) -> ImageRecord {
    let name = ImageName::parse(name).unwrap();
    ImageRecord {
        name,
        ..given::image()
    }
}

/// One of everything, and nothing wrong with it.
fn well() -> MemoryStorage {
    let storage = MemoryStorage::new();
    storage.open().unwrap();
    put(
        &storage,
        Table::Templates,
        "small",
        &given::template("small"),
    );
    put(&storage, Table::Vms, "web-1", &given::vm());
    put(&storage, Table::Disks, "web-1-root", &given::disk());
    put(&storage, Table::Disks, "data-1", &data_disk());
    for name in ["debian-13", "vmlinuz", "initrd.img"] {
        put(&storage, Table::Images, name, &image(name));
    }
    let mut open = given::operation("op-1");
    open.status = OperationStatus::Running;
    put(&storage, Table::Operations, "op-1", &open);
    put(
        &storage,
        Table::Operations,
        "op-0",
        &given::operation("op-0"),
    );
    put(&storage, Table::Leases, "10.0.0.7", &given::lease());
    let forward = given::forward();
    put(&storage, Table::Forwards, forward.id.as_str(), &forward);
    let token = given::token();
    put(&storage, Table::Tokens, token.id.as_str(), &token);
    storage.plant(revision_row(LAST));
    let (key, value) = (event_key(LAST), encode(Kind::Event, &given::event()));
    storage.plant(Row {
        table: Table::Events,
        key,
        value: Some(value),
    });
    storage
}

fn erase(storage: &MemoryStorage, table: Table, key: &str) {
    let key = key.as_bytes().to_vec();
    storage.plant(Row {
        table,
        key,
        value: None,
    });
}

fn change_vm(storage: &MemoryStorage, change: impl FnOnce(&mut VmRecord)) {
    let mut vm = given::vm();
    change(&mut vm);
    put(storage, Table::Vms, "web-1", &vm);
}

fn change_disk(storage: &MemoryStorage, change: impl FnOnce(&mut DiskRecord)) {
    let mut disk = data_disk();
    change(&mut disk);
    put(storage, Table::Disks, "data-1", &disk);
}

fn told(checked: &Checked) -> String {
    let faults = checked.faults.iter();
    let lines: Vec<_> = faults
        .map(|fault| format!("{}: {}", fault.row, fault.detail))
        .collect();
    lines.join(
        "
",
    )
}

fn spoil(storage: &MemoryStorage, table: Table, key: Vec<u8>) {
    let mut value = storage.get(table, &key).unwrap().expect("it is there");
    *value.last_mut().unwrap() ^= 1;
    storage.plant(Row {
        table,
        key,
        value: Some(value),
    });
}

type Damage = (&'static str, fn(&MemoryStorage));

/// What is done to a store that was well, and how the sentence begins that tells it.
const DAMAGES: [Damage; 22] = [
    ("vms/web-1: it cannot be read", |s| {
        spoil(s, Table::Vms, b"web-1".to_vec());
    }),
    ("events/42: it cannot be read", |s| {
        spoil(s, Table::Events, event_key(LAST));
    }),
    ("meta/revision: it cannot be read", |s| {
        spoil(s, Table::Meta, b"revision".to_vec());
    }),
    ("vms/other: the record in it is web-1's", |s| {
        put(s, Table::Vms, "other", &given::vm());
    }),
    ("vms/web-2: web-1 has the same UUID", |s| twin(s, |_| {})),
    ("vms/web-2: web-1 has the same MAC", |s| {
        twin(s, |vm| vm.uuid = VmUuid([8; 16]));
    }),
    (
        "tokens/ffffffffffffffff: 0a1b2c3d4e5f6071 has the same name",
        |s| {
            let mut token = given::token();
            token.id = TokenId::parse("ffffffffffffffff").unwrap();
            put(s, Table::Tokens, "ffffffffffffffff", &token);
        },
    ),
    ("disks/data-1: it belongs to VM gone", |s| {
        change_disk(s, |disk| disk.vm_id = Some(VmId::parse("gone").unwrap()));
    }),
    ("disks/data-1: it belongs to VM web-1, whose record", |s| {
        change_vm(s, |vm| vm.disks.clear());
    }),
    ("vms/web-1: its disk data-1 is not there", |s| {
        erase(s, Table::Disks, "data-1");
    }),
    ("vms/web-1: its disk data-1 does not belong", |s| {
        change_disk(s, |disk| disk.vm_id = None);
    }),
    ("vms/web-1: its disk data-1 is only being made", |s| {
        change_disk(s, |disk| disk.file = DiskFile::Making);
    }),
    ("vms/web-1: two of its disks", |s| {
        change_vm(s, |vm| vm.disks.push(vm.disks[0].clone()));
    }),
    (
        "leases/10.0.0.7: it is held by VM web-1, which is not",
        |s| erase(s, Table::Vms, "web-1"),
    ),
    ("leases/10.0.0.7: VM web-1 has no network card 3", |s| {
        let mut lease = given::lease();
        lease.nic = 3;
        put(s, Table::Leases, "10.0.0.7", &lease);
    }),
    ("leases/10.0.0.7: the network card", |s| {
        change_vm(s, |vm| vm.mac[5] ^= 1);
    }),
    ("forwards/udp-8080: it leads to VM web-1", |s| {
        erase(s, Table::Vms, "web-1");
    }),
    ("templates/small: its image vmlinuz", |s| {
        erase(s, Table::Images, "vmlinuz");
    }),
    ("disks/data-1: its image debian-13", |s| {
        erase(s, Table::Images, "debian-13");
    }),
    ("vms/web-1: it is stopped and its record still holds", |s| {
        change_vm(s, |vm| vm.phase = Phase::Stopped);
    }),
    ("vms/web-1: it has the operation op-1 open", |s| {
        erase(s, Table::Operations, "op-1");
    }),
    ("operations/op-2: it is open, and VM web-1 does not", |s| {
        let mut open = given::operation("op-2");
        (open.id, open.status) = (
            OperationId::parse("op-2").unwrap(),
            OperationStatus::Running,
        );
        put(s, Table::Operations, "op-2", &open);
    }),
];

fn twin(storage: &MemoryStorage, change: fn(&mut VmRecord)) {
    let mut vm = given::vm();
    vm.id = VmId::parse("web-2").unwrap();
    change(&mut vm);
    put(storage, Table::Vms, "web-2", &vm);
}

#[test]
fn a_store_that_is_well_is_told_as_that_and_each_damage_by_its_row() {
    let checked = rows(&well()).unwrap();
    assert_eq!(told(&checked), "");
    assert_eq!(checked.revision, LAST);
    assert_eq!(
        (
            checked.rows["vms"],
            checked.rows["disks"],
            checked.rows["events"]
        ),
        (1, 2, 1)
    );
    for (beginning, damage) in DAMAGES {
        let storage = well();
        damage(&storage);
        let told = told(&rows(&storage).unwrap());
        assert!(
            told.lines().any(|line| line.starts_with(beginning)),
            "{beginning}: {told}"
        );
    }
}

#[test]
fn a_row_that_a_start_set_aside_and_one_from_the_future_are_told() {
    let storage = well();
    let (key, value) = (b"vms/lost".to_vec(), Some(b"its checksum\0bytes".to_vec()));
    storage.plant(Row {
        table: Table::Quarantine,
        key,
        value,
    });
    storage.plant(revision_row(Revision(6)));
    let told = told(&rows(&storage).unwrap());
    assert!(told.contains("set it aside: its checksum"), "{told}");
    assert!(
        told.contains("vms/web-1: its revision 7 is beyond the last, 6"),
        "{told}"
    );
}

/// The manifests of the VM and of a disk of no record.
fn manifests() -> Vec<FoundManifest> {
    let mut stray = data_disk();
    stray.id = DiskId::parse("stray").unwrap();
    let kept = [Kept::of_vm(&given::vm()), Kept::Disk(stray)];
    let file = |kept: &Kept| {
        let (kind, key) = (kept.kind(), kept.key().to_owned());
        (
            ManifestName { kind, key },
            manifest::encode(Revision(7), kept),
        )
    };
    kept.iter().map(file).collect()
}

#[test]
fn manifests_that_a_daemon_left_behind_are_compared_and_told_as_notes() {
    let checked = at_rest(&well(), &manifests()).unwrap();
    assert_eq!(told(&checked), "");
    let notes = checked.notes.join("\n");
    assert!(notes.contains("disks/stray is of no record"), "{notes}");
    assert!(notes.contains("disks/data-1 is missing"), "{notes}");
    assert!(!notes.contains("vms/web-1"), "{notes}");
    let storage = well();
    change_vm(&storage, |vm| vm.link = vman_model::network::LinkState::Up);
    let notes = at_rest(&storage, &manifests()).unwrap().notes.join("\n");
    assert!(notes.contains("vms/web-1 tells something else"), "{notes}");
}

#[tokio::test]
async fn an_export_has_each_row_once_says_its_end_and_keeps_the_tokens_hash() {
    let storage = well();
    spoil(&storage, Table::Images, b"vmlinuz".to_vec());
    let handle =
        crate::store::StoreHandle::new(std::sync::Arc::default(), std::sync::Arc::new(storage));
    let mut export = handle.export(vman_model::UnixMs(5)).await.unwrap();
    let mut text = String::new();
    while let Some((lines, rest)) = export.next().await.unwrap() {
        text.push_str(&lines);
        export = rest;
    }
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let (first, last) = (&lines[0], lines.last().unwrap());
    assert_eq!(
        (&first["vman_export"], &first["revision"]),
        (&1.into(), &42.into())
    );
    let rows = &lines[1..lines.len() - 1];
    assert_eq!(
        (&last["end"], &last["rows"]),
        (&true.into(), &rows.len().into())
    );
    let names: BTreeSet<_> = rows
        .iter()
        .map(|row| format!("{}/{}", row["table"], row["key"]))
        .collect();
    assert_eq!((names.len(), rows.len()), (13, 13), "{names:?}");
    let of = |table: &str| rows.iter().find(|row| row["table"] == table).unwrap();
    assert_eq!(of("vms")["record"]["spec"]["template"], "small");
    assert_eq!(of("tokens")["record"]["name"], "ci");
    assert!(of("tokens")["record"].get("hash").is_none());
    let spoilt = rows.iter().find(|row| row["key"] == "vmlinuz").unwrap();
    assert!(
        spoilt["record"].is_null() && spoilt["error"].is_string(),
        "{spoilt}"
    );
}
