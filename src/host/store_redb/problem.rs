//! What redb and the system say, in this module's few words.

use crate::host::dirs;
use redb::{DatabaseError, StorageError, TableError, TransactionError};
use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};
use vman_actors::ports::LoadError;

/// Why something did not work, before it is known what was asked for.
#[derive(Debug)]
pub(super) enum Problem {
    Locked,
    Corrupt(String),
    Io(String),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Problem::Io(error.to_string())
    }
}

impl From<StorageError> for Problem {
    fn from(error: StorageError) -> Self {
        match error {
            // redb says `InvalidData` for a wrong magic number, `UnexpectedEof` for a short file.
            StorageError::Io(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                Problem::Corrupt(error.to_string())
            }
            StorageError::Io(error) => error.into(),
            StorageError::Corrupted(what) => Problem::Corrupt(what),
            other => Problem::Io(other.to_string()),
        }
    }
}

impl From<TableError> for Problem {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Storage(error) => error.into(),
            other => Problem::Corrupt(other.to_string()),
        }
    }
}

impl From<TransactionError> for Problem {
    fn from(error: TransactionError) -> Self {
        match error {
            TransactionError::Storage(error) => error.into(),
            other => Problem::Io(other.to_string()),
        }
    }
}

impl Problem {
    pub(super) fn from_open(error: DatabaseError) -> Self {
        match error {
            DatabaseError::DatabaseAlreadyOpen => Problem::Locked,
            DatabaseError::Storage(error) => error.into(),
            DatabaseError::UpgradeRequired(_) | DatabaseError::RepairAborted => {
                Problem::Corrupt(error.to_string())
            }
            other => Problem::Io(other.to_string()),
        }
    }

    pub(super) fn at(self, path: &Path) -> LoadError {
        let text = path.display().to_string();
        match self {
            Problem::Locked => LoadError::Locked {
                path: text,
                holder: dirs::holder_beside(path)
                    .map(|holder| format!(" (pid {})", holder.pid))
                    .unwrap_or_default(),
            },
            Problem::Corrupt(error) => LoadError::Corrupt { path: text, error },
            Problem::Io(error) => LoadError::Io { path: text, error },
        }
    }
}

/// redb asserts what a corrupt file does not keep; no such panic may leave this module.
pub(super) fn contained<T>(what: impl FnOnce() -> Result<T, Problem>) -> Result<T, Problem> {
    catch_unwind(AssertUnwindSafe(what)).unwrap_or_else(|panic| {
        let said = panic_text(&*panic);
        Err(Problem::Corrupt(format!(
            "the database gave up on it: {said}"
        )))
    })
}

pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
        .unwrap_or_else(|| "panic".to_owned())
}
