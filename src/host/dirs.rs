//! The layout of the storage path, and the lock by which one daemon owns it.
//!
//! Must not: know what is in the files. Look next: [`super::images`], [`super::disks`],
//! [`super::store_redb`].

use super::proc;
use rustix::process::Pid;
use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

/// The holder writes its pid right after it got the lock: how often, and how long apart, a second
/// daemon looks for it.
const HOLDER_LOOKS: u32 = 5;
const HOLDER_PAUSE: Duration = Duration::from_millis(10);
/// How often, and how long apart, a lock without a living holder is tried again: about two seconds,
/// for a child of a killed daemon on its way to exec.
const DYING_LOOKS: u32 = 100;
const DYING_PAUSE: Duration = Duration::from_millis(20);
/// The lock file holds two numbers.
const HOLDER_MAX_BYTES: u64 = 64;

/// How the name of a backup ends that is being made.
pub(crate) const HALF_MADE: &str = "part";

/// Where things are under the storage path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageDirs {
    root: PathBuf,
}

impl StorageDirs {
    /// The layout under `root`; nothing is created.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The storage path itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A folder a VM: its console and logs.
    pub fn vms(&self) -> PathBuf {
        self.root.join("vms")
    }

    /// Disk files, `<id>.<format>`.
    pub fn disks(&self) -> PathBuf {
        self.root.join("disks")
    }

    /// Image files, by name.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Files that are being made; emptied when the lock is taken.
    pub fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// A manifest for each record, from which a lost database is made again.
    pub fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    /// Copies of the database.
    pub fn backups(&self) -> PathBuf {
        self.root.join("backups")
    }

    /// What was put away, until its retention ends.
    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// The database.
    pub fn store_file(&self) -> PathBuf {
        self.root.join("vman.redb")
    }

    /// The database of dry runs: what is simulated is never told of real VMs.
    pub fn simulated_store_file(&self) -> PathBuf {
        self.root.join("simulated.redb")
    }

    /// The file that is locked.
    pub fn lock_file(&self) -> PathBuf {
        self.root.join("vman.lock")
    }

    fn create(&self) -> io::Result<()> {
        let mut private = DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(&self.root)?;
        for folder in [self.vms(), self.disks(), self.images(), self.tmp()] {
            private.create(folder)?;
        }
        sync_dir(&self.root)
    }

    /// Removes what an earlier daemon was in the midst of making. Only under the lock.
    fn remove_half_made(&self) -> io::Result<()> {
        remove_files(&self.tmp(), |_| true)?;
        match remove_files(&self.backups(), |path| {
            path.extension().is_some_and(|ending| ending == HALF_MADE)
        }) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

fn remove_files(folder: &Path, which: impl Fn(&Path) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if !entry.file_type()?.is_dir() && which(&path) {
            fs::remove_file(&path)?;
            tracing::info!(file = %path.display(), "removed a half-made file");
        }
    }
    Ok(())
}

/// Makes the names in a folder durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Puts a private file in its place as a whole or not at all, also over a power cut.
pub(crate) fn put_whole(
    path: &Path,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut options = OpenOptions::new();
    let private = options.create(true).write(true).truncate(true).mode(0o600);
    let mut file = private.open(&new)?;
    fill(&mut file)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// The process that holds a storage path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its start time in clock ticks since boot (proc(5), field 22 of `stat`).
    pub start_time: u64,
}

impl Holder {
    fn this_process() -> Option<Self> {
        let pid = std::process::id();
        Some(Self {
            pid,
            start_time: start_time(pid)?,
        })
    }

    /// Who is written in the lock file, if that process still lives.
    fn read(path: &Path) -> Option<Self> {
        let mut text = String::new();
        let file = File::open(path).ok()?;
        file.take(HOLDER_MAX_BYTES).read_to_string(&mut text).ok()?;
        let (pid, start) = text.trim().split_once(' ')?;
        let holder = Self {
            pid: pid.parse().ok()?,
            start_time: start.parse().ok()?,
        };
        (start_time(holder.pid) == Some(holder.start_time)).then_some(holder)
    }
}

/// The process that holds the storage path in which `file` is, if it can be told.
pub(crate) fn holder_beside(file: &Path) -> Option<Holder> {
    Holder::read(&file.parent()?.join("vman.lock"))
}

fn start_time(pid: u32) -> Option<u64> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    proc::start_time(pid).ok()?
}

/// Why the storage path could not be had.
#[derive(Debug, thiserror::Error)]
pub enum StorageLockError {
    /// Another daemon holds it.
    #[error("another vman{} holds {path}", holder.map(|h| format!(" (pid {})", h.pid)).unwrap_or_default())]
    Held {
        /// The storage path.
        path: String,
        /// Who, if it could be told.
        holder: Option<Holder>,
    },
    /// The folders or the lock could not be made.
    #[error("cannot use the storage path {path}: {error}")]
    Io {
        /// The storage path.
        path: String,
        /// What the system said.
        error: io::Error,
    },
}

/// The right to use a storage path; given back when it is dropped or the process ends.
#[derive(Debug)]
pub struct StorageLock {
    dirs: StorageDirs,
    _file: File,
}

