//! The durable rows in one redb file.
//!
//! Owns: the file, its safe creation, and the meaning of its errors (certain or unknown). Must not:
//! know what a row means, or decide what to do after an unknown outcome: the StateStore does.
//! Look next: [`backend`] for what lies between redb and the file, [`create`] for the first
//! creation, [`backup`] and [`keep`] for copies.
//!
//! | what failed | answer | the database afterwards |
//! |---|---|---|
//! | anything before the file's header was touched | `NoSpace`, `ReadOnly`, `Refused`: certain | opened again right away; reads go on |
//! | in the commit after the header was touched | `Unknown` | refuses everything until `open` |

mod backend;
mod backup;
mod create;
mod keep;
mod problem;
mod replace;
#[cfg(test)]
mod tests;

pub use backup::copy_of_running;
pub use replace::Replacement;

use backend::{GuardedFile, Shared, Watch};
use create::{Rows, definition};
use keep::Backups;
use problem::{Problem, contained, panic_text};
use redb::{
    Builder, Database, ReadableDatabase, StorageBackend, TableError, backends::FileBackend,
};
use std::{
    fs::{File, OpenOptions},
    io,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};
use vman_actors::ports::{
    CommitError, KeptCopy, LoadError, Row, Storage, Table, storage::KeyValue,
};
use vman_model::UnixMs;

/// Pages kept in memory. The inventory is held in memory anyway; this serves the event log.
const CACHE_BYTES: usize = 64 << 20;

type Wrap = dyn Fn(FileBackend) -> Box<dyn StorageBackend> + Send + Sync;

/// The durable rows in one redb file.
pub struct RedbStorage {
    path: PathBuf,
    /// A folder whose files say that there was an inventory.
    witnesses: Option<PathBuf>,
    /// Readers and the committer share it; `open` has it alone, so that no reader is left with
    /// pages of a file that was opened anew.
    state: RwLock<State>,
    committing: Mutex<()>,
    watch: Arc<Watch>,
    /// What lies between us and the file; tests put a failing file here.
    wrap: Box<Wrap>,
}

enum State {
    Open(Opened),
    /// Not usable, and why.
    Closed(String),
}

struct Opened {
    database: Database,
    read_only: bool,
}

/// How a try to commit ended.
enum Outcome {
    Committed,
    /// The store is not in a state to commit.
    NotTried(CommitError),
    /// Certainly nothing was written.
    Failed(CommitError),
    Unknown(String),
}

