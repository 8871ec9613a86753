//! How others use the store: commit a change, read the inventory, read events.

use super::{
    StoreMsg,
    codec::{self, Kind},
    inventory::{Committed, Inventory, event_key},
};
use crate::{
    aside::Aside,
    meters::TreeMeters,
    ports::{CommitError, LoadError, Storage, Table},
    slot::Slot,
};
use arc_swap::ArcSwap;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{oneshot, watch};
use vman_model::{Change, Event, Guard, Revision};

/// Why a change was not committed, or is not known to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A guard did not hold; nothing was written.
    #[error("a condition of the change does not hold: {0:?}")]
    Conflict(Guard),
    /// The storage is full; nothing was written.
    #[error("the storage is full: free space under the storage path")]
    NoSpace,
    /// The storage is read-only; nothing was written.
    #[error("the storage is read-only: remount it writable")]
    ReadOnly,
    /// It failed, and certainly nothing was written.
    #[error("the store refused: {0}")]
    Refused(String),
    /// Too many changes wait; nothing was written.
    #[error("too many changes are waiting to be written")]
    Busy,
    /// The store is being restarted; nothing was written.
    #[error("the store is being restarted")]
    Unavailable,
    /// It is unknown whether it was written.
    #[error("it is unknown whether the change was written: {0}")]
    Unknown(String),
}

impl StoreError {
    /// Whether it is certain that nothing was written.
    pub fn is_certain(&self) -> bool {
        !matches!(self, StoreError::Unknown(_))
    }
}

impl From<CommitError> for StoreError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::NoSpace => StoreError::NoSpace,
            CommitError::ReadOnly => StoreError::ReadOnly,
            CommitError::Refused(why) => StoreError::Refused(why),
            CommitError::Unknown(why) => StoreError::Unknown(why),
        }
    }
}

/// Where the store publishes; it outlives the actor.
pub struct StoreSlot {
    pub(super) actor: Slot<StoreMsg>,
    inventory: ArcSwap<Inventory>,
    revision: watch::Sender<Revision>,
    pub(super) meters: TreeMeters,
    /// Held while the storage is written or read back; counts the lives of the
    /// store actor, so that a writer thread that outlived its actor is noticed.
    turn: Mutex<u64>,
    /// Since when the writer thread waits for the storage.
    committing: Mutex<Option<Instant>>,
    /// Held while a backup is made.
    pub(super) backing_up: Mutex<()>,
}

impl Default for StoreSlot {
    fn default() -> Self {
        Self {
            actor: Slot::default(),
            inventory: ArcSwap::default(),
            revision: watch::Sender::new(Revision::default()),
            meters: TreeMeters::default(),
            turn: Mutex::default(),
            committing: Mutex::default(),
            backing_up: Mutex::default(),
        }
    }
}

impl StoreSlot {
    pub(super) fn turn(&self) -> MutexGuard<'_, u64> {
        // A writer that panicked has published nothing: the state behind the
        // lock is whole.
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A commit is under way until the answer is dropped.
    pub(super) fn begin_commit(&self) -> impl Drop + '_ {
        struct UnderWay<'a>(&'a StoreSlot);
        impl Drop for UnderWay<'_> {
            fn drop(&mut self) {
                *self.0.committing() = None;
            }
        }
        *self.committing() = Some(Instant::now());
        UnderWay(self)
    }

    fn committing(&self) -> MutexGuard<'_, Option<Instant>> {
        self.committing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn inventory(&self) -> Arc<Inventory> {
        self.inventory.load_full()
    }

    pub(super) fn publish(&self, inventory: Arc<Inventory>) {
        let revision = inventory.revision;
        self.inventory.store(inventory);
        self.revision.send_replace(revision);
    }
}

/// The store, as others see it.
#[derive(Clone)]
pub struct StoreHandle {
    pub(super) slot: Arc<StoreSlot>,
    pub(super) storage: Arc<dyn Storage>,
}

impl StoreHandle {
    /// A handle that stays good across restarts of the actor.
    pub fn new(slot: Arc<StoreSlot>, storage: Arc<dyn Storage>) -> Self {
        Self { slot, storage }
    }

    /// The state as of the last commit. Never waits.
    pub fn inventory(&self) -> Arc<Inventory> {
        self.slot.inventory()
    }

