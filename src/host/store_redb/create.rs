//! How the file comes to be, once.
//!
//! redb cannot open a file whose very first creation was cut short. So the first commit is made
//! under another name, synced, renamed, and the folder synced. A marker beside the file then says
//! that it exists: a file that is gone later was lost, and must not become an empty inventory.

use super::{backend::allocate, problem::Problem};
use crate::host::dirs::sync_dir;
use redb::{Builder, TableDefinition};
use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use vman_actors::ports::Table;

pub(super) type Rows = TableDefinition<'static, &'static [u8], &'static [u8]>;

pub(super) fn definition(table: Table) -> Rows {
    TableDefinition::new(table.as_str())
}

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// The marker that says that the file exists.
pub(super) fn marker(path: &Path) -> PathBuf {
    beside(path, ".created")
}

/// Creates the file if it was never there. Files in `witnesses` say that it was.
pub(super) fn ensure(path: &Path, witnesses: Option<&Path>) -> Result<(), Problem> {
    let marker = marker(path);
    match (path.try_exists()?, marker.try_exists()?) {
        (true, true) => Ok(()),
        // Cut short between the two, or a file that was restored by hand.
        (true, false) => Ok(mark(&marker)?),
        (false, true) => Err(Problem::Corrupt(format!(
            "the file is gone although it was created once, as {} says",
            marker.display()
        ))),
        (false, false) if witnesses.is_some_and(any_file_below) => Err(Problem::Corrupt(format!(
            "the file is gone although {} tells of an inventory",
            witnesses.unwrap_or(path).display()
        ))),
        (false, false) => {
            create(path)?;
            Ok(mark(&marker)?)
        }
    }
}

/// Whether there is any file in a folder or in its folders. What cannot be
/// looked at counts: nothing is made anew on a guess.
fn any_file_below(folder: &Path) -> bool {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return error.kind() != io::ErrorKind::NotFound,
    };
    entries.into_iter().any(|entry| {
        let Ok(entry) = entry else { return true };
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => any_file_below(&entry.path()),
            _ => true,
        }
    })
}

pub(super) fn mark(marker: &Path) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(marker)?
        .sync_all()?;
    sync_dir(marker.parent().unwrap_or(Path::new("/")))
}

fn create(path: &Path) -> Result<(), Problem> {
    let new = beside(path, ".new");
    match fs::remove_file(&new) {
        Ok(()) => tracing::info!(file = %new.display(), "removed a half-made store"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    let synced = file.try_clone()?;
    let database = Builder::new()
        .create_file(file)
        .map_err(Problem::from_open)?;
    let transaction = database
        .begin_write()
        .map_err(|error| Problem::Io(error.to_string()))?;
    for table in Table::ALL {
        transaction
            .open_table(definition(table))
            .map_err(|error| Problem::Io(error.to_string()))?;
    }
    transaction
        .commit()
        .map_err(|error| Problem::Io(error.to_string()))?;
    drop(database);
    // redb leaves holes: a full disk would be met in the midst of a commit.
    allocate(&synced, 0, synced.metadata()?.len())?;
    synced.sync_all()?;
    fs::rename(&new, path)?;
    Ok(sync_dir(path.parent().unwrap_or(Path::new("/")))?)
}