impl RedbStorage {
    /// The store in the file `path`. Nothing is touched before [`Storage::open`].
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::with_file(path, Box::new(|file| Box::new(file)))
    }

    /// The same, where files in `folder` say that there was an inventory: a store
    /// that is missing beside them was lost, whatever else is missing.
    #[must_use]
    pub fn with_witnesses(mut self, folder: PathBuf) -> Self {
        self.witnesses = Some(folder);
        self
    }

    fn with_file(path: impl Into<PathBuf>, wrap: Box<Wrap>) -> Self {
        Self {
            path: path.into(),
            witnesses: None,
            state: RwLock::new(State::Closed("it was not opened yet".to_owned())),
            committing: Mutex::new(()),
            watch: Arc::default(),
            wrap,
        }
    }

    fn open_file(&self) -> Result<Opened, Problem> {
        let (file, read_only) = open_for_writing_or_reading(&self.path)?;
        if file.metadata()?.len() == 0 {
            // redb would make an empty inventory of it.
            return Err(Problem::Corrupt("the file is empty".to_owned()));
        }
        contained(|| {
            let guarded = Arc::new(GuardedFile::new(
                file,
                read_only,
                self.watch.clone(),
                &*self.wrap,
            )?);
            let repaired = Arc::new(AtomicBool::new(false));
            let seen = repaired.clone();
            let mut database = Builder::new()
                .set_cache_size(CACHE_BYTES)
                .set_repair_callback(move |_| seen.store(true, Ordering::SeqCst))
                .create_with_backend(Shared(guarded.clone()))
                .map_err(Problem::from_open)?;
            // After an unclean end redb has verified all checksums. After a clean one it trusts
            // the file, down to its map of free pages: a flipped bit there would have live pages
            // overwritten.
            if !repaired.load(Ordering::SeqCst)
                && !database.check_integrity().map_err(Problem::from_open)?
            {
                return Err(Problem::Corrupt("its checksums do not match".to_owned()));
            }
            look(&database)?;
            guarded.accept()?;
            Ok(Opened {
                database,
                read_only,
            })
        })
    }

    /// Closes the file and opens it again.
    fn reopen(&self) -> Result<(), Problem> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        // The old one goes first: it holds the file's lock. Its closing may panic as well.
        let old = std::mem::replace(&mut *state, State::Closed("it is being opened".to_owned()));
        let _ = contained(|| {
            drop(old);
            Ok(())
        });
        match self.open_file() {
            Ok(opened) => {
                if opened.read_only {
                    tracing::warn!(file = %self.path.display(), "the store is read-only");
                }
                *state = State::Open(opened);
                Ok(())
            }
            Err(problem) => {
                *state = State::Closed(match &problem {
                    Problem::Locked => "another process holds it".to_owned(),
                    Problem::Corrupt(error) | Problem::Io(error) => error.clone(),
                });
                Err(problem)
            }
        }
    }

    fn close(&self, why: &str) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *state, State::Closed(why.to_owned()));
        let _ = contained(|| {
            drop(old);
            Ok(())
        });
    }

    fn read<T>(&self, then: impl FnOnce(&Database) -> Result<T, Problem>) -> Result<T, LoadError> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Open(opened) => contained(|| then(&opened.database)),
            State::Closed(why) => Err(Problem::Io(format!("it must be opened again: {why}"))),
        }
        .map_err(|problem| problem.at(&self.path))
    }

    fn try_commit(&self, batch: &[Row]) -> Outcome {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let opened = match &*state {
            State::Open(opened) if opened.read_only => {
                return Outcome::NotTried(CommitError::ReadOnly);
            }
            State::Open(opened) => opened,
            State::Closed(why) => {
                return Outcome::NotTried(must_be_opened(why));
            }
        };
        self.watch.begin();
        let error = match catch_unwind(AssertUnwindSafe(|| write(&opened.database, batch))) {
            Ok(Ok(())) => return Outcome::Committed,
            Ok(Err(error)) => error,
            Err(panic) => panic_text(&*panic),
        };
        let cause = self.watch.take_error();
        if self.watch.header_touched() {
            let cause = cause.map_or_else(String::new, |cause| format!(" ({cause})"));
            return Outcome::Unknown(format!("{error}{cause}"));
        }
        Outcome::Failed(match cause {
            Some(cause) => certain(&cause),
            None => CommitError::Refused(error),
        })
    }

    /// Whether a store that was opened for reading could be opened for writing now.
    fn writable_again(&self) -> bool {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        matches!(
            &*state,
            State::Open(Opened {
                read_only: true,
                ..
            })
        ) && OpenOptions::new().write(true).open(&self.path).is_ok()
    }
}

fn open_for_writing_or_reading(path: &Path) -> io::Result<(File, bool)> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => Ok((file, false)),
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            Ok((File::open(path)?, true))
        }
        Err(error) => Err(error),
    }
}

/// Whether the tables are ours. That they can be read is known by their checksums.
fn look(database: &Database) -> Result<(), Problem> {
    let transaction = database.begin_read()?;
    // The first commit made it; without it this is some other program's file.
    transaction.open_table(definition(Table::Meta))?;
    for table in Table::ALL {
        existing(transaction.open_table(definition(table)))?;
    }
    Ok(())
}

