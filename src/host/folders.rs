//! What lies in our folders, for the observer, and the trash folder.
//!
//! Owns: `<storage>/trash`, whose entries are named `<unix ms>-<room>-<name>`, so that the retention
//! hangs on no file's times. Must not: delete what holds data in one step (it goes to the trash
//! first), or follow a link. Look next: [`super::dirs`] for the layout.

use super::{cgroup, dirs::StorageDirs, folder::blocking, proc, qemu::layout::CGROUPS_NOTE};
use rustix::{fs::RenameFlags, process::Pid};
use std::{
    fs::{self, DirBuilder, Metadata},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use vman_actors::ports::{BoxFuture, FileError, Folders, HostError};
use vman_model::{
    drift::{FileKind, Room, SeenFile, SeenFiles},
    vm::ProcessIdentity,
};

/// The folders of this daemon.
#[derive(Clone, Debug)]
pub struct HostFolders {
    storage: PathBuf,
    runtime: PathBuf,
}

impl HostFolders {
    /// Below the storage path and the run-time path.
    pub fn new(dirs: &StorageDirs, runtime: PathBuf) -> Self {
        let storage = dirs.root();
        Self {
            // As /proc tells the paths of open files.
            storage: storage.canonicalize().unwrap_or_else(|_| storage.into()),
            runtime: runtime.canonicalize().unwrap_or(runtime),
        }
    }

    fn folder(&self, room: Room) -> PathBuf {
        let dirs = StorageDirs::new(&self.storage);
        match room {
            Room::Disks => dirs.disks(),
            Room::Images => dirs.images(),
            Room::VmFolders => dirs.vms(),
            Room::Runtime => self.runtime.join("vms"),
        }
    }

    fn trash(&self) -> PathBuf {
        StorageDirs::new(&self.storage).trash()
    }

    fn list(&self, room: Room) -> io::Result<Vec<SeenFile>> {
        let now = SystemTime::now();
        let entries = match fs::read_dir(self.folder(room)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut seen = Vec::new();
        for entry in entries {
            let entry = entry?;
            let found = match entry.metadata() {
                // Removed since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            seen.push(SeenFile {
                name: entry.file_name().to_string_lossy().into_owned(),
                kind: kind_of(&found),
                bytes: found.len(),
                age_ms: u64::try_from(age(&found, now).as_millis()).unwrap_or(u64::MAX),
            });
        }
        Ok(seen)
    }

    fn put_away(&self, room: Room, name: &str, grace: Duration) -> io::Result<bool> {
        // Names come from a listing; still, one that leads elsewhere is refused.
        if name.contains('/') || name.starts_with('.') {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let path = self.folder(room).join(name);
        let found = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        if kind_of(&found) == FileKind::Other || age(&found, SystemTime::now()) <= grace {
            return Ok(false);
        }
        if room == Room::Runtime {
            remove_sockets(&path)?;
            return Ok(true);
        }
        let label = format!("{}-{name}", room.as_str());
        into_trash(&self.trash(), &path, &label)?;
        super::dirs::sync_dir(&self.folder(room))?;
        Ok(true)
    }

    fn empty_trash(&self, retention: Duration) -> io::Result<usize> {
        let entries = match fs::read_dir(self.trash()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            other => other?,
        };
        let (now, mut removed) = (unix_ms(), 0);
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let since = name.to_str().and_then(|name| name.split_once('-'));
            let Some(since) = since.and_then(|(since, _)| since.parse::<u64>().ok()) else {
                continue;
            };
            if u128::from(now.saturating_sub(since)) <= retention.as_millis() {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
            removed += 1;
        }
        Ok(removed)
    }

    fn holds_ours(&self, process: &ProcessIdentity) -> io::Result<bool> {
        let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
        let Some(pid) = pid else { return Ok(false) };
        let entries = match fs::read_dir(format!("/proc/{}/fd", process.pid)) {
            Err(error) if is_gone(&error) => return Ok(false),
            // Another user's: a QEMU of ours runs as ourselves.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(false),
            other => other?,
        };
        let ours = |path: &Path| path.starts_with(&self.storage) || path.starts_with(&self.runtime);
        let holds = entries
            .flatten()
            .any(|entry| fs::read_link(entry.path()).is_ok_and(|target| ours(&target)));
        // Only now is it sure whose descriptors those were.
        Ok(holds && proc::start_time(pid)? == Some(process.start_time))
    }
}

/// Moves `path` into the trash folder as `<unix ms>-<label>`, durably there; the
/// folder that it leaves is the caller's to sync.
pub(crate) fn into_trash(trash: &Path, path: &Path, label: &str) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(trash)?;
    // Never over something that is there.
    let (from, to) = (rustix::fs::CWD, rustix::fs::CWD);
    let target = trash.join(format!("{}-{label}", unix_ms()));
    rustix::fs::renameat_with(from, path, to, &target, RenameFlags::NOREPLACE)?;
    super::dirs::sync_dir(trash)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

fn kind_of(found: &Metadata) -> FileKind {
    if found.is_file() {
        FileKind::File
    } else if found.is_dir() {
        FileKind::Folder
    } else {
        FileKind::Other
    }
}

/// Zero for a file from the future: the clock was set back, and it counts as young.
fn age(found: &Metadata, now: SystemTime) -> Duration {
    let modified = found.modified().unwrap_or(now);
    now.duration_since(modified).unwrap_or_default()
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// Sockets and the control groups that are noted beside them: a folder that holds anything else is
/// left as it is.
fn remove_sockets(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    cgroup::remove(&folder.join(CGROUPS_NOTE))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_socket() {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

fn told<T>(what: &str, result: Result<io::Result<T>, FileError>) -> Result<T, HostError> {
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(HostError(format!("{what}: {error}"))),
        Err(error) => Err(HostError(error.to_string())),
    }
}

impl Folders for HostFolders {
    fn look(&self) -> BoxFuture<'static, Result<Option<SeenFiles>, HostError>> {
        let folders = self.clone();
        Box::pin(async move {
            let listed = blocking("listing the folders", move || {
                let list = |room| folders.list(room);
                let seen = || -> io::Result<SeenFiles> {
                    Ok(SeenFiles {
                        disks: list(Room::Disks)?,
                        images: list(Room::Images)?,
                        vm_folders: list(Room::VmFolders)?,
                        runtime: list(Room::Runtime)?,
                    })
                };
                Ok(seen())
            });
            told("cannot list the folders", listed.await).map(Some)
        })
    }

    fn holds_ours(&self, process: ProcessIdentity) -> BoxFuture<'static, Result<bool, HostError>> {
        let folders = self.clone();
        Box::pin(async move {
            let pid = process.pid;
            let looked = blocking("looking at a process", move || {
                Ok(folders.holds_ours(&process))
            });
            told(&format!("cannot look at process {pid}"), looked.await)
        })
    }

    fn put_away(
        &self,
        room: Room,
        name: String,
        grace: Duration,
    ) -> BoxFuture<'static, Result<bool, HostError>> {
        let folders = self.clone();
        Box::pin(async move {
            let what = format!("cannot put {}/{name} away", room.as_str());
            let put = blocking("putting a file away", move || {
                Ok(folders.put_away(room, &name, grace))
            });
            told(&what, put.await)
        })
    }

    fn empty_trash(&self, retention: Duration) -> BoxFuture<'static, Result<usize, HostError>> {
        let folders = self.clone();
        Box::pin(async move {
            let emptied = blocking("emptying the trash", move || {
                Ok(folders.empty_trash(retention))
            });
            told("cannot empty the trash", emptied.await)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::dirs::StorageLock;
    use rustix::fs::Timespec;
    use std::{os::unix::net::UnixListener, process::Command};

    const GRACE: Duration = Duration::from_mins(10);

    fn folders(root: &Path) -> (StorageLock, HostFolders) {
        let lock = StorageLock::acquire(&root.join("storage")).unwrap();
        fs::create_dir_all(root.join("run/vms")).unwrap();
        let folders = HostFolders::new(lock.dirs(), root.join("run"));
        (lock, folders)
    }

    fn make_old(path: &Path) {
        let old = Timespec {
            tv_sec: 1_000_000_000,
            tv_nsec: 0,
        };
        let times = rustix::fs::Timestamps {
            last_access: old,
            last_modification: old,
        };
        let flags = rustix::fs::AtFlags::empty();
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
    }

    #[test]
    fn what_lies_in_the_folders_is_told_with_its_kind_its_length_and_its_age() {
        let dir = tempfile::tempdir().unwrap();
        let (lock, folders) = folders(dir.path());
        let disk = lock.dirs().disks().join("d.raw");
        fs::write(&disk, b"12345").unwrap();
        make_old(&disk);
        std::os::unix::fs::symlink("/etc/passwd", lock.dirs().disks().join("link")).unwrap();
        fs::create_dir(lock.dirs().vms().join("web-1")).unwrap();
        let mut disks = folders.list(Room::Disks).unwrap();
        disks.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!((disks[0].kind, disks[0].bytes), (FileKind::File, 5));
        assert!(disks[0].age_ms > 1_000_000_000);
        assert_eq!(disks[1].kind, FileKind::Other, "a link is not followed");
        let vms = folders.list(Room::VmFolders).unwrap();
        assert_eq!(
            (vms[0].kind, vms[0].age_ms < 60_000),
            (FileKind::Folder, true)
        );
    }

    #[test]
    fn an_old_file_goes_to_the_trash_and_is_deleted_only_after_the_retention() {
        let dir = tempfile::tempdir().unwrap();
        let (lock, folders) = folders(dir.path());
        let disk = lock.dirs().disks().join("d.raw");
        fs::write(&disk, b"precious").unwrap();
        let put = |grace| folders.put_away(Room::Disks, "d.raw", grace).unwrap();
        assert!(!put(GRACE), "it is young");
        make_old(&disk);
        assert!(put(GRACE) && !disk.exists());
        assert!(!put(GRACE), "it is there no more");
        let kept: Vec<_> = fs::read_dir(folders.trash()).unwrap().flatten().collect();
        assert_eq!(fs::read(kept[0].path()).unwrap(), b"precious");
        assert_eq!(folders.empty_trash(GRACE).unwrap(), 0);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(folders.empty_trash(Duration::ZERO).unwrap(), 1);
        assert!(!kept[0].path().exists());
    }

    #[test]
    fn what_a_person_put_into_the_trash_folder_is_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let (_lock, folders) = folders(dir.path());
        fs::create_dir(folders.trash()).unwrap();
        fs::write(folders.trash().join("mine.txt"), b"x").unwrap();
        assert_eq!(folders.empty_trash(Duration::ZERO).unwrap(), 0);
        assert!(folders.trash().join("mine.txt").exists());
    }

    #[test]
    fn a_folder_of_stale_sockets_is_removed_and_one_with_other_files_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (_lock, folders) = folders(dir.path());
        let run = dir.path().join("run/vms");
        for name in ["stale", "odd"] {
            fs::create_dir(run.join(name)).unwrap();
            drop(UnixListener::bind(run.join(name).join("qmp.sock")).unwrap());
        }
        fs::write(run.join("odd/notes"), b"x").unwrap();
        for name in ["stale", "odd"] {
            make_old(&run.join(name));
        }
        assert!(folders.put_away(Room::Runtime, "stale", GRACE).unwrap());
        assert!(!run.join("stale").exists());
        assert!(folders.put_away(Room::Runtime, "odd", GRACE).is_err());
        assert!(run.join("odd/notes").exists());
    }

    #[test]
    fn a_name_that_leads_out_of_the_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (_lock, folders) = folders(dir.path());
        for name in ["../vman.lock", "..", ".hidden"] {
            assert!(
                folders.put_away(Room::Disks, name, GRACE).is_err(),
                "{name}"
            );
        }
    }

    #[test]
    fn a_process_is_ours_if_it_has_a_file_of_ours_open() {
        let dir = tempfile::tempdir().unwrap();
        let (lock, folders) = folders(dir.path());
        let log = fs::File::create(lock.dirs().vms().join("log")).unwrap();
        let mut ours = Command::new("sleep").arg("60").stdout(log).spawn().unwrap();
        let mut other = Command::new("sleep").arg("60").spawn().unwrap();
        let identity = |child: &std::process::Child| {
            let pid = Pid::from_child(child);
            ProcessIdentity {
                pid: child.id(),
                start_time: proc::start_time(pid).unwrap().unwrap(),
                boot_id: proc::boot_id().unwrap(),
            }
        };
        let (mine, not_mine) = (identity(&ours), identity(&other));
        let told = [&mine, &not_mine].map(|of| folders.holds_ours(of).unwrap());
        let earlier = ProcessIdentity {
            start_time: mine.start_time - 1,
            ..mine
        };
        let of_a_used_pid = folders.holds_ours(&earlier).unwrap();
        for child in [&mut ours, &mut other] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(told, [true, false]);
        assert!(!of_a_used_pid, "the pid was another's before");
    }
}
