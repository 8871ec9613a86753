//! The store's own work in the API.

use super::Time;
use serde::Serialize;
use utoipa::ToSchema;
use vman_actors::store::Backup;

/// A backup of the store.
#[derive(Serialize, ToSchema)]
#[schema(as = StoreBackup)]
pub(crate) struct BackupBody<'a> {
    /// The file on the daemon's host.
    file: &'a str,
    /// Its bytes.
    size_bytes: u64,
    /// The last revision in it.
    revision: u64,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    made_at: Time,
    /// The older backups that were removed, so that at most ten are kept.
    removed: &'a [String],
}

impl<'a> BackupBody<'a> {
    pub(crate) fn of(backup: &'a Backup) -> Self {
        Self {
            file: &backup.file,
            size_bytes: backup.bytes,
            revision: backup.revision.0,
            made_at: Time(backup.at),
            removed: &backup.removed,
        }
    }
}
