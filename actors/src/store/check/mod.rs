//! Checks the store while it is used, or while no daemon runs: that every row can be read, that
//! the records hold together (`relations.rs`), that the manifests tell the same (`compare.rs` beside
//! them).
//!
//! All but the event log is looked at as of one moment between two commits, so that work in
//! progress is no fault: whatever is committed holds together. What lasts only a moment elsewhere,
//! as a manifest that is yet to be written, is looked at again before it is told.
//! Must not: change anything, or delay a commit.

mod relations;

#[cfg(test)]
mod tests;

use super::{
    codec::DecodeError,
    handle::StoreHandle,
    inventory::{HOST_KEY, Inventory, Quarantined, Versioned, event_key},
    load::REVISION_KEY,
    row::{Record, read, row_name},
};
use crate::{
    manifests::{ManifestSlot, differing},
    ports::{FoundManifest, LoadError, ManifestFiles, Storage, Table, storage::KeyValue},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use vman_model::Revision;

/// Events that are read at once.
const PAGE: usize = 1_000;
/// How long manifests may be behind the store before that is told.
const KEPT_WITHIN: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What is wrong with one row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// `table/key`, or the file where the fault is not one row's.
    pub row: String,
    /// What is wrong, and what becomes of it.
    pub detail: String,
}

impl Fault {
    fn new(row: impl Into<String>, detail: impl Into<String>) -> Self {
        let (row, detail) = (row.into(), detail.into());
        Self { row, detail }
    }
}

/// What a check came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// The last revision at the moment that was looked at.
    pub revision: Revision,
    /// Rows that were read, by table.
    pub rows: BTreeMap<&'static str, usize>,
    /// Manifests that were compared.
    pub manifests: usize,
    /// What is wrong.
    pub faults: Vec<Fault>,
    /// What is worth knowing, and mends itself.
    pub notes: Vec<String>,
}

/// The rows as of one moment. Of the inventory, what is derived from others is left empty.
struct Moment {
    inventory: Inventory,
    told: Checked,
}

/// Looks at the rows alone, the event log too.
pub fn rows(storage: &dyn Storage) -> Result<Checked, LoadError> {
    Ok(with_events(storage)?.told)
}

/// Looks at the rows of one moment.
#[cfg(test)]
pub(crate) fn records(storage: &dyn Storage) -> Result<Checked, LoadError> {
    Ok(moment(storage)?.told)
}

fn with_events(storage: &dyn Storage) -> Result<Moment, LoadError> {
    let mut moment = moment(storage)?;
    moment.take_events(storage)?;
    Ok(moment)
}

/// Looks at the rows, and at the manifests that a daemon which has ended left behind.
pub fn at_rest(storage: &dyn Storage, files: &[FoundManifest]) -> Result<Checked, LoadError> {
    let Moment {
        inventory,
        mut told,
        ..
    } = with_events(storage)?;
    told.manifests = files.len();
    let behind = differing(&inventory, files);
    told.notes.extend(
        behind.into_iter().map(|(name, why)| {
            format!("manifest {name} {why}; the daemon's next start brings it up")
        }),
    );
    Ok(told)
}

impl StoreHandle {
    /// Looks at everything, while it is used.
    pub async fn check(
        &self,
        files: &dyn ManifestFiles,
        kept: &ManifestSlot,
    ) -> Result<Checked, LoadError> {
        let storage = self.storage.clone();
        let rows = tokio::task::spawn_blocking(move || rows(storage.as_ref()));
        let mut told = rows.await.unwrap_or_else(|error| {
            Err(LoadError::Io {
                path: "the store".to_owned(),
                error: error.to_string(),
            })
        })?;
        self.check_manifests(files, kept, &mut told).await;
        Ok(told)
    }

