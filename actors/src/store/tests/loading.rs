//! Reading the state back: rot, newer versions, storages that do not open.

use super::given::{Store, make, template};
use crate::{
    fakes::{MemoryStorage, NextCommit},
    ports::{LoadError, Row, Storage, Table},
    store::codec::{self, Kind},
};
use ractor::SpawnErr;
use vman_model::{EventKind, Revision};

fn plant(storage: &MemoryStorage, table: Table, key: &[u8], value: Option<Vec<u8>>) {
    let key = key.to_vec();
    storage.plant(Row { table, key, value });
}

/// A store that knows the templates `a` and `b`, stopped.
async fn filled() -> MemoryStorage {
    let store = Store::start().await;
    for name in ["a", "b"] {
        store.handle.commit(make(name)).await.unwrap();
    }
    store.actor.stop(None);
    store.until_dead().await;
    store.storage
}

async fn why_not(storage: MemoryStorage) -> String {
    match Store::start_on(storage).await {
        Err(SpawnErr::StartupFailed(why)) => why.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it has started"),
    }
}

#[tokio::test]
async fn unreadable_rows_are_set_aside_reported_once_and_stop_no_other() {
    let storage = filled().await;
    let row = storage.get(Table::Templates, b"a").unwrap().unwrap();
    let mut rotten = row.clone();
    *rotten.last_mut().unwrap() ^= 1;
    plant(&storage, Table::Templates, b"a", Some(rotten));
    plant(&storage, Table::Templates, b"/../etc", Some(row.clone()));
    plant(&storage, Table::Vms, b"a", Some(row));
    plant(&storage, Table::Vms, &[0xff, 0xfe], Some(vec![]));
    plant(&storage, Table::Vms, &[0xff, 0xff], Some(vec![0; 5]));
    let store = Store::start_on(storage.clone()).await.unwrap();
    let inventory = store.handle.inventory();
    assert!(inventory.templates.contains_key("b"));
    assert_eq!(inventory.templates.len(), 1);
    assert!(inventory.vms.is_empty());
    let names: Vec<_> = inventory
        .quarantined
        .iter()
        .map(|q| q.row.as_str())
        .collect();
    let expected = [
        "templates//../etc",
        "templates/a",
        r"vms/\xff\xfe",
        r"vms/\xff\xff",
        "vms/a",
    ];
    assert_eq!(names, expected);
    let told = inventory.recent_events.iter();
    let told = told.filter(|event| event.what.kind == EventKind::RecordQuarantined);
    assert_eq!(told.count(), 5);
    let again = store.successor().await.handle.inventory();
    assert_eq!(again.revision, inventory.revision, "nothing new is told");
    assert_eq!(again.quarantined.len(), 5);
    let kept = storage.get(Table::Quarantine, b"vms/\\xff\\xff").unwrap();
    assert!(
        kept.unwrap().ends_with(&[0, 0, 0, 0, 0, 0]),
        "the bytes are kept"
    );
}

#[tokio::test]
async fn an_unreadable_row_on_a_full_storage_is_reported_and_stops_nothing() {
    let storage = filled().await;
    plant(&storage, Table::Vms, b"x", Some(vec![1, 2, 3]));
    storage.then(NextCommit::NoSpace);
    let store = Store::start_on(storage).await.unwrap();
    let inventory = store.handle.inventory();
    assert_eq!(inventory.templates.len(), 2);
    assert_eq!(inventory.quarantined.len(), 1);
    store.handle.commit(make("c")).await.unwrap();
    let inventory = store.successor().await.handle.inventory();
    assert_eq!(
        inventory.quarantined.len(),
        1,
        "the next start sets it aside"
    );
    assert_eq!(inventory.templates.len(), 3);
}

#[tokio::test]
async fn a_row_of_a_newer_schema_stops_the_start_and_a_flipped_bit_does_not() {
    for table in [Table::Templates, Table::Events, Table::Meta] {
        let storage = filled().await;
        let (key, row) = storage.load(table).unwrap().pop().unwrap();
        let mut newer = row.clone();
        newer[3] = 2;
        let sum = crc32c::crc32c_append(crc32c::crc32c(&newer[..9]), &newer[13..]);
        newer[9..13].copy_from_slice(&sum.to_le_bytes());
        plant(&storage, table, &key, Some(newer));
        let why = why_not(storage.clone()).await;
        assert!(why.contains("newer VMAN (schema 2"), "{why}");
        let mut flipped = row;
        flipped[3] ^= 2;
        plant(&storage, table, &key, Some(flipped));
        let store = Store::start_on(storage).await.unwrap();
        let inventory = store.handle.inventory();
        assert!(inventory.templates.contains_key("a"), "{table:?}");
    }
}

#[tokio::test]
async fn revisions_never_repeat_when_the_last_one_is_lost() {
    for damage in [None, Some(vec![0; 20])] {
        let storage = filled().await;
        plant(&storage, Table::Meta, b"revision", damage);
        let store = Store::start_on(storage).await.unwrap();
        let next = store.handle.commit(make("c")).await.unwrap();
        assert!(next.revision > Revision(2));
    }
}

#[tokio::test]
async fn a_storage_that_does_not_open_is_told_and_never_an_empty_inventory() {
    let locked = LoadError::Locked {
        path: "store".to_owned(),
        holder: " (pid 7)".to_owned(),
    };
    let corrupt = LoadError::Corrupt {
        path: "store".to_owned(),
        error: "bad magic".to_owned(),
    };
    for (error, told) in [(locked, "pid 7"), (corrupt, "left untouched")] {
        let storage = filled().await;
        storage.fail_open(error);
        let why = why_not(storage.clone()).await;
        assert!(why.contains(told), "{why}");
        let store = Store::start_on(storage).await.unwrap();
        assert_eq!(store.handle.inventory().templates.len(), 2);
    }
}

#[tokio::test]
async fn a_template_reads_back_as_it_was_written() {
    let storage = filled().await;
    let row = storage.get(Table::Templates, b"b").unwrap().unwrap();
    let read: (Revision, vman_model::TemplateRecord) = codec::decode(Kind::Template, &row).unwrap();
    assert_eq!(read, (Revision(2), template("b")));
}
