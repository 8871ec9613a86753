//! Files in one folder, reached through the folder's descriptor.
//!
//! Owns: making names durable, and never leaving the folder: names are opened beneath it without
//! following symbolic links (openat2(2); `O_NOFOLLOW` on kernels before 5.6). Must not: know what
//! is in the files.

use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags},
    io::Errno,
};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::runtime::{Handle, RuntimeFlavor};
use vman_actors::{
    failpoint::{self, Side},
    ports::FileError,
};

const FILE_MODE: Mode = Mode::from_raw_mode(0o600);

/// A folder that is held open.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    fd: Arc<OwnedFd>,
    path: PathBuf,
}

impl Folder {
    /// Opens a folder. The folder itself must not be a symbolic link.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self {
            fd: Arc::new(fd),
            path: path.to_owned(),
        })
    }

    /// Where a name in it is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn openat(&self, name: &str, flags: OFlags) -> io::Result<File> {
        // A pipe that was put here must not block us: O_NONBLOCK means nothing for files.
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mode = if flags.contains(OFlags::CREATE) {
            FILE_MODE
        } else {
            Mode::empty()
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let fd = match rustix::fs::openat2(&*self.fd, name, flags, mode, resolve) {
            Err(Errno::NOSYS | Errno::PERM) if !name.contains('/') => {
                rustix::fs::openat(&*self.fd, name, flags, mode)
            }
            other => other,
        };
        match fd {
            Ok(fd) => Ok(fd.into()),
            Err(Errno::LOOP) => Err(io::Error::other(
                "a symbolic link is in the place of a file",
            )),
            Err(error) => Err(error.into()),
        }
    }

    /// Creates a file that must not be there yet.
    pub(crate) fn create(&self, name: &str) -> io::Result<File> {
        self.openat(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
    }

    /// Opens a regular file for reading.
    pub(crate) fn read(&self, name: &str) -> io::Result<File> {
        regular(self.openat(name, OFlags::RDONLY)?)
    }

    /// Opens a regular file for writing.
    pub(crate) fn write(&self, name: &str) -> io::Result<File> {
        regular(self.openat(name, OFlags::RDWR)?)
    }

    /// Moves a file into another folder (in place of what has that name there if `replace`) and
    /// makes it durable. `AlreadyExists` without `replace`.
    pub(crate) fn move_to(
        &self,
        name: &str,
        to: &Folder,
        new_name: &str,
        replace: bool,
    ) -> io::Result<()> {
        let flags = if replace {
            RenameFlags::empty()
        } else {
            RenameFlags::NOREPLACE
        };
        failpoint::hit("file", "move", Side::Before);
        rustix::fs::renameat_with(&*self.fd, name, &*to.fd, new_name, flags)?;
        to.sync()?;
        failpoint::hit("file", "move", Side::After);
        Ok(())
    }

    /// Removes a file; it is no error if it is not there. Not durable before [`Folder::sync`].
    pub(crate) fn unlink(&self, name: &str) -> io::Result<bool> {
        match rustix::fs::unlinkat(&*self.fd, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Bytes that can still be written to the file system it is on.
    pub(crate) fn space(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&*self.fd)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Makes the names durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&*self.fd)?)
    }

    /// The names of everything in it but folders.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&*self.fd)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type() != FileType::Directory && name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }
}

fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is not a regular file"))
    }
}

/// A file that is removed when this is dropped, unless it was moved away. Its name is unique, so
/// that nothing else can have it later.
#[derive(Debug)]
pub(crate) struct Unfinished {
    folder: Folder,
    name: String,
}

impl Unfinished {
    pub(crate) fn new(folder: &Folder, name: String) -> Self {
        Self {
            folder: folder.clone(),
            name,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path(&self.name)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Err(error) = self.folder.unlink(&self.name) {
            tracing::warn!(file = %self.path().display(), %error, "cannot remove a half-made file");
        }
    }
}

/// What the system said, in the port's words.
pub(crate) fn file_error(what: impl Into<String>, error: &io::Error) -> FileError {
    let what = what.into();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FileError::NoSpace { what },
        _ => FileError::Io {
            what,
            error: error.to_string(),
        },
    }
}

/// Runs what blocks on a thread that may.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    then: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, FileError> {
    tokio::task::spawn_blocking(then)
        .await
        .unwrap_or_else(|error| {
            Err(FileError::Io {
                what: what.to_owned(),
                error: error.to_string(),
            })
        })
}

/// The same for a look at what is nearly always in memory: on the thread that asks, while another takes over its work,
/// so that nobody has to be woken to look and again to be told.
pub(crate) async fn looking<T: Send + 'static>(
    what: &'static str,
    then: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, FileError> {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(then),
        _ => blocking(what, then).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_symbolic_link_or_a_way_out_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "s").unwrap();
        let inside = dir.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        symlink("../secret", inside.join("link")).unwrap();
        symlink("..", inside.join("up")).unwrap();
        let folder = Folder::open(&inside).unwrap();
        for name in ["link", "../secret", "up/secret", "/etc/passwd"] {
            assert!(folder.read(name).is_err(), "{name}");
        }
        assert!(folder.create("link").is_err());
        let linked = dir.path().join("linked");
        symlink(&inside, &linked).unwrap();
        assert!(Folder::open(&linked).is_err());
    }

    #[test]
    fn a_pipe_in_the_place_of_a_file_is_refused_and_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let status = std::process::Command::new("mkfifo")
            .arg(dir.path().join("pipe"))
            .status();
        assert!(status.unwrap().success());
        assert!(Folder::open(dir.path()).unwrap().read("pipe").is_err());
    }

    #[test]
    fn a_file_is_not_moved_over_another_unless_asked() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        folder.create("a").unwrap();
        folder.create("b").unwrap();
        let error = folder.move_to("a", &folder, "b", false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        folder.move_to("a", &folder, "b", true).unwrap();
        assert_eq!(folder.names().unwrap(), ["b"]);
    }
}
