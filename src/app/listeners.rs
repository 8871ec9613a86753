//! The daemon's listeners: a UNIX socket and, where configured, TCP.

use crate::{config::Config, http::Listeners};
use listenfd::ListenFd;
use std::{
    fs, io,
    os::fd::AsFd,
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
    /// A socket that systemd handed over cannot be used.
    #[error("socket {number} handed over by systemd cannot be used: {what}")]
    HandedOver {
        /// Its place among them, from 0.
        number: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A living process answers on the socket.
    #[error("another process listens on {0}: choose another with VMAN_SOCKET or VMAN_RUNTIME_PATH")]
    Taken(PathBuf),
}

/// Takes what systemd hands over, and binds what else is configured.
pub(super) fn bind(config: &Config) -> Result<Listeners, ListenError> {
    // TLS is put around by whoever composes the daemon.
    let Listeners { tcp, unix, tls: _ } = handed_over(&mut ListenFd::from_env())?;
    let tcp = match (tcp, config.http.listen) {
        (None, Some(address)) => {
            Some(bind_tcp(address).map_err(|error| ListenError::Tcp { address, error })?)
        }
        (tcp, _) => tcp,
    };
    let unix = match unix {
        Some(unix) => {
            make_folder(&config.storage.runtime).map_err(|error| ListenError::Unix {
                path: config.storage.runtime.clone(),
                error,
            })?;
            unix
        }
        None => bind_unix(&config.storage.runtime, &config.http.socket)?,
    };
    Ok(Listeners {
        tcp,
        unix: Some(unix),
        tls: None,
    })
}

/// The sockets that systemd made for us, sd_listen_fds(3): at most one of each
/// kind. They take the place of the configured ones.
fn handed_over(sockets: &mut ListenFd) -> Result<Listeners, ListenError> {
    let mut listeners = Listeners::default();
    for number in 0..sockets.len() {
        let wrong = |what: String| ListenError::HandedOver { number, what };
        let failed = |error: io::Error| wrong(error.to_string());
        if let Ok(Some(unix)) = sockets.take_unix_listener(number) {
            let unix = not_inherited(unix).and_then(|unix| {
                unix.set_nonblocking(true)?;
                UnixListener::from_std(unix)
            });
            if listeners.unix.replace(unix.map_err(failed)?).is_some() {
                return Err(wrong("there are two UNIX sockets, one is used".to_owned()));
            }
            continue;
        }
        let tcp = sockets.take_tcp_listener(number).map_err(failed)?;
        let tcp = tcp.ok_or_else(|| wrong("it was taken already".to_owned()))?;
        let address = tcp.local_addr().map_err(failed)?;
        if !address.ip().is_loopback() {
            let what = format!("{address} is reachable from outside, and has no TLS");
            return Err(wrong(what));
        }
        let tcp = not_inherited(tcp).and_then(|tcp| {
            tcp.set_nonblocking(true)?;
            TcpListener::from_std(tcp)
        });
        if listeners.tcp.replace(tcp.map_err(failed)?).is_some() {
            return Err(wrong("there are two TCP sockets, one is used".to_owned()));
        }
    }
    Ok(listeners)
}

/// No QEMU shall inherit it.
fn not_inherited<S: AsFd>(socket: S) -> io::Result<S> {
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    Ok(socket)
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
