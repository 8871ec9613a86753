//! Work on the durable files while no daemon runs: `vman store rebuild`, `vman store check --offline`.
//!
//! Takes the storage path's lock, as a daemon does, so that neither meets the
//! other. Must not: decide what a record becomes (the model's `manifest` does).

use super::{start_error, upgrade::Copy};
use crate::{
    config::Config,
    host::{
        clock::SystemClock,
        dirs::{StorageLock, StorageLockError},
        folders::HostFolders,
        manifests::HostManifests,
        qemu::adopt,
        store_redb::{RedbStorage, Replacement, copy_of_running},
    },
};
use std::{io, path::Path};
use vman_actors::{
    manifests::rebuild::{RebuildError, RebuildReport, rebuild_store},
    ports::{Folders, HostError, Storage},
    store::check,
};
use vman_model::drift::SeenProcess;

/// Why work on the files came to nothing. What was there is as it was.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The storage path is a running daemon's, or cannot be used.
    #[error("{0}; this is done while no daemon runs: stop it first, guests keep running")]
    Held(#[source] StorageLockError),
    /// The storage path cannot be used.
    #[error(transparent)]
    Storage(StorageLockError),
    /// There is nothing to repair.
    #[error(
        "the store {0} can be read: start the daemon; --force puts it aside and makes another of the manifests"
    )]
    Readable(String),
    /// The store's file is none.
    #[error("the store {store}: {error}")]
    Unreadable {
        /// The file.
        store: String,
        /// What was found in a copy of it.
        error: String,
    },
    /// Something could not be looked at or written.
    #[error(transparent)]
    App(#[from] super::AppError),
    /// The running QEMUs could not be found out.
    #[error(transparent)]
    Processes(#[from] HostError),
    /// No store could be made.
    #[error("{error} under {folder}: put a backup in the store's place")]
    Nothing {
        /// Where there should be manifests.
        folder: String,
        /// What was found.
        error: RebuildError,
    },
    /// The new store could not be written.
    #[error(transparent)]
    Rebuild(RebuildError),
}

impl OfflineError {
    /// The process's exit code, as that of `vman serve`.
    pub fn exit_code(&self) -> u8 {
        match self {
            OfflineError::Held(_) => 4,
            _ => 1,
        }
    }
}

fn locked(path: &Path) -> Result<StorageLock, OfflineError> {
    StorageLock::acquire(path).map_err(|error| match error {
        held @ StorageLockError::Held { .. } => OfflineError::Held(held),
        other @ StorageLockError::Io { .. } => OfflineError::Storage(other),
    })
}

/// Makes the store again of manifests and living QEMUs; answers what to tell.
pub async fn rebuild(config: &Config, force: bool) -> Result<Vec<String>, OfflineError> {
    let lock = locked(&config.storage.path)?;
    let dirs = lock.dirs();
    let store = dirs.store_file();
    if !force && store.exists() && RedbStorage::new(&store).open().is_ok() {
        return Err(OfflineError::Readable(store.display().to_string()));
    }
    let folders = HostFolders::new(dirs, config.storage.runtime.clone());
    let processes = living(&folders).await?;
    let failed = |what| move |error: io::Error| OfflineError::from(start_error(what)(error));
    let manifests = HostManifests::new(dirs);
    let files = manifests.read_all().map_err(failed("read the manifests"))?;
    let clock = SystemClock::new().map_err(failed("read the clock"))?;
    let replacement = Replacement::of(&store).map_err(failed("make a new store"))?;
    let storage = replacement.storage();
    let report =
        rebuild_store(files, &processes, &storage, &clock).map_err(|error| match error {
            RebuildError::Nothing => OfflineError::Nothing {
                folder: dirs.manifests().display().to_string(),
                error,
            },
            other => OfflineError::Rebuild(other),
        })?;
    drop(storage);
    let stamp = jiff::Timestamp::now()
        .strftime("%Y%m%dT%H%M%S%.3fZ")
        .to_string();
    let kept = replacement
        .put_in_place(&stamp)
        .map_err(failed("put the new store in its place"))?;
    Ok(told(&report, kept.as_deref()))
}

/// Looks at a copy of the store, and at the manifests; answers what was found, as the daemon does.
/// Opening the copy has redb verify all of the file's checksums.
pub fn check(config: &Config) -> Result<serde_json::Value, OfflineError> {
    let lock = locked(&config.storage.path)?;
    let dirs = lock.dirs();
    let failed = |what| move |error: io::Error| OfflineError::from(start_error(what)(error));
    let copy = Copy::beside(&dirs.store_file());
    copy_of_running(&dirs.store_file(), &copy.path).map_err(failed("copy the store"))?;
    let storage = RedbStorage::new(&copy.path);
    let manifests = HostManifests::new(dirs);
    let files = manifests.read_all().map_err(failed("read the manifests"))?;
    let checked = storage
        .open()
        .and_then(|()| check::at_rest(&storage, &files));
    let checked = checked.map_err(|error| OfflineError::Unreadable {
        store: dirs.store_file().display().to_string(),
        error: error.to_string(),
    })?;
    Ok(crate::http::store_check(&checked))
}

/// The QEMUs of this storage path.
async fn living(folders: &HostFolders) -> Result<Vec<SeenProcess>, OfflineError> {
    let found = adopt::find_all().map_err(start_error("look at the processes"))?;
    let mut ours = Vec::new();
    for process in found {
        if folders.holds_ours(process.identity.clone()).await? {
            ours.push(SeenProcess {
                uuid: process.uuid,
                incarnation: process.incarnation,
                identity: process.identity,
            });
        }
    }
    Ok(ours)
}

fn told(report: &RebuildReport, kept: Option<&Path>) -> Vec<String> {
    let records: Vec<_> = report
        .records
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(table, count)| format!("{count} {table}"))
        .collect();
    let mut lines = vec![format!(
        "the store was made again: {}; {} VMs have a running QEMU",
        records.join(", "),
        report.living
    )];
    lines.extend(kept.map(|kept| format!("the old store is kept as {}", kept.display())));
    lines.extend(report.notes.iter().map(|note| format!("note: {note}")));
    lines.push("start the daemon: it finds the running VMs again".to_owned());
    lines
}
