//! The daemon's own log: journald, standard error, a rotated file, and the panic hook.
//!
//! Owns the way of a record from `tracing` to its destinations. Must not: make anybody wait (each destination has a
//! bounded queue and a thread of its own), or read the environment.
//! Look next: `record.rs` (event to record), `queue.rs` (why nobody waits), `journal.rs`, `file.rs`, `text.rs`;
//! `reading` for the way back.

mod classes;
mod file;
mod journal;
mod panic;
mod queue;
mod reading;
mod record;
#[cfg(test)]
mod tests;
mod text;

use crate::config::{LogConfig, LogFormat, LogLevel};
pub use classes::{EVENT_CLASSES, EventClass, catalogue};
pub use reading::{LogQuery, LogReadError, LogReader, LogRecord, MAX_RECORDS};

use file::{FileSink, StderrSink};
use journal::JournalSink;
use queue::{CAPACITY, Queue, Sink};
use reading::Kept;
use record::RecordLayer;
use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use text::Shape;
use tracing_subscriber::{
    EnvFilter, Registry, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

/// How long the last records may take to be written when the daemon ends.
const FLUSH_DEADLINE: Duration = Duration::from_secs(1);

/// Why the log could not be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The log file cannot be opened.
    #[error("cannot open the log file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No thread for a destination.
    #[error("cannot start the thread that writes the log")]
    Thread(#[source] std::io::Error),
    /// `init` was called twice.
    #[error("a log is running in this process already")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

/// Keeps the log running; when it is dropped, what is queued is written, for at most a second.
#[derive(Debug)]
#[must_use = "the last records are lost when the guard is dropped at once"]
pub struct Guard {
    control: LogControl,
}

impl Guard {
    /// How the log is asked and changed while it runs.
    pub fn control(&self) -> LogControl {
        self.control.clone()
    }
}

/// Asks and changes the running log; cheap to clone.
#[derive(Clone, Debug)]
pub struct LogControl {
    queues: Vec<Queue>,
    level: reload::Handle<EnvFilter, Registry>,
    reader: LogReader,
}

/// Why the level was not changed.
#[derive(Debug, thiserror::Error)]
#[error("the log is gone")]
pub struct LevelError(#[source] reload::Error);

impl LogControl {
    /// Changes the least important level that is written.
    pub fn set_level(&self, level: LogLevel) -> Result<(), LevelError> {
        self.level.reload(filter(level)).map_err(LevelError)
    }

    /// Reads what was logged, where it is kept.
    pub fn reader(&self) -> LogReader {
        self.reader.clone()
    }

    /// Records dropped since the start because a destination was too slow, by destination.
    pub fn dropped(&self) -> Vec<(&'static str, u64)> {
        let queues = self.queues.iter();
        queues
            .map(|queue| (queue.name(), queue.dropped()))
            .collect()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let deadline = Instant::now() + FLUSH_DEADLINE;
        for queue in &self.control.queues {
            queue.flush(deadline);
        }
    }
}

/// Starts the log and the panic hook. Once in a process; `main` calls it.
pub fn init(config: &LogConfig) -> Result<Guard, TelemetryError> {
    let queues = destinations(config, Path::new(journal::SOCKET))?;
    let (filter, level) = reload::Layer::new(filter(config.level));
    let subscriber = tracing_subscriber::registry()
        .with(filter)
        .with(RecordLayer {
            queues: queues.clone(),
        });
    subscriber.try_init().map_err(TelemetryError::Twice)?;
    panic::install();
    let control = LogControl {
        reader: LogReader::new(kept(config, &queues)),
        queues,
        level,
    };
    Ok(Guard { control })
}

/// VMAN at its level; libraries from `warn` on, for their `debug` is a flood, except at `trace`.
fn filter(level: LogLevel) -> EnvFilter {
    EnvFilter::new(match level {
        LogLevel::Trace => "trace",
        LogLevel::Debug => "warn,vman=debug,vman_actors=debug,vman_model=debug",
        LogLevel::Info => "warn,vman=info,vman_actors=info,vman_model=info",
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
    })
}

/// Where the records can be read again: the journal if there is one and a reader of it, else the file.
fn kept(config: &LogConfig, queues: &[Queue]) -> Kept {
    let journald = queues.iter().any(|queue| queue.name() == "journald");
    let journalctl = ["/usr/bin/journalctl", "/bin/journalctl"]
        .map(PathBuf::from)
        .into_iter()
        .find(|program| program.exists());
    match (journalctl.filter(|_| journald), &config.file) {
        (Some(journalctl), _) => Kept::Journal { journalctl },
        (None, Some(file)) => Kept::File(file.clone()),
        (None, None) => Kept::Nowhere,
    }
}

fn destinations(config: &LogConfig, journal: &Path) -> Result<Vec<Queue>, TelemetryError> {
    let mut sinks: Vec<(&'static str, Box<dyn Sink>)> = Vec::new();
    let journald = match config.format {
        LogFormat::Auto | LogFormat::Journald => JournalSink::open(journal, journal::stderr()).ok(),
        LogFormat::Text | LogFormat::Json => None,
    };
    let shape = match config.format {
        LogFormat::Json => Shape::Json,
        _ => Shape::Text,
    };
    // Whoever starts the daemon by hand wants to see what it says, also where journald has it.
    let by_hand = config.format == LogFormat::Auto && std::io::stderr().is_terminal();
    if journald.is_none() || by_hand {
        sinks.push(("stderr", Box::new(StderrSink { shape })));
    }
    if let Some(journald) = journald {
        sinks.push(("journald", Box::new(journald)));
    }
    if let Some(settings) = &config.file {
        let file = FileSink::open(settings.clone(), shape);
        let file = file.map_err(|source| TelemetryError::File {
            path: settings.path.clone(),
            source,
        })?;
        sinks.push(("file", Box::new(file)));
    }
    sinks
        .into_iter()
        .map(|(name, sink)| Queue::start(name, CAPACITY, sink))
        .collect::<Result<_, _>>()
        .map_err(TelemetryError::Thread)
}
