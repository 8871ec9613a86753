//! Copies of the file: the backup before an upgrade, and a copy to look at while a daemon holds the store.

use super::create::beside;
use crate::host::dirs::sync_dir;
use std::{
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// How often a copy is tried of a file that is written meanwhile, and how long between two tries.
const TRIES: u32 = 20;
const BETWEEN: Duration = Duration::from_millis(100);

/// A durable copy beside the file, whole or not there.
pub(super) fn copy(path: &Path, suffix: &str) -> io::Result<PathBuf> {
    let copy = beside(path, suffix);
    let new = beside(&copy, ".new");
    let made = written(path, &new).and_then(|file| file.sync_all());
    if let Err(error) = made.and_then(|()| fs::rename(&new, &copy)) {
        // What is half-made helps nobody, and may be what fills the disk.
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    sync_dir(copy.parent().unwrap_or(Path::new("/")))?;
    Ok(copy)
}

fn written(path: &Path, to: &Path) -> io::Result<File> {
    let mut copy = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(to)?;
    io::copy(&mut File::open(path)?, &mut copy)?;
    Ok(copy)
}

/// Copies a store that a running daemon may hold and write. redb can open a file as it was at any one moment; so a
/// copy is good if nothing was written while it was made.
pub fn copy_of_running(path: &Path, to: &Path) -> io::Result<()> {
    for _ in 0..TRIES {
        let before = fs::metadata(path)?;
        written(path, to)?;
        if unchanged(&before, &fs::metadata(path)?) {
            return Ok(());
        }
        thread::sleep(BETWEEN);
    }
    Err(io::Error::new(
        io::ErrorKind::ResourceBusy,
        "it is written all the time; try again when the daemon has less to do",
    ))
}

fn unchanged(before: &Metadata, after: &Metadata) -> bool {
    let stamp = |of: &Metadata| (of.ino(), of.len(), of.mtime(), of.mtime_nsec());
    stamp(before) == stamp(after)
}
