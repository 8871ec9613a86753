//! Dated copies of the store that are kept while it is in use.
//!
//! A copy is written row by row from one read transaction: it is the store of one moment, whatever is committed
//! meanwhile, and nobody waits for it. Owns: the folder `backups` beside the store, the copies' names, and that a copy
//! is whole or not there. Must not: touch a file there that is not of its own naming.
//! Look next: [`super::backup`] for copies of the file as it lies.

use super::{
    backend::{GuardedFile, Shared, Watch},
    certain,
    create::{Rows, definition},
    existing,
    problem::{Problem, contained},
};
use crate::host::dirs::{HALF_MADE, StorageDirs, sync_dir};
use redb::{Builder, Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};
use vman_actors::ports::{CommitError, KeptCopy, Table, storage::KeyValue};
use vman_model::UnixMs;

/// Pages of the copy that are kept in memory while it is written.
const CACHE_BYTES: usize = 16 << 20;

/// Where copies of a store go, and how they are called.
pub(super) struct Backups {
    folder: PathBuf,
    /// `vman-` for `vman.redb`.
    prefix: String,
}

impl Backups {
    pub(super) fn of(store: &Path) -> Self {
        let folder = store.parent().unwrap_or(Path::new("/"));
        let stem = store.file_stem().unwrap_or_default().to_string_lossy();
        Self {
            folder: StorageDirs::new(folder).backups(),
            prefix: format!("{stem}-"),
        }
    }

    /// Makes a copy that is dated `at`, and lets at most `keep` be.
    pub(super) fn make(
        &self,
        database: &Database,
        at: UnixMs,
        keep: usize,
    ) -> Result<KeptCopy, CommitError> {
        let io_error = |error: io::Error| certain(&error);
        self.make_folder().map_err(io_error)?;
        let whole = self
            .folder
            .join(format!("{}{}.redb", self.prefix, label(at)));
        let half = whole.with_extension(HALF_MADE);
        let meta = match written(database, &half).and_then(|meta| {
            put_in_place(&half, &whole).map_err(io_error)?;
            Ok(meta)
        }) {
            Ok(meta) => meta,
            Err(error) => {
                // What is half-made helps nobody, and may be what fills the disk.
                let _ = fs::remove_file(&half);
                return Err(error);
            }
        };
        Ok(KeptCopy {
            bytes: fs::metadata(&whole).map_or(0, |file| file.len()),
            removed: self.remove_old(&whole, keep),
            file: whole.display().to_string(),
            meta,
        })
    }

    fn make_folder(&self) -> io::Result<()> {
        if self.folder.is_dir() {
            return Ok(());
        }
        DirBuilder::new().mode(0o700).create(&self.folder)?;
        sync_dir(self.folder.parent().unwrap_or(Path::new("/")))
    }

    /// Removes the oldest beyond `keep`, never `made`. One that cannot be removed is left for the next time.
    fn remove_old(&self, made: &Path, keep: usize) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return Vec::new();
        };
        let paths = entries.flatten().map(|entry| entry.path());
        let mut others: Vec<_> = paths
            .filter(|path| path != made && self.is_ours(path))
            .collect();
        // Their dates sort as their names do.
        others.sort();
        let beyond = (others.len() + 1).saturating_sub(keep);
        let old = others.into_iter().take(beyond);
        old.filter(|path| match fs::remove_file(path) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "cannot remove an old backup");
                false
            }
        })
        .map(|path| path.display().to_string())
        .collect()
    }

    fn is_ours(&self, path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str());
        name.and_then(|name| name.strip_prefix(&self.prefix)?.strip_suffix(".redb"))
            .is_some_and(is_label)
    }
}

/// `20261121T052400123Z`: sorts by time, and has no dot that would end the name.
fn label(at: UnixMs) -> String {
    let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX);
    time.strftime("%Y%m%dT%H%M%S%3fZ").to_string()
}

fn is_label(text: &str) -> bool {
    let shape = "00000000T000000000Z";
    text.len() == shape.len()
        && text
            .chars()
            .zip(shape.chars())
            .all(|(is, shape)| match shape {
                '0' => is.is_ascii_digit(),
                other => is == other,
            })
}

/// A new database at `path` with all rows of `database`, synced; answers the rows of [`Table::Meta`].
fn written(database: &Database, path: &Path) -> Result<Vec<KeyValue>, CommitError> {
    let io_error = |error: io::Error| certain(&error);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(io_error)?;
    let synced = file.try_clone().map_err(io_error)?;
    let watch = Arc::<Watch>::default();
    let meta = contained(|| filled(database, file, &watch));
    // Closing it wrote as well, and redb does not tell how that went.
    if let Some(cause) = watch.take_error() {
        return Err(certain(&cause));
    }
    let meta = meta.map_err(|problem| {
        CommitError::Refused(match problem {
            Problem::Corrupt(error) | Problem::Io(error) => error,
            Problem::Locked => "another process holds the copy".to_owned(),
        })
    })?;
    synced.sync_all().map_err(io_error)?;
    Ok(meta)
}

fn filled(database: &Database, file: File, watch: &Arc<Watch>) -> Result<Vec<KeyValue>, Problem> {
    let guarded = GuardedFile::new(file, false, watch.clone(), &|file| Box::new(file))?;
    // There is nothing that a trial would have to protect.
    guarded.accept()?;
    let copy = Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(Shared(Arc::new(guarded)))
        .map_err(Problem::from_open)?;
    copy_rows(&database.begin_read()?, &copy)
}

fn copy_rows(from: &ReadTransaction, to: &Database) -> Result<Vec<KeyValue>, Problem> {
    let transaction = to.begin_write()?;
    let mut meta = Vec::new();
    for table in Table::ALL {
        let definition: Rows = definition(table);
        let mut copy = transaction.open_table(definition)?;
        let Some(rows) = existing(from.open_table(definition))? else {
            continue;
        };
        for row in rows.iter()? {
            let (key, value) = row?;
            copy.insert(key.value(), value.value())?;
            if table == Table::Meta {
                meta.push((key.value().to_vec(), value.value().to_vec()));
            }
        }
    }
    let committed = transaction.commit();
    committed.map_err(|error| Problem::Io(error.to_string()))?;
    Ok(meta)
}

/// Gives what is whole and synced its name; one that is there already is not replaced.
fn put_in_place(half: &Path, whole: &Path) -> io::Result<()> {
    renameat_with(CWD, half, CWD, whole, RenameFlags::NOREPLACE)?;
    sync_dir(whole.parent().unwrap_or(Path::new("/")))
}
