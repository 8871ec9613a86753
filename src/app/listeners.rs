//! The daemon's listeners: a UNIX socket and, where configured, TCP.

use crate::{config::Config, http::Listeners};
use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
};
use tokio::net::{TcpListener, TcpSocket, UnixListener};

/// Connections that may wait to be accepted; the kernel cuts it to `somaxconn`. One that finds no
/// place tries again only after a second.
const BACKLOG: u32 = 4_096;

/// The group that may use the socket, where it exists.
pub(super) const GROUP: &str = "vman";

/// Why a listener could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// TCP.
    #[error("cannot listen on {address}: {error}; choose another with VMAN_LISTEN")]
    Tcp {
        /// Where.
        address: std::net::SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The UNIX socket.
    #[error("cannot listen on {path}: {error}")]
    Unix {
        /// Where.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A living process answers on the socket.
    #[error("another process listens on {0}: choose another with VMAN_SOCKET or VMAN_RUNTIME_PATH")]
    Taken(PathBuf),
}

/// Binds everything that is configured.
pub(super) fn bind(config: &Config) -> Result<Listeners, ListenError> {
    let tcp = match config.http.listen {
        Some(address) => {
            Some(bind_tcp(address).map_err(|error| ListenError::Tcp { address, error })?)
        }
        None => None,
    };
    let unix = bind_unix(&config.storage.runtime, &config.http.socket)?;
    Ok(Listeners {
        tcp,
        unix: Some(unix),
        tls: None,
    })
}

fn bind_tcp(address: std::net::SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A restarted daemon takes its address again at once.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn bind_unix(runtime: &Path, path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |error| ListenError::Unix {
        path: path.to_owned(),
        error,
    };
    make_folder(runtime).map_err(failed)?;
    if let Some(folder) = path.parent() {
        make_folder(folder).map_err(failed)?;
    }
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        // A socket that nobody answers on is left by a daemon that was killed.
        if StdUnixStream::connect(path).is_ok() {
            return Err(ListenError::Taken(path.to_owned()));
        }
        fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    let mut mode = 0o600;
    if let Some(gid) = crate::host::groups::group_id(GROUP)
        && std::os::unix::fs::chown(path, None, Some(gid)).is_ok()
    {
        mode = 0o660;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
    Ok(listener)
}

/// Others may pass through to the socket; what is below it is closed to them.
fn make_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}
