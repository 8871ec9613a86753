//! A bounded queue in front of one destination, and the thread that empties it.
//!
//! Must stay true: whoever logs never waits for a destination. A full queue drops the new record and counts it; the
//! thread tells how many were dropped as soon as it gets on.

use super::record::Record;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};
use tracing::Level;

/// Records that may wait for one destination. A record is seldom more than 1 KiB, so this is a few MiB at most, and
/// bridges about a second of a very busy daemon.
pub(super) const CAPACITY: usize = 4096;

/// Where records end. Writes one; may block, for it has a thread of its own.
pub(super) trait Sink: Send {
    /// Writes a record; an error has been dealt with here, since there is nobody left to tell.
    fn write(&mut self, record: &Record);
    /// Everything that could be written has been, for now.
    fn flush(&mut self) {}
}

enum Item {
    Record(Arc<Record>),
    Flush(SyncSender<()>),
}

/// The end of the queue that loggers hold.
#[derive(Clone)]
pub(super) struct Queue {
    name: &'static str,
    sender: SyncSender<Item>,
    dropped: Arc<AtomicU64>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Queue {
    /// Starts the thread that writes to `sink`.
    pub(super) fn start(
        name: &'static str,
        capacity: usize,
        sink: Box<dyn Sink>,
    ) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(capacity);
        let dropped = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&dropped);
        std::thread::Builder::new()
            .name(format!("log-{name}"))
            .spawn(move || drain(name, &receiver, &counter, sink))?;
        Ok(Self {
            name,
            sender,
            dropped,
        })
    }

    /// Takes the record if there is room, else counts it as dropped.
    pub(super) fn offer(&self, record: &Arc<Record>) {
        let item = Item::Record(Arc::clone(record));
        if self.sender.try_send(item).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records dropped since the start.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// The destination's name.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Waits until everything offered so far is written, at most until `deadline`. Whether it was.
    pub(super) fn flush(&self, deadline: Instant) -> bool {
        let (done, written) = sync_channel(1);
        let mut item = Item::Flush(done);
        loop {
            match self.sender.try_send(item) {
                Ok(()) => break,
                Err(std::sync::mpsc::TrySendError::Full(back)) if Instant::now() < deadline => {
                    item = back;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(_) => return false,
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        written.recv_timeout(left).is_ok()
    }
}

fn drain(
    name: &'static str,
    receiver: &Receiver<Item>,
    dropped: &AtomicU64,
    mut sink: Box<dyn Sink>,
) {
    let mut told = 0;
    loop {
        let item = match receiver.recv_timeout(Duration::from_secs(1)) {
            Ok(item) => Some(item),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return sink.flush(),
        };
        let now = dropped.load(Ordering::Relaxed);
        if now > told {
            let fields = vec![
                ("event", "log.dropped".to_owned()),
                ("destination", name.to_owned()),
                ("dropped", (now - told).to_string()),
                ("dropped_total", now.to_string()),
            ];
            let message = "log records were dropped because the destination was too slow";
            sink.write(&Record::own(Level::WARN, message, fields));
            told = now;
        }
        match item {
            Some(Item::Record(record)) => sink.write(&record),
            Some(Item::Flush(done)) => {
                sink.flush();
                // Whoever asked may have given up.
                let _ = done.send(());
            }
            None => {}
        }
    }
}
