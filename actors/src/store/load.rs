//! Reads the state back at start: brings an older schema up (`migrate.rs`), refuses a newer one, sets aside what it
//! cannot read, and never turns a lost store into an empty inventory.

use super::{
    apply::RECENT_EVENTS,
    codec::{self, DecodeError, Kind},
    inventory::{HOST_KEY, Inventory, Quarantined, Versioned, event_key},
    migrate::{self, BACKUP_SUFFIX, Schemas},
    row::{row_name, set_aside_for},
};
use crate::ports::{Clock, CommitError, LoadError, Row, RowBatch, Storage, Table};
use imbl::OrdMap;
use serde::de::DeserializeOwned;
use std::{str::FromStr, sync::Arc};
use vman_model::{
    Cause, Event, EventDraft, EventKind, HostRecord, IdempotencyRecord, Origin, Promise, Revision,
    Subject,
};

/// The row of [`Table::Meta`] that holds the last revision.
pub(super) const REVISION_KEY: &[u8] = b"revision";

/// Why the state cannot be read back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreLoadError {
    /// The storage does not open or read.
    #[error(transparent)]
    Storage(#[from] LoadError),
    /// Written by a newer VMAN.
    #[error(
        "the store was written by a newer VMAN (schema {found}, this build knows {known}): \
         install that version again, or restore the backup made before the upgrade \
         (beside the store, ending in {BACKUP_SUFFIX})"
    )]
    Newer {
        /// The store's schema.
        found: u16,
        /// What this build knows.
        known: u16,
    },
    /// No backup could be made before rows are brought up; nothing was changed.
    #[error(
        "the store has to be brought up to this VMAN's schema, and the backup that has to be made \
         before cannot be: {0}; nothing was changed, make room beside the store or install the \
         version before again"
    )]
    Backup(CommitError),
    /// The rows that were brought up were not committed.
    #[error(
        "the store could not be brought up to this VMAN's schema: {0}; start again, or install the \
         version before and restore the backup beside the store, ending in {BACKUP_SUFFIX}"
    )]
    Migrate(CommitError),
    /// What was set aside could not be made durable.
    #[error("cannot set unreadable records aside: {0}")]
    Quarantine(#[from] CommitError),
}

/// Reads everything.
pub(super) fn load(storage: &dyn Storage, clock: &dyn Clock) -> Result<Inventory, StoreLoadError> {
    storage.open()?;
    migrate::bring_up(storage, &Schemas::CURRENT)?;
    let mut reader = Reader {
        storage,
        set_aside: Vec::new(),
    };
    let mut inventory = Inventory {
        revision: reader.revision()?,
        templates: reader.table(Table::Templates, Kind::Template)?,
        vms: reader.table(Table::Vms, Kind::Vm)?,
        disks: reader.table(Table::Disks, Kind::Disk)?,
        images: reader.table(Table::Images, Kind::Image)?,
        operations: reader.table(Table::Operations, Kind::Operation)?,
        leases: reader.table(Table::Leases, Kind::Lease)?,
        forwards: reader.table(Table::Forwards, Kind::Forward)?,
        tokens: reader.table(Table::Tokens, Kind::Token)?,
        host: reader.host()?,
        ..Inventory::default()
    };
    let promises = inventory.vms.values().map(|row| Promise::to(&row.value));
    inventory.promised = promises.fold(Promise::default(), Promise::plus);
    inventory.leases_of = inventory
        .leases
        .values()
        .map(|row| {
            (
                (row.value.vm_id.clone(), row.value.nic),
                row.value.id.clone(),
            )
        })
        .collect();
    let macs = inventory.vms.values().flat_map(|vm| vm.value.macs());
    inventory.macs = macs.map(|(_, mac)| mac).collect();
    inventory.user_ids = inventory
        .vms
        .iter()
        .filter_map(|(id, vm)| Some((vm.value.user_id()?, id.clone())))
        .collect();
    let mut keys = reader.idempotency()?;
    keys.sort_by_key(|row| row.created_at);
    inventory.key_order = keys.iter().map(|row| row.key.clone()).collect();
    inventory.idempotency = keys
        .into_iter()
        .map(|row| (row.key.clone(), Arc::new(row)))
        .collect();
    inventory.recent_events = reader
        .recent_events(inventory.revision)?
        .into_iter()
        .collect();
    let set_aside = reader.set_aside;
    quarantine(storage, clock, &mut inventory, set_aside)?;
    Ok(inventory)
}

/// A row that cannot be read: table, key, bytes, why.
type SetAside = (Table, Vec<u8>, Vec<u8>, String);

struct Reader<'a> {
    storage: &'a dyn Storage,
    set_aside: Vec<SetAside>,
}

