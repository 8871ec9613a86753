//! Backups of the store while it is used: one at a time, on a thread of its own, of one moment between two commits.
//!
//! Must not: delay a commit, or know where the copies lie (the storage does).

use super::{
    codec::{self, Kind},
    handle::{StoreError, StoreHandle},
    load::REVISION_KEY,
};
use crate::ports::{CommitError, KeptCopy};
use std::sync::TryLockError;
use vman_model::{Revision, UnixMs};

/// How many backups are kept; the oldest goes when one more is made.
const KEPT_BACKUPS: usize = 10;

/// A backup that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// The file.
    pub file: String,
    /// Its bytes.
    pub bytes: u64,
    /// The last revision in it.
    pub revision: Revision,
    /// When it was made.
    pub at: UnixMs,
    /// The older backups that were removed for it.
    pub removed: Vec<String>,
}

/// Why no backup was made. Nothing is left of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// One is being made already.
    #[error("a backup is being made already")]
    UnderWay,
    /// The storage refused.
    #[error(transparent)]
    Failed(#[from] StoreError),
}

impl StoreHandle {
    /// Makes a backup that is dated `at`. It is made to the end also if nobody waits for it any more.
    pub async fn backup(&self, at: UnixMs) -> Result<Backup, BackupError> {
        let (slot, storage) = (self.slot.clone(), self.storage.clone());
        let made = tokio::task::spawn_blocking(move || {
            let _alone = match slot.backing_up.try_lock() {
                Ok(alone) => alone,
                Err(TryLockError::WouldBlock) => return Err(BackupError::UnderWay),
                // The one that panicked has left nothing but a file that the next start removes.
                Err(TryLockError::Poisoned(alone)) => alone.into_inner(),
            };
            let copy = storage.keep_copy(at, KEPT_BACKUPS);
            Ok(copy.map_err(StoreError::from)?)
        });
        let copy = made
            .await
            .unwrap_or_else(|error| Err(StoreError::Refused(error.to_string()).into()))?;
        Ok(Backup {
            revision: revision_in(&copy)?,
            file: copy.file,
            bytes: copy.bytes,
            at,
            removed: copy.removed,
        })
    }
}

/// The last revision in the copy; it has none where nothing was committed yet.
fn revision_in(copy: &KeptCopy) -> Result<Revision, StoreError> {
    let row = copy.meta.iter().find(|(key, _)| key == REVISION_KEY);
    let Some((_, bytes)) = row else {
        return Ok(Revision::default());
    };
    codec::decode(Kind::Meta, bytes)
        .map_err(|error| CommitError::Refused(format!("its last revision: {error}")).into())
}
