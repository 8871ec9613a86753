//! The way back: a new store out of manifests and living QEMUs.
//!
//! Must not: be used while a daemon runs, or write over a store that is there;
//! whoever calls has the storage path's lock and an empty storage.

use super::codec;
use crate::{
    ports::{Clock, CommitError, FoundManifest, LoadError, RowBatch, Storage},
    store::{Inventory, revision_row},
};
use vman_model::{
    Cause, Change, EventDraft, EventKind, Origin, Revision, Subject,
    drift::SeenProcess,
    manifest::{Rebuilt, rebuild},
};

/// Rows in one transaction: a store of ten thousand VMs is a few hundred.
const ROWS_AT_ONCE: usize = 4_096;

/// What was made, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RebuildReport {
    /// Records by table, in the tables' order.
    pub records: Vec<(&'static str, usize)>,
    /// VMs whose QEMU lives.
    pub living: usize,
    /// What could not be kept as it was, a sentence each.
    pub notes: Vec<String>,
}

/// Why no store was made.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// There is nothing to make it of.
    #[error("there is no manifest that can be read")]
    Nothing,
    /// The new store does not open.
    #[error(transparent)]
    Open(#[from] LoadError),
    /// The new store does not take its rows.
    #[error("cannot write the new store: {0}")]
    Write(#[from] CommitError),
}

/// Fills an empty storage. Blocks.
pub fn rebuild_store(
    files: Vec<FoundManifest>,
    processes: &[SeenProcess],
    storage: &dyn Storage,
    clock: &dyn Clock,
) -> Result<RebuildReport, RebuildError> {
    let mut unread = Vec::new();
    let mut manifests = Vec::with_capacity(files.len());
    for (name, bytes) in files {
        match codec::decode(&bytes) {
            Ok((revision, kept)) if kept.kind() == name.kind && kept.key() == name.key => {
                manifests.push((revision, kept));
            }
            Ok(_) => unread.push(format!("{name} is left out: it tells of another record")),
            Err(error) => unread.push(format!("{name} is left out: {error}")),
        }
    }
    if manifests.is_empty() {
        return Err(RebuildError::Nothing);
    }
    let rebuilt = rebuild(manifests, processes, clock.now());
    let notes: Vec<_> = unread.into_iter().chain(rebuilt.notes.clone()).collect();
    let inventory = fill(rebuilt, notes.len(), storage, clock)?;
    Ok(RebuildReport {
        living: inventory
            .vms
            .values()
            .filter(|vm| vm.value.process.is_some())
            .count(),
        records: inventory.counts(),
        notes,
    })
}

fn fill(
    rebuilt: Rebuilt,
    left_out: usize,
    storage: &dyn Storage,
    clock: &dyn Clock,
) -> Result<Inventory, RebuildError> {
    storage.open()?;
    let before = Inventory::empty_at(rebuilt.revision);
    let change = Change {
        guards: Vec::new(),
        writes: rebuilt.writes,
        event: Some(event(clock, rebuilt.revision, left_out)),
    };
    let (inventory, rows): (Inventory, RowBatch) = before
        .apply(change, clock.now())
        .expect("a change without guards violates none");
    for rows in rows.chunks(ROWS_AT_ONCE) {
        storage.commit(rows)?;
    }
    storage.commit(&[revision_row(inventory.revision)])?;
    Ok(inventory)
}

fn event(clock: &dyn Clock, revision: Revision, left_out: usize) -> EventDraft {
    EventDraft::new(
        clock.now(),
        Subject::Daemon,
        EventKind::StoreRebuilt,
        format!(
            "the store was made again of manifests and living QEMUs; revisions go on after {revision}; {left_out} things could not be kept as they were"
        ),
        Cause::new(Origin::Daemon, "rebuild"),
    )
}
