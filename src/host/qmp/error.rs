//! What can go wrong with a command, each variant one thing that the caller can act on.

use std::io;
use std::time::Duration;

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// QEMU closed it: it is exiting, or it let another client in.
    #[error("qemu closed the monitor connection")]
    Closed,
    /// The socket failed.
    #[error("the monitor socket failed: {0}")]
    Io(io::ErrorKind),
    /// Our own side let go of it.
    #[error("the monitor connection was let go of")]
    Local,
}

/// A command or connection that did not succeed. [`QmpError::may_have_run`] says what is certain.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Nobody listens there, or not in time. Nothing was sent: try again, or ask the pidfd.
    #[error("could not connect to the monitor socket")]
    Unreachable(#[source] io::Error),
    /// Connected, but no greeting: another client holds the monitor or QEMU hangs. What was sent
    /// along waits in the socket and may be run when QEMU comes to it.
    #[error("qemu sent no greeting within {0:?}")]
    NoGreeting(Duration),
    /// Too many commands are in flight. Nothing was sent.
    #[error("{command} was not sent: too many commands are waiting for qemu")]
    Busy {
        /// The command.
        command: String,
    },
    /// The deadline passed before QEMU took the bytes. It did not run.
    #[error("{command} was not sent: qemu took no bytes within {after:?}")]
    NotSent {
        /// The command.
        command: String,
        /// The deadline.
        after: Duration,
    },
    /// Sent, but not answered in time. It may have run, or may yet.
    #[error("{command} was sent but not answered within {after:?}")]
    NoAnswer {
        /// The command.
        command: String,
        /// The deadline.
        after: Duration,
    },
    /// The connection ended. `sent` says whether the command may have run.
    #[error("{command} has no answer: {why}")]
    Lost {
        /// The command.
        command: String,
        /// Whether (a part of) it was sent.
        sent: bool,
        /// Why the connection ended.
        why: Lost,
    },
    /// QEMU answered with an error: it did not do it.
    #[error("qemu refused {command}: {desc}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class, `GenericError`, `CommandNotFound`, `DeviceNotFound`…
        class: String,
        /// QEMU's sentence.
        desc: String,
    },
    /// It ran, but its answer has another shape than we know.
    #[error("qemu answered {command} with something unknown")]
    Unexpected {
        /// The command.
        command: String,
        /// What did not fit.
        #[source]
        source: serde_json::Error,
    },
    /// The arguments cannot be written as JSON. Nothing was sent.
    #[error("the arguments of {command} could not be written as json")]
    Arguments {
        /// The command.
        command: String,
        /// What did not fit.
        #[source]
        source: serde_json::Error,
    },
}

impl QmpError {
    /// Whether the command may have had its effect; `false` means that it certainly had not.
    pub fn may_have_run(&self) -> bool {
        match self {
            Self::Unreachable(_)
            | Self::Busy { .. }
            | Self::NotSent { .. }
            | Self::Refused { .. }
            | Self::Arguments { .. } => false,
            Self::NoGreeting(_) | Self::NoAnswer { .. } | Self::Unexpected { .. } => true,
            Self::Lost { sent, .. } => *sent,
        }
    }

    /// Whether the connection is of no use any more.
    pub fn is_lost(&self) -> bool {
        matches!(
            self,
            Self::Lost { .. } | Self::Unreachable(_) | Self::NoGreeting(_)
        )
    }
}
