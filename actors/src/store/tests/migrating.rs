//! From the schema before to this build's. There is one released schema, so the one before it is the tests' own:
//! schema 0, whose templates had no labels and whose revision was one byte.

use super::given::{Store, make, template};
use crate::{
    fakes::{MemoryStorage, NextCommit},
    ports::{CommitError, Row, Storage, Table},
    store::{
        codec::{self, Kind, seal},
        load::StoreLoadError,
        migrate::{BACKUP_SUFFIX, Schemas, Step, bring_up, missing_steps, survey},
    },
};
use serde::{Deserialize, Serialize};
use vman_model::{Revision, TemplateRecord};

/// A template of schema 0.
#[derive(Serialize, Deserialize)]
struct TemplateV0 {
    name: String,
    cpus: u8,
}

const STEPS: &[Step] = &[
    Step {
        kind: Kind::Template,
        from: 0,
        convert: template_0_to_1,
    },
    Step {
        kind: Kind::Meta,
        from: 0,
        convert: |old| match old {
            [number] => Ok(payload(&Revision(u64::from(*number)))),
            _ => Err("one byte was expected".to_owned()),
        },
    },
    Step {
        kind: Kind::Event,
        from: 0,
        convert: |old| Ok(old.to_vec()),
    },
];
const SCHEMAS: Schemas = Schemas::with(STEPS);

fn payload<T: Serialize>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, bincode::config::standard()).unwrap()
}

fn template_0_to_1(old: &[u8]) -> Result<Vec<u8>, String> {
    let (old, _): (TemplateV0, usize) =
        bincode::serde::decode_from_slice(old, bincode::config::standard())
            .map_err(|error| error.to_string())?;
    let mut new = template(&old.name);
    new.size.cpu_count = u32::from(old.cpus);
    new.size.labels.clear();
    Ok(payload(&(Revision(1), new)))
}

/// A template of schema 0 as its VMAN would have written it: the bytes are golden.
const GOLDEN_TEMPLATE: &[u8] = b"VM\x01\x00\x00\x05\x00\x00\x00\x68\x1f\x1e\xa1\x03old\x04";

fn plant(storage: &MemoryStorage, table: Table, key: &[u8], value: Vec<u8>) {
    storage.plant(Row {
        table,
        key: key.to_vec(),
        value: Some(value),
    });
}

/// A store of schema 0: templates, an event and the revision.
async fn old_store() -> MemoryStorage {
    let store = Store::start().await;
    for name in ["a", "b"] {
        store.handle.commit(make(name)).await.unwrap();
    }
    store.actor.stop(None);
    store.until_dead().await;
    let storage = store.storage;
    for (key, row) in storage.load(Table::Events).unwrap() {
        let old = seal(Kind::Event, 0, &row[13..]);
        plant(&storage, Table::Events, &key, old);
    }
    for name in ["a", "b"] {
        let old = payload(&TemplateV0 {
            name: name.to_owned(),
            cpus: 3,
        });
        plant(
            &storage,
            Table::Templates,
            name.as_bytes(),
            seal(Kind::Template, 0, &old),
        );
    }
    plant(&storage, Table::Templates, b"old", GOLDEN_TEMPLATE.to_vec());
    plant(
        &storage,
        Table::Meta,
        b"revision",
        seal(Kind::Meta, 0, &[9]),
    );
    storage
}

fn rows(storage: &MemoryStorage) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
    storage.open().unwrap();
    let of_table = |table| {
        let rows = storage.load(table).unwrap().into_iter();
        rows.map(move |(key, value)| (table, key, value))
    };
    Table::ALL.into_iter().flat_map(of_table).collect()
}

#[tokio::test]
async fn a_store_of_the_schema_before_is_brought_up_and_its_backup_is_what_it_was() {
    let storage = old_store().await;
    let before = rows(&storage);
    let told = survey(&storage, &SCHEMAS).unwrap();
    assert_eq!(told.older.get(&("templates", 0)), Some(&3), "{told:?}");
    assert_eq!(told.older.values().sum::<usize>(), before.len());
    bring_up(&storage, &SCHEMAS).unwrap();
    let backup = storage.restored(BACKUP_SUFFIX).expect("a backup");
    assert_eq!(rows(&backup), before);

    let store = Store::start_on(storage).await.unwrap();
    let inventory = store.handle.inventory();
    assert!(
        inventory.quarantined.is_empty(),
        "{:?}",
        inventory.quarantined
    );
    assert_eq!(inventory.revision, Revision(9));
    let names: Vec<_> = inventory
        .templates
        .keys()
        .map(ToString::to_string)
        .collect();
    assert_eq!(names, ["a", "b", "old"]);
    let old: &TemplateRecord = &inventory.templates.get("old").unwrap().value;
    assert_eq!((old.size.cpu_count, old.size.labels.len()), (4, 0));
    let events = store.handle.events().after(Revision(0), 100).await.unwrap();
    assert_eq!(events.len(), 2, "events were brought up too");
    store.handle.commit(make("new")).await.unwrap();
}

