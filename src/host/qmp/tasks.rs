//! The two tasks of a connection, and what they share with its commands.
//!
//! Owns: reading and writing the socket, and handing what was read to whom it concerns. Must not:
//! wait for anybody but the socket. Look next: `client.rs`, which starts them.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use super::error::Lost;
use super::events::EventQueue;
use super::pending::{Answer, Pending};
use super::wire::{Decoder, Greeting, Message};

/// How much is read at once, in bytes: most lines of QMP are shorter.
const READ_CHUNK: usize = 4 * 1024;

/// What a connection tells about its own health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Replies with an id that nobody waits for: late, doubled or a previous client's.
    pub unknown_ids: u64,
    /// Errors without an id.
    pub anonymous_errors: u64,
    /// Lines that are no QMP.
    pub garbage: u64,
    /// Events seen.
    pub events: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) unknown_ids: AtomicU64,
    pub(super) anonymous_errors: AtomicU64,
    pub(super) garbage: AtomicU64,
    pub(super) events: AtomicU64,
}

impl Counts {
    pub(super) fn now(&self) -> Counters {
        Counters {
            unknown_ids: self.unknown_ids.load(Ordering::Relaxed),
            anonymous_errors: self.anonymous_errors.load(Ordering::Relaxed),
            garbage: self.garbage.load(Ordering::Relaxed),
            events: self.events.load(Ordering::Relaxed),
        }
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) pending: Pending,
    pub(super) events: Arc<EventQueue>,
    pub(super) counts: Counts,
}

impl Shared {
    pub(super) fn close(&self, why: Lost) {
        self.pending.close(why);
        self.events.close(why);
    }
}

#[derive(Debug)]
pub(super) struct Line {
    pub(super) ids: Vec<u64>,
    pub(super) bytes: Vec<u8>,
    /// Goes with the line's first byte, for `getfd`.
    pub(super) descriptor: Option<OwnedFd>,
}

/// Sends as much of a line as the socket takes, at least its first byte with the descriptor.
async fn send_with(
    socket: &OwnedWriteHalf,
    bytes: &[u8],
    descriptor: &OwnedFd,
) -> io::Result<usize> {
    loop {
        socket.writable().await?;
        let sent = socket.as_ref().try_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let descriptors = [descriptor.as_fd()];
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
            let parts = [IoSlice::new(bytes)];
            Ok(sendmsg(
                socket.as_ref(),
                &parts,
                &mut control,
                SendFlags::NOSIGNAL,
            )?)
        });
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            sent => return sent,
        }
    }
}

pub(super) async fn write(
    mut socket: OwnedWriteHalf,
    shared: Arc<Shared>,
    mut queue: mpsc::Receiver<Line>,
) {
    while let Some(line) = queue.recv().await {
        if !shared.pending.mark_sent(&line.ids) {
            continue;
        }
        let mut bytes = line.bytes.as_slice();
        if let Some(descriptor) = &line.descriptor {
            match send_with(&socket, bytes, descriptor).await {
                Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                Err(error) => {
                    shared.close(Lost::Io(error.kind()));
                    return;
                }
            }
        }
        if let Err(error) = socket.write_all(bytes).await {
            shared.close(Lost::Io(error.kind()));
            return;
        }
    }
}

pub(super) async fn read(
    socket: OwnedReadHalf,
    shared: Arc<Shared>,
    greeting: oneshot::Sender<Greeting>,
) {
    let mut greeting = Some(greeting);
    let mut decoder = Decoder::default();
    let mut sink = |message| take(&shared, &mut greeting, message);
    let why = loop {
        // Not `readable()`, which a QEMU that talks without end would never have yield.
        if let Err(error) = poll_fn(|cx| socket.as_ref().poll_read_ready(cx)).await {
            break Lost::Io(error.kind());
        }
        match read_some(&socket, &mut decoder, &mut sink) {
            Ok(0) => break Lost::Closed,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => break Lost::Io(error.kind()),
        }
    };
    shared.close(why);
}

/// Decodes what has come. The buffer is the stack's: one of its own for each VM, idle as most are,
/// would be a quarter of what a running VM costs.
fn read_some(
    socket: &OwnedReadHalf,
    decoder: &mut Decoder,
    sink: &mut impl FnMut(Message),
) -> io::Result<usize> {
    let mut chunk = [0; READ_CHUNK];
    let count = socket.try_read(&mut chunk)?;
    decoder.feed(&chunk[..count], sink);
    Ok(count)
}

fn take(shared: &Shared, greeting: &mut Option<oneshot::Sender<Greeting>>, message: Message) {
    let count = |counter: &AtomicU64| {
        counter.fetch_add(1, Ordering::Relaxed);
    };
    let (id, answer) = match message {
        Message::Greeting(words) => {
            // Whoever waited may have gone; a second greeting is of no use to anybody.
            if let Some(waiter) = greeting.take() {
                let _ = waiter.send(words);
            }
            return;
        }
        Message::Event(event) => {
            count(&shared.counts.events);
            shared.events.push(event);
            return;
        }
        Message::Garbage(_) => return count(&shared.counts.garbage),
        Message::Error { id: None, .. } => return count(&shared.counts.anonymous_errors),
        Message::Return { id, value } => (id, Answer::Return(value)),
        Message::Error { id, class, desc } => (id, Answer::Error { class, desc }),
    };
    let id = id.as_ref().and_then(Value::as_u64);
    if !id.is_some_and(|id| shared.pending.answer(id, answer)) {
        count(&shared.counts.unknown_ids);
    }
}
