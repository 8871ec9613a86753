//! Why a command did not succeed, with what to do next and the exit code.

use super::sanitize::one_line;
use serde_json::Value;
use std::{fmt, io, path::PathBuf};

/// The daemon's refusal, read from problem+json with tolerance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// The stable code, `vm_already_running`; empty if the answer had none.
    pub code: String,
    /// What happened and what to do.
    pub detail: String,
    /// Wrong fields, with what is wrong about each.
    pub fields: Vec<(String, String)>,
    /// The request's id, to find it in the daemon's log.
    pub instance: String,
    /// Seconds after which to try again.
    pub retry_after: Option<String>,
}

impl Problem {
    pub(super) fn read(status: u16, body: &Value, retry_after: Option<String>) -> Self {
        let text = |value: &Value, name: &str| one_line(value[name].as_str().unwrap_or_default());
        let mut detail = text(body, "detail");
        if detail.is_empty() {
            detail = text(body, "title");
        }
        if detail.is_empty() {
            detail = format!("the daemon answered with status {status} and no explanation");
        }
        let fields = body["errors"].as_array().map(Vec::as_slice);
        let fields = fields.unwrap_or_default().iter();
        Self {
            status,
            code: text(body, "code"),
            detail,
            fields: fields
                .map(|field| (text(field, "field"), text(field, "detail")))
                .collect(),
            instance: text(body, "instance"),
            retry_after,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        if self.code.is_empty() {
            write!(f, " (status {})", self.status)?;
        } else {
            write!(f, " ({})", self.code)?;
        }
        for (field, detail) in &self.fields {
            write!(f, "\n  {field}: {detail}")?;
        }
        match (self.status, &self.retry_after) {
            (401, _) => f.write_str(
                "\n  over TCP a token is needed: `vman token create NAME` on the daemon's host, then set VMAN_TOKEN",
            ),
            (403, _) => f.write_str(
                "\n  over the socket root, the daemon's user and the group `vman` may call; over TCP a token of scope admin",
            ),
            (429 | 503, Some(seconds)) => write!(f, "\n  try again in {seconds} s"),
            (500.., _) if !self.instance.is_empty() => write!(
                f,
                "\n  the daemon's log says more: request_id={}",
                self.instance
            ),
            _ => Ok(()),
        }
    }
}

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The daemon refused.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// Nobody listens there, or may not be reached.
    #[error("cannot reach the daemon at {target}: {cause}\n  {}", advice(cause.kind(), target))]
    Unreachable {
        /// Where.
        target: String,
        /// What the system said.
        cause: io::Error,
    },
    /// The connection ended in the middle.
    #[error("the connection to {target} ended before the answer: {cause}\n  {}", if *.changing {
        "whether the daemon did it is not known: look before you repeat it"
    } else {
        "try again"
    })]
    Interrupted {
        /// Where.
        target: String,
        /// What the system said.
        cause: String,
        /// Whether the request would change something.
        changing: bool,
    },
    /// What answered is no VMAN.
    #[error(
        "what answers at {target} does not speak as VMAN does: {cause}\n  check --url and VMAN_URL"
    )]
    Garbled {
        /// Where.
        target: String,
        /// What was wrong.
        cause: String,
    },
    /// The command line or VMAN_URL makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A local file.
    #[error("cannot read {}: {cause}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// An operation that was waited for ended otherwise than well.
    #[error("{0}")]
    Failed(String),
    /// The output is gone.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

impl CliError {
    /// 1 refused, 2 usage, 3 unreachable; 0 if only the reader of our output has had enough.
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::Refused(_)
            | CliError::Garbled { .. }
            | CliError::File { .. }
            | CliError::Failed(_) => 1,
            CliError::Usage(_) => 2,
            CliError::Unreachable { .. } | CliError::Interrupted { .. } => 3,
            CliError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            CliError::Output(_) => 1,
        }
    }

    /// Whether the same request may succeed a moment later, since the daemon may be restarting.
    pub(super) fn is_absence(&self) -> bool {
        matches!(
            self,
            CliError::Unreachable { .. } | CliError::Interrupted { .. }
        )
    }
}

fn advice(kind: io::ErrorKind, target: &str) -> &'static str {
    let socket = target.starts_with("unix:");
    match kind {
        io::ErrorKind::PermissionDenied => {
            "you may not use it: be root or the daemon's user, or join the group `vman`"
        }
        io::ErrorKind::TimedOut => "it does not answer: see whether the daemon is alive",
        _ if socket => {
            "start the daemon with `vman serve`, or say where it is with --socket, --url or VMAN_URL"
        }
        _ => "start the daemon there, or correct --url or VMAN_URL",
    }
}