    /// Tells whenever something was committed.
    pub fn watch(&self) -> watch::Receiver<Revision> {
        self.slot.revision.subscribe()
    }

    /// Makes a change durable. An `Ok` is on disk and in the inventory.
    pub async fn commit(&self, change: Change) -> Result<Committed, StoreError> {
        let actor = self.slot.actor.get().ok_or(StoreError::Unavailable)?;
        let (reply, answer) = oneshot::channel();
        actor
            .cast(StoreMsg::Commit(Box::new(change), reply))
            .map_err(|_| StoreError::Unavailable)?;
        answer
            .await
            .unwrap_or_else(|_| Err(StoreError::Unknown("the store ended meanwhile".to_owned())))
    }

    /// The log of events.
    pub fn events(&self) -> EventLog {
        EventLog {
            slot: self.slot.clone(),
            storage: self.storage.clone(),
        }
    }

    /// Where work of milliseconds on the inventory is done.
    pub(crate) fn aside(&self) -> Aside {
        if self.storage.blocks() {
            Aside::Thread
        } else {
            Aside::InStep
        }
    }

    /// Whether the actor lives: while it is restarted, reads go on and changes
    /// are refused.
    pub fn is_running(&self) -> bool {
        self.slot.actor.get().is_some()
    }

    /// How long the commit that is under way has taken by now; none if there is none.
    pub fn commit_waits(&self) -> Option<Duration> {
        let since = *self.slot.committing();
        since.map(|since| since.elapsed())
    }

    /// What the store has counted since the daemon started.
    pub fn meters(&self) -> &TreeMeters {
        &self.slot.meters
    }

    /// Bytes of the store's file.
    pub fn size(&self) -> u64 {
        self.storage.size()
    }
}

/// The bounded log of events.
#[derive(Clone)]
pub struct EventLog {
    slot: Arc<StoreSlot>,
    storage: Arc<dyn Storage>,
}

impl EventLog {
    /// Events after `since`, oldest first, at most `limit`. Recent ones come
    /// from memory; older ones are read in a blocking task.
    pub async fn after(&self, since: Revision, limit: usize) -> Result<Vec<Arc<Event>>, LoadError> {
        let inventory = self.slot.inventory();
        let in_memory = inventory
            .recent_events
            .front()
            .is_some_and(|first| first.revision.0 <= since.0.saturating_add(1));
        if in_memory || inventory.revision <= since {
            return Ok(inventory.events_after(since).take(limit).cloned().collect());
        }
        let storage = self.storage.clone();
        let from = event_key(Revision(since.0 + 1));
        blocking(move || {
            let rows = storage.range(Table::Events, &from, limit)?;
            Ok(rows
                .into_iter()
                .filter_map(|(_, bytes)| codec::decode(Kind::Event, &bytes).ok())
                .map(Arc::new)
                .collect())
        })
        .await
    }

    /// The chain of events about one VM that ends at `last`, newest first, at
    /// most `limit`; it ends early where the log has been cut.
    pub async fn chain(
        &self,
        last: Option<Revision>,
        limit: usize,
    ) -> Result<Vec<Arc<Event>>, LoadError> {
        let inventory = self.slot.inventory();
        let storage = self.storage.clone();
        blocking(move || {
            let (mut out, mut at) = (Vec::new(), last);
            while let (Some(revision), true) = (at, out.len() < limit) {
                let Some(event) = find(&inventory, storage.as_ref(), revision)? else {
                    break;
                };
                at = event.what.previous;
                out.push(event);
            }
            Ok(out)
        })
        .await
    }
}

fn find(
    inventory: &Inventory,
    storage: &dyn Storage,
    revision: Revision,
) -> Result<Option<Arc<Event>>, LoadError> {
    let recent = &inventory.recent_events;
    if let Ok(index) = recent.binary_search_by(|event| event.revision.cmp(&revision)) {
        return Ok(recent.get(index).cloned());
    }
    let bytes = storage.get(Table::Events, &event_key(revision))?;
    Ok(bytes
        .and_then(|bytes| codec::decode(Kind::Event, &bytes).ok())
        .map(Arc::new))
}

async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
) -> Result<T, LoadError> {
    tokio::task::spawn_blocking(read)
        .await
        .unwrap_or_else(|error| {
            Err(LoadError::Io {
                path: "the event log".to_owned(),
                error: error.to_string(),
            })
        })
}
