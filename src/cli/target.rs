//! Where the daemon is: the socket, or a URL.

use super::error::CliError;
use hyper::Uri;
use std::{fmt, path::PathBuf};

/// Where the daemon is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A UNIX socket.
    Unix(PathBuf),
    /// `host:port`, without TLS.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
}

impl Target {
    /// Reads `http://host:port` or `unix:/path`.
    pub fn parse(url: &str) -> Result<Self, CliError> {
        let wrong = |what: &str| {
            Err(CliError::Usage(format!(
                "the daemon's URL must be http://host:port or unix:/path: {what}"
            )))
        };
        if let Some(path) = url.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if !path.starts_with('/') {
                return wrong("the socket's path must be absolute");
            }
            return Ok(Target::Unix(PathBuf::from(path)));
        }
        let Ok(uri) = url.parse::<Uri>() else {
            return wrong("this is no URL");
        };
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return wrong("this client has no TLS; forward the port with SSH instead");
            }
            _ => return wrong("another scheme was given"),
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return wrong("a path was given");
        }
        match uri.host() {
            Some(host) if !host.is_empty() => Ok(Target::Tcp {
                host: host.trim_matches(['[', ']']).to_owned(),
                port: uri.port_u16().unwrap_or(8000),
            }),
            _ => wrong("it has no host"),
        }
    }

    /// The value of the `Host` header.
    pub(super) fn host(&self) -> String {
        match self {
            Target::Unix(_) => "localhost".to_owned(),
            Target::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Target::Tcp { host, port } => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Unix(path) => write!(f, "unix:{}", path.display()),
            Target::Tcp { .. } => write!(f, "http://{}", self.host()),
        }
    }
}