impl Reader<'_> {
    fn revision(&mut self) -> Result<Revision, StoreLoadError> {
        let Some(bytes) = self.storage.get(Table::Meta, REVISION_KEY)? else {
            let fresh = self.storage.range(Table::Events, &[], 1)?.is_empty();
            return if fresh {
                Ok(Revision::default())
            } else {
                self.highest_event()
            };
        };
        match codec::decode(Kind::Meta, &bytes) {
            Ok(revision) => Ok(revision),
            Err(DecodeError::Newer { found, known }) => Err(StoreLoadError::Newer { found, known }),
            // Without it revisions could repeat: take the highest that is seen.
            Err(DecodeError::Corrupt(_)) => self.highest_event(),
        }
    }

    /// A row that cannot be read is set aside: the host is then as one that was
    /// just booted, unless a VM's life of this boot is known.
    fn host(&mut self) -> Result<Option<Arc<Versioned<HostRecord>>>, StoreLoadError> {
        let Some(bytes) = self.storage.get(Table::Host, HOST_KEY)? else {
            return Ok(None);
        };
        match codec::decode::<(Revision, HostRecord)>(Kind::Host, &bytes) {
            Ok((revision, value)) => Ok(Some(Arc::new(Versioned::new(revision, value)))),
            Err(DecodeError::Newer { found, known }) => Err(StoreLoadError::Newer { found, known }),
            Err(DecodeError::Corrupt(why)) => {
                self.set_aside
                    .push((Table::Host, HOST_KEY.to_vec(), bytes, why));
                Ok(None)
            }
        }
    }

    fn highest_event(&self) -> Result<Revision, StoreLoadError> {
        let events = self.storage.load(Table::Events)?;
        let last = events
            .last()
            .and_then(|(key, _)| key.as_slice().try_into().ok());
        // A gap of a thousand covers changes that told no event.
        Ok(Revision(last.map_or(0, u64::from_be_bytes) + 1_000))
    }

    fn table<K, V>(
        &mut self,
        table: Table,
        kind: Kind,
    ) -> Result<OrdMap<K, Arc<Versioned<V>>>, StoreLoadError>
    where
        K: Ord + Clone + FromStr,
        V: DeserializeOwned + Clone,
    {
        let mut map = OrdMap::new();
        for (key, bytes) in self.storage.load(table)? {
            let id = std::str::from_utf8(&key)
                .ok()
                .and_then(|s| K::from_str(s).ok());
            let value = codec::decode::<(Revision, V)>(kind, &bytes);
            match (id, value) {
                (_, Err(DecodeError::Newer { found, known })) => {
                    return Err(StoreLoadError::Newer { found, known });
                }
                (Some(id), Ok((revision, value))) => {
                    map.insert(id, Arc::new(Versioned::new(revision, value)));
                }
                (None, Ok(_)) => self
                    .set_aside
                    .push((table, key, bytes, "bad key".to_owned())),
                (_, Err(DecodeError::Corrupt(why))) => {
                    self.set_aside.push((table, key, bytes, why));
                }
            }
        }
        Ok(map)
    }

    fn idempotency(&mut self) -> Result<Vec<IdempotencyRecord>, StoreLoadError> {
        let mut out = Vec::new();
        for (key, bytes) in self.storage.load(Table::Idempotency)? {
            match codec::decode(Kind::Idempotency, &bytes) {
                Ok(row) => out.push(row),
                Err(DecodeError::Newer { found, known }) => {
                    return Err(StoreLoadError::Newer { found, known });
                }
                Err(DecodeError::Corrupt(why)) => {
                    self.set_aside.push((Table::Idempotency, key, bytes, why));
                }
            }
        }
        Ok(out)
    }

    fn recent_events(&mut self, last: Revision) -> Result<Vec<Arc<Event>>, StoreLoadError> {
        let from = event_key(Revision(last.0.saturating_sub(RECENT_EVENTS as u64)));
        let mut out = Vec::new();
        for (key, bytes) in self
            .storage
            .range(Table::Events, &from, RECENT_EVENTS + 1)?
        {
            match codec::decode(Kind::Event, &bytes) {
                Ok(event) => out.push(Arc::new(event)),
                Err(DecodeError::Newer { found, known }) => {
                    return Err(StoreLoadError::Newer { found, known });
                }
                Err(DecodeError::Corrupt(why)) => {
                    self.set_aside.push((Table::Events, key, bytes, why));
                }
            }
        }
        Ok(out)
    }
}

/// Moves unreadable rows into their own table, with the event that tells it.
/// Where there is no room for that they stay where they are until the next
/// start, and are reported all the same: the others can be used.
fn quarantine(
    storage: &dyn Storage,
    clock: &dyn Clock,
    inventory: &mut Inventory,
    set_aside: Vec<SetAside>,
) -> Result<(), StoreLoadError> {
    let mut left = Vec::new();
    for (table, key, bytes, why) in set_aside {
        let name = row_name(table, &key);
        let mut value = why.clone().into_bytes();
        value.push(0);
        value.extend_from_slice(&bytes);
        let event = EventDraft::new(
            clock.now(),
            Subject::Daemon,
            EventKind::RecordQuarantined,
            format!("the record {name} cannot be read and was set aside: {why}"),
            Cause::new(Origin::Daemon, "load"),
        );
        let change = vman_model::Change {
            event: Some(event),
            ..Default::default()
        };
        let (next, mut rows): (Inventory, RowBatch) = inventory
            .apply(change, clock.now())
            .expect("a change without guards violates none");
        rows.push(Row {
            table,
            key,
            value: None,
        });
        rows.push(Row {
            table: Table::Quarantine,
            key: name.clone().into_bytes(),
            value: Some(value),
        });
        rows.push(revision_row(next.revision));
        match storage.commit(&rows) {
            Ok(()) => *inventory = next,
            Err(error @ CommitError::Unknown(_)) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(row = name, %error, "cannot set an unreadable record aside");
                left.push(Quarantined {
                    row: name,
                    error: why,
                });
            }
        }
    }
    let rows = storage.load(Table::Quarantine)?;
    let listed = rows.into_iter().map(|(key, value)| Quarantined {
        row: String::from_utf8_lossy(&key).into_owned(),
        error: set_aside_for(&value),
    });
    inventory.quarantined = listed.chain(left).collect();
    Ok(())
}

/// The row that keeps the last revision.
pub(crate) fn revision_row(revision: Revision) -> Row {
    Row {
        table: Table::Meta,
        key: REVISION_KEY.to_vec(),
        value: Some(codec::encode(Kind::Meta, &revision)),
    }
}