    /// What differs is looked at until it has been written, or for long enough.
    async fn check_manifests(
        &self,
        files: &dyn ManifestFiles,
        kept: &ManifestSlot,
        told: &mut Checked,
    ) {
        let until = tokio::time::Instant::now() + KEPT_WITHIN;
        let mut behind;
        loop {
            // What changes meanwhile differs from the one or from the other.
            let before = self.inventory();
            let found = match files.list().await {
                Ok(found) => found,
                Err(error) => {
                    let why = format!("they cannot be read: {error}");
                    return told.faults.push(Fault::new("manifests", why));
                }
            };
            told.manifests = found.len();
            behind = differing(&before, &found);
            let after = differing(&self.inventory(), &found);
            behind.retain(|name, _| after.contains_key(name));
            if behind.is_empty() || tokio::time::Instant::now() > until {
                break;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        if let (Some(error), false) = (&kept.status().error, behind.is_empty()) {
            told.notes
                .push(format!("manifests cannot be written: {error}"));
        }
        let faults = behind.into_iter();
        told.faults.extend(
            faults.map(|(name, why)| Fault::new(format!("manifests/{name}"), format!("it {why}"))),
        );
    }
}

fn moment(storage: &dyn Storage) -> Result<Moment, LoadError> {
    let tables: Vec<_> = Table::ALL
        .into_iter()
        .filter(|table| *table != Table::Events)
        .collect();
    let rows = storage.moment(&tables)?;
    let mut moment = Moment {
        inventory: Inventory::default(),
        told: Checked::default(),
    };
    for (table, row) in &rows {
        moment.take(*table, row);
    }
    moment.told.revision = moment.inventory.revision;
    let faults = relations::broken(&moment.inventory);
    moment.told.faults.extend(faults);
    Ok(moment)
}

impl Moment {
    fn take(&mut self, table: Table, (key, bytes): &KeyValue) {
        *self.told.rows.entry(table.as_str()).or_default() += 1;
        let name = row_name(table, key);
        let wrong = match read(table, bytes) {
            Ok(row) => self.note(row.revision.unwrap_or_default(), row.record, key),
            Err(DecodeError::Newer { found, known }) => Some(format!(
                "it is of schema {found} and this VMAN knows {known}: use the VMAN that wrote it"
            )),
            Err(DecodeError::Corrupt(why)) => Some(format!(
                "it cannot be read ({why}): the daemon's next start sets it aside; put a backup in the store's place, \
                 or make the store again with `vman store rebuild --force`"
            )),
        };
        if let Some(detail) = wrong {
            self.told.faults.push(Fault::new(name, detail));
        }
    }

    /// What is wrong with a row whose bytes are well.
    fn note(&mut self, revision: Revision, record: Record, key: &[u8]) -> Option<String> {
        macro_rules! into {
            ($map:ident, $record:expr, $id:ident) => {{
                let record = $record;
                if key != record.$id.as_str().as_bytes() {
                    return Some(format!("the record in it is {}'s", record.$id));
                }
                let id = record.$id.clone();
                let row = Arc::new(Versioned::new(revision, record));
                self.inventory.$map.insert(id, row);
            }};
        }
        match record {
            Record::Template(record) => into!(templates, record, name),
            Record::Vm(record) => into!(vms, *record, id),
            Record::Disk(record) => into!(disks, record, id),
            Record::Image(record) => into!(images, record, name),
            Record::Operation(record) => into!(operations, record, id),
            Record::Lease(record) => into!(leases, record, id),
            Record::Forward(record) => into!(forwards, record, id),
            Record::Token(record) => into!(tokens, record, id),
            Record::Idempotency(record) if key != record.key.as_str().as_bytes() => {
                return Some("the record in it is another key's".to_owned());
            }
            Record::Idempotency(_) => {}
            Record::Host(_) if key != HOST_KEY => return Some("nothing reads it".to_owned()),
            Record::Host(record) => {
                self.inventory.host = Some(Arc::new(Versioned::new(revision, *record)));
            }
            Record::Last(_) if key != REVISION_KEY => return Some("nothing reads it".to_owned()),
            Record::Last(last) => self.inventory.revision = last,
            Record::SetAside { why } => {
                let told = format!("a start could not read it and set it aside: {why}");
                let (row, error) = (String::from_utf8_lossy(key).into_owned(), why);
                self.inventory
                    .quarantined
                    .push_back(Quarantined { row, error });
                return Some(told);
            }
            Record::Event(_) => return Some("an event stands in another table".to_owned()),
        }
        None
    }

    /// The log up to the moment. Its oldest events go while it is read.
    fn take_events(&mut self, storage: &dyn Storage) -> Result<(), LoadError> {
        let (mut from, last) = (event_key(Revision(0)), self.inventory.revision);
        loop {
            let page = storage.range(Table::Events, &from, PAGE)?;
            let Some((end, _)) = page.last() else {
                return Ok(());
            };
            from.clone_from(end);
            // The next key in their order.
            from.push(0);
            for (key, bytes) in &page {
                *self.told.rows.entry(Table::Events.as_str()).or_default() += 1;
                let wrong = match read(Table::Events, bytes).map(|row| row.record) {
                    Ok(Record::Event(event)) if *key != event_key(event.revision) => {
                        Some(format!("the event in it is {}", event.revision.0))
                    }
                    Ok(_) => None,
                    Err(error) => Some(format!("it cannot be read: {error}")),
                };
                if let Some(detail) = wrong {
                    self.told
                        .faults
                        .push(Fault::new(row_name(Table::Events, key), detail));
                }
            }
            if end.as_slice() > event_key(last).as_slice() {
                return Ok(());
            }
        }
    }
}