#[tokio::test]
async fn a_store_that_is_brought_up_is_not_touched_again() {
    let storage = old_store().await;
    bring_up(&storage, &SCHEMAS).unwrap();
    let (after, commits) = (rows(&storage), storage.commits());
    storage.fail_backup(CommitError::NoSpace);
    bring_up(&storage, &SCHEMAS).unwrap();
    assert_eq!(rows(&storage), after);
    assert_eq!(storage.commits(), commits);
}

#[tokio::test]
async fn without_room_for_the_backup_nothing_is_changed_and_the_start_says_why() {
    let storage = old_store().await;
    let before = rows(&storage);
    storage.fail_backup(CommitError::NoSpace);
    let refused = bring_up(&storage, &SCHEMAS).unwrap_err();
    assert_eq!(refused, StoreLoadError::Backup(CommitError::NoSpace));
    assert!(
        refused.to_string().contains("nothing was changed"),
        "{refused}"
    );
    assert_eq!(rows(&storage), before);
}

#[tokio::test]
async fn a_bring_up_that_dies_in_its_commit_is_whole_or_not_at_all_and_is_finished_by_the_next() {
    for outcome in [
        NextCommit::NoSpace,
        NextCommit::UnknownNotWritten,
        NextCommit::UnknownButWritten,
    ] {
        let storage = old_store().await;
        let before = rows(&storage);
        storage.then(outcome.clone());
        let died = bring_up(&storage, &SCHEMAS);
        assert!(matches!(died, Err(StoreLoadError::Migrate(_))), "{died:?}");
        let found = survey_again(&storage);
        let old = found.older.values().sum::<usize>();
        assert!(old == 0 || old == before.len(), "{outcome:?}: {found:?}");
        bring_up(&storage, &SCHEMAS).unwrap();
        assert!(survey_again(&storage).older.is_empty());
        let backup = storage.restored(BACKUP_SUFFIX).expect("a backup");
        assert_eq!(rows(&backup), before, "{outcome:?}");
    }
}

fn survey_again(storage: &MemoryStorage) -> crate::store::migrate::Survey {
    storage.open().unwrap();
    survey(storage, &SCHEMAS).unwrap()
}

#[tokio::test]
async fn a_newer_row_among_old_ones_is_refused_before_anything_is_touched() {
    for table in [Table::Templates, Table::Events, Table::Tokens] {
        let storage = old_store().await;
        let kind = match table {
            Table::Templates => Kind::Template,
            Table::Events => Kind::Event,
            _ => Kind::Token,
        };
        plant(&storage, table, b"zzzzzzzz", seal(kind, 7, b"future"));
        let before = rows(&storage);
        let refused = bring_up(&storage, &SCHEMAS).unwrap_err();
        assert_eq!(refused, StoreLoadError::Newer { found: 7, known: 1 });
        let said = refused.to_string();
        for what_to_do in ["install that version again", ".before-upgrade"] {
            assert!(said.contains(what_to_do), "{said}");
        }
        assert_eq!(rows(&storage), before);
        assert!(storage.restored(BACKUP_SUFFIX).is_none());
    }
}

#[tokio::test]
async fn an_old_row_that_cannot_be_read_stops_no_other_and_is_set_aside() {
    let storage = old_store().await;
    plant(
        &storage,
        Table::Templates,
        b"bad",
        seal(Kind::Template, 0, b"\xff"),
    );
    plant(
        &storage,
        Table::Leases,
        b"lost",
        seal(Kind::Lease, 0, b"no step leads up"),
    );
    let told = survey(&storage, &SCHEMAS).unwrap();
    assert_eq!(told.unreadable.values().sum::<usize>(), 2, "{told:?}");
    bring_up(&storage, &SCHEMAS).unwrap();
    let store = Store::start_on(storage).await.unwrap();
    let inventory = store.handle.inventory();
    assert_eq!(inventory.templates.len(), 3);
    let aside: Vec<_> = inventory.quarantined.iter().map(|q| &*q.row).collect();
    assert_eq!(aside, ["leases/lost", "templates/bad"]);
}

#[test]
fn every_schema_since_the_first_released_has_its_way_up() {
    assert_eq!(missing_steps(&Schemas::CURRENT), []);
    let row = codec::encode(Kind::Meta, &Revision(5));
    assert_eq!(row[3..5], Kind::Meta.schema().to_le_bytes());
}
