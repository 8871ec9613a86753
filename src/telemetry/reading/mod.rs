//! Reading the log back: the records about one VM, from where the log is kept.
//!
//! Owns: which destination is read, and the bounds of it. Must not: write, or read a record that is about something
//! else; a VM's id is the only thing a caller chooses that reaches journalctl, and it is an id by its type.
//! Look next: `journal.rs` (journalctl), `file.rs` (the log file), `line.rs` (a line back into a record).

mod file;
mod journal;
mod line;
#[cfg(test)]
mod tests;

use crate::config::LogFile;
use futures_util::{StreamExt as _, stream, stream::BoxStream};
use jiff::Timestamp;
use serde::Serialize;
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};
use tokio::sync::{Semaphore, mpsc};
use vman_model::VmId;

/// The most records that one question is answered with.
pub const MAX_RECORDS: usize = 10_000;
/// A line of the log beyond this is not read: a record's fields are cut far below it.
const MAX_LINE: usize = 1 << 20;
/// Records that wait for one who follows.
const MAX_WAITING: usize = 64;
/// Readers at work at once: each is a process, or a pass over all log files.
const MAX_READERS: usize = 8;

/// One record of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LogRecord {
    /// When, as RFC 3339.
    pub at: String,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    /// Which part of the code said it.
    pub target: String,
    /// What it says.
    pub message: String,
    /// Its fields, by the names that `docs/operations.md` lists, without `VMAN_` and in lower case.
    pub fields: BTreeMap<String, String>,
}

/// Which records are asked for.
#[derive(Clone, Debug)]
pub struct LogQuery {
    /// The VM they are about.
    pub vm: VmId,
    /// The last so many of them; at most [`MAX_RECORDS`].
    pub lines: usize,
    /// None before this.
    pub since: Option<Timestamp>,
}

/// Why records cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogReadError {
    /// The log goes to standard error alone.
    #[error(
        "the daemon's log goes to standard error alone and is kept nowhere it could be read from; \
         run it under systemd-journald or set VMAN_LOG_FILE"
    )]
    NotKept,
    /// Too many ask at once.
    #[error("{MAX_READERS} readers of the log are at work already; try again in a moment")]
    Busy,
    /// The reader failed or was too slow.
    #[error("cannot read the log: {0}")]
    Failed(String),
}

/// Where the daemon's records are kept.
#[derive(Clone, Debug)]
pub(super) enum Kept {
    /// journald, and the program that reads it.
    Journal { journalctl: PathBuf },
    /// A file that is rotated.
    File(LogFile),
    /// Nowhere.
    Nowhere,
}

/// Reads the daemon's log; cheap to clone.
#[derive(Clone, Debug)]
pub struct LogReader {
    kept: Kept,
    permits: Arc<Semaphore>,
}

impl Default for LogReader {
    /// Nothing is kept.
    fn default() -> Self {
        Self::new(Kept::Nowhere)
    }
}

impl LogReader {
    pub(super) fn new(kept: Kept) -> Self {
        Self {
            kept,
            permits: Arc::new(Semaphore::new(MAX_READERS)),
        }
    }

    /// Reads the log file of these settings.
    pub fn of_file(settings: LogFile) -> Self {
        Self::new(Kept::File(settings))
    }

    /// The last records, oldest first.
    pub async fn read(&self, query: &LogQuery) -> Result<Vec<LogRecord>, LogReadError> {
        let _permit = self.permits.try_acquire().map_err(|_| LogReadError::Busy)?;
        match &self.kept {
            Kept::Journal { journalctl } => journal::read(journalctl, query).await,
            Kept::File(settings) => file::read(settings.clone(), query.clone()).await,
            Kept::Nowhere => Err(LogReadError::NotKept),
        }
    }

    /// The last records and those that come, until the stream is dropped. It ends by itself only if the log cannot
    /// be read any longer.
    pub fn follow(&self, query: LogQuery) -> Result<BoxStream<'static, LogRecord>, LogReadError> {
        let permit = self.permits.clone().try_acquire_owned();
        let permit = permit.map_err(|_| LogReadError::Busy)?;
        let (records, waiting) = mpsc::channel(MAX_WAITING);
        match self.kept.clone() {
            Kept::Journal { journalctl } => {
                let mut child = journal::start(&journalctl, &query, true)?;
                tokio::spawn(async move { journal::pump(&mut child, &records).await });
            }
            Kept::File(settings) => {
                tokio::task::spawn_blocking(move || file::follow(&settings, &query, &records));
            }
            Kept::Nowhere => return Err(LogReadError::NotKept),
        }
        let stream = stream::unfold((waiting, permit), |(mut waiting, permit)| async move {
            Some((waiting.recv().await?, (waiting, permit)))
        });
        Ok(stream.boxed())
    }
}
