//! UNIX sockets in directories whose path may be longer than a socket address.
//!
//! `sun_path` holds 108 bytes; an operator's runtime directory may be longer. So sockets are bound
//! and connected through `/proc/self/fd/N/<name>`, N being their directory opened with `O_PATH`.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// A path that is good for as long as this lives.
#[derive(Debug)]
pub struct Beneath {
    _directory: OwnedFd,
    path: PathBuf,
}

impl Beneath {
    /// Opens the directory of `socket`.
    pub fn of(socket: &Path) -> io::Result<Self> {
        let (Some(parent), Some(name)) = (socket.parent(), socket.file_name()) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a socket's path",
            ));
        };
        let parent = if parent.as_os_str().is_empty() {
            Path::new(".")
        } else {
            parent
        };
        Self::within(parent, name)
    }

    fn within(parent: &Path, name: &OsStr) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(parent, flags, Mode::empty())?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
        Ok(Self {
            _directory: directory,
            path,
        })
    }

    /// The short path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Listens at `socket`, replacing one that nobody needs any more. Connections wait in its backlog
/// until QEMU, which inherits it, accepts them.
pub fn listen(socket: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(Beneath::of(socket)?.path())
}