/// A table that an older version did not know is empty.
fn existing<T>(table: Result<T, TableError>) -> Result<Option<T>, Problem> {
    match table {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

type ReadRows = redb::ReadOnlyTable<&'static [u8], &'static [u8]>;

fn rows_of(database: &Database, table: Table) -> Result<Option<ReadRows>, Problem> {
    let transaction = database.begin_read()?;
    let definition: Rows = definition(table);
    existing(transaction.open_table(definition))
}

fn write(database: &Database, batch: &[Row]) -> Result<(), String> {
    // Durability::Immediate is the default, and with it one fsync a commit.
    let transaction = database.begin_write().map_err(|error| error.to_string())?;
    for table in Table::ALL {
        let mut rows = batch.iter().filter(|row| row.table == table).peekable();
        if rows.peek().is_none() {
            continue;
        }
        let mut open = transaction
            .open_table(definition(table))
            .map_err(|error| error.to_string())?;
        for row in rows {
            match &row.value {
                Some(value) => open.insert(row.key.as_slice(), value.as_slice()),
                None => open.remove(row.key.as_slice()),
            }
            .map_err(|error| error.to_string())?;
        }
    }
    transaction.commit().map_err(|error| error.to_string())
}

fn must_be_opened(why: &str) -> CommitError {
    CommitError::Refused(format!("the store must be opened again: {why}"))
}

fn certain(cause: &io::Error) -> CommitError {
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => CommitError::NoSpace,
        io::ErrorKind::ReadOnlyFilesystem => CommitError::ReadOnly,
        _ => CommitError::Refused(cause.to_string()),
    }
}

impl Drop for RedbStorage {
    fn drop(&mut self) {
        // Closing the database may panic, as any use of it.
        self.close("it is gone");
    }
}

impl Storage for RedbStorage {
    fn open(&self) -> Result<(), LoadError> {
        let _alone = self
            .committing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        contained(|| create::ensure(&self.path, self.witnesses.as_deref()))
            .and_then(|()| self.reopen())
            .map_err(|problem| problem.at(&self.path))
    }

    fn load(&self, table: Table) -> Result<Vec<KeyValue>, LoadError> {
        self.range(table, &[], usize::MAX)
    }

    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<KeyValue>, LoadError> {
        self.read(|database| {
            let Some(rows) = rows_of(database, table)? else {
                return Ok(Vec::new());
            };
            let bounds = (Bound::Included(from), Bound::Unbounded);
            rows.range::<&[u8]>(bounds)?
                .take(limit)
                .map(|row| {
                    let (key, value) = row?;
                    Ok((key.value().to_vec(), value.value().to_vec()))
                })
                .collect()
        })
    }

    fn moment(&self, tables: &[Table]) -> Result<Vec<(Table, KeyValue)>, LoadError> {
        self.read(|database| {
            let (transaction, mut all) = (database.begin_read()?, Vec::new());
            for table in tables {
                let Some(rows) = existing(transaction.open_table(definition(*table)))? else {
                    continue;
                };
                for row in rows.range::<&[u8]>(..)? {
                    let (key, value) = row?;
                    all.push((*table, (key.value().to_vec(), value.value().to_vec())));
                }
            }
            Ok(all)
        })
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, LoadError> {
        self.read(|database| {
            let Some(rows) = rows_of(database, table)? else {
                return Ok(None);
            };
            Ok(rows.get(key)?.map(|value| value.value().to_vec()))
        })
    }

    fn commit(&self, batch: &[Row]) -> Result<(), CommitError> {
        let _alone = self
            .committing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.writable_again() {
            // Failing is no news: what is closed refuses, below.
            let _ = self.reopen();
        }
        match self.try_commit(batch) {
            Outcome::Committed => Ok(()),
            Outcome::NotTried(error) => Err(error),
            Outcome::Failed(error) => {
                // redb refuses all after an error of the file. Nothing was written, so opening
                // it again loses nothing, and reads go on. If that fails too, the reads tell.
                let _ = self.reopen();
                Err(error)
            }
            Outcome::Unknown(error) => {
                self.close(&error);
                Err(CommitError::Unknown(error))
            }
        }
    }

    fn backup(&self, suffix: &str) -> Result<String, CommitError> {
        let _alone = self
            .committing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Closed in order, the file is whole by itself, whatever redb keeps in memory.
        self.close("it is being copied");
        let copied = backup::copy(&self.path, suffix);
        let open = self.reopen();
        let copy = copied.map_err(|error| certain(&error))?;
        open.map_err(|problem| CommitError::Refused(problem.at(&self.path).to_string()))?;
        Ok(copy.display().to_string())
    }

    fn keep_copy(&self, at: UnixMs, keep: usize) -> Result<KeptCopy, CommitError> {
        // Only opening the file anew waits for this; commits and reads share the state.
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Open(opened) => Backups::of(&self.path).make(&opened.database, at, keep),
            State::Closed(why) => Err(must_be_opened(why)),
        }
    }

    fn size(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |file| file.len())
    }
}
