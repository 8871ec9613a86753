//! What can be wrong with a configuration, told with its source, all at once.

use std::{fmt, path::PathBuf};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// A file and, where it is known, the line, counted from 1.
    File(PathBuf, Option<usize>),
    /// A variable of the environment.
    Environment(String),
    /// A flag of the command line.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File(path, Some(line)) => write!(f, "{}:{line}", path.display()),
            Source::File(path, None) => write!(f, "{}", path.display()),
            Source::Environment(name) => write!(f, "{name} from the environment"),
            Source::Flag(flag) => write!(f, "{flag} on the command line"),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where it was said.
    pub source: Source,
    /// What is wrong and what would be right.
    pub what: String,
}

impl Fault {
    pub(super) fn new(source: Source, what: impl Into<String>) -> Self {
        Self {
            source,
            what: what.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source, self.what)
    }
}

/// Everything that is wrong with a configuration. Never empty.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the configuration has {} fault(s):{}", faults.len(), lines(faults))]
pub struct ConfigError {
    /// The faults, in the order of the layers and then of the keys.
    pub faults: Vec<Fault>,
}

fn lines(faults: &[Fault]) -> String {
    faults
        .iter()
        .fold(String::new(), |all, fault| format!("{all}\n  {fault}"))
}