impl StorageLock {
    /// Makes the layout, takes the lock, and removes half-made files. On a read-only
    /// file system the lock alone is taken.
    ///
    /// The lock is flock(2)'s: it belongs to the open file, ends with the process however it ends,
    /// and the descriptor is close-on-exec, so that no QEMU inherits it.
    pub fn acquire(storage_path: &Path) -> Result<Self, StorageLockError> {
        let io_error = |error| StorageLockError::Io {
            path: storage_path.display().to_string(),
            error,
        };
        let dirs = StorageDirs::new(storage_path);
        let (file, read_only) = open_lock(&dirs).map_err(io_error)?;
        match try_lock(&file, &dirs) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StorageLockError::Held {
                    path: storage_path.display().to_string(),
                    holder: look_for_holder(&dirs.lock_file()),
                });
            }
            Err(TryLockError::Error(error)) => return Err(io_error(error)),
        }
        if read_only {
            tracing::warn!(
                storage = %dirs.root().display(),
                "the storage path is on a read-only file system: guests are found again and reads answered, changes are refused"
            );
        } else {
            write_holder(&file).map_err(io_error)?;
            dirs.remove_half_made().map_err(io_error)?;
        }
        Ok(Self { dirs, _file: file })
    }

    /// The layout that is owned.
    pub fn dirs(&self) -> &StorageDirs {
        &self.dirs
    }
}

/// Makes the layout and opens the lock's file; tells whether the file system is
/// read-only. Guests outlive what made it so: where everything is there already,
/// a daemon can look after them without writing.
fn open_lock(dirs: &StorageDirs) -> io::Result<(File, bool)> {
    let made = dirs.create().and_then(|()| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dirs.lock_file())
    });
    match made {
        // flock(2) needs no file that can be written.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            Ok((File::open(dirs.lock_file())?, true))
        }
        other => Ok((other?, false)),
    }
}

/// Takes the lock. A daemon that was killed while it started a QEMU leaves a child that holds the
/// lock until its exec, some milliseconds later: without a living holder the lock is waited for.
fn try_lock(file: &File, dirs: &StorageDirs) -> Result<(), TryLockError> {
    for _ in 0..DYING_LOOKS {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Holder::read(&dirs.lock_file()).is_none() => {
                std::thread::sleep(DYING_PAUSE);
            }
            other => return other,
        }
    }
    file.try_lock()
}

/// Whether files can be written below `root`: tried with one of one byte.
pub fn check_writable(root: &Path) -> Result<(), String> {
    let told = |error: io::Error| {
        format!(
            "the storage path {} cannot be written: {error}",
            root.display()
        )
    };
    let path = StorageDirs::new(root).tmp().join("health-check");
    fs::write(&path, b"x").map_err(told)?;
    fs::remove_file(&path).map_err(told)
}

fn look_for_holder(path: &Path) -> Option<Holder> {
    for _ in 0..HOLDER_LOOKS {
        if let Some(holder) = Holder::read(path) {
            return Some(holder);
        }
        std::thread::sleep(HOLDER_PAUSE);
    }
    None
}

/// Best on disks that are not full: who holds the lock is a courtesy, the lock is not.
fn write_holder(mut file: &File) -> io::Result<()> {
    let Some(holder) = Holder::this_process() else {
        return Ok(());
    };
    file.set_len(0)?;
    file.rewind()?;
    let line = format!("{} {}\n", holder.pid, holder.start_time);
    if let Err(error) = file.write_all(line.as_bytes()) {
        tracing::warn!(%error, "cannot write the holder into the lock file");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_second_lock_is_refused_and_says_who_holds_the_storage() {
        let dir = tempfile::tempdir().unwrap();
        let first = StorageLock::acquire(dir.path()).unwrap();
        let error = StorageLock::acquire(dir.path()).unwrap_err();
        let expected = format!(
            "another vman (pid {}) holds {}",
            std::process::id(),
            dir.path().display()
        );
        assert_eq!(error.to_string(), expected);
        drop(first);
        StorageLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn what_a_dead_daemon_left_does_not_hinder() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("vman.lock"), "4194304 1\n").unwrap();
        fs::create_dir(dir.path().join("tmp")).unwrap();
        fs::write(dir.path().join("tmp/image-x.part"), "half").unwrap();
        fs::create_dir(dir.path().join("backups")).unwrap();
        fs::write(dir.path().join("backups/vman-1.part"), "half").unwrap();
        fs::write(dir.path().join("backups/vman-0.redb"), "whole").unwrap();
        let lock = StorageLock::acquire(dir.path()).unwrap();
        assert_eq!(fs::read_dir(lock.dirs().tmp()).unwrap().count(), 0);
        let mut backups = fs::read_dir(lock.dirs().backups()).unwrap();
        assert_eq!(backups.next().unwrap().unwrap().file_name(), "vman-0.redb");
        assert!(backups.next().is_none());
        let holder = Holder::read(&lock.dirs().lock_file()).unwrap();
        assert_eq!(holder.pid, std::process::id());
    }

    #[test]
    fn the_layout_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("deep/storage");
        let lock = StorageLock::acquire(&root).unwrap();
        let dirs = lock.dirs();
        for folder in [
            root.clone(),
            dirs.vms(),
            dirs.disks(),
            dirs.images(),
            dirs.tmp(),
        ] {
            let mode = fs::metadata(&folder).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{}", folder.display());
        }
    }

    #[test]
    fn a_child_process_does_not_inherit_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let lock = StorageLock::acquire(dir.path()).unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        drop(lock);
        let again = StorageLock::acquire(dir.path());
        child.kill().unwrap();
        child.wait().unwrap();
        again.unwrap();
    }

    #[test]
    fn a_storage_path_that_is_a_file_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "").unwrap();
        let error = StorageLock::acquire(&path).unwrap_err();
        assert!(matches!(error, StorageLockError::Io { .. }), "{error}");
    }
}
