//! journald's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL), written by ourselves.
//!
//! tracing-journald's layer sends on the thread that logs, which waits for ever when journald does; driving it from a
//! thread of our own would need its events to outlive their callsite's borrow. The protocol is a datagram of
//! `NAME=value` lines, so this is the smaller part. Field names are ours with `VMAN_` in front, upper case.

use super::{classes::message_id, queue::Sink, record::Record, text::Shape};
use std::{
    io::{self, IoSlice, Write as _},
    os::{fd::AsFd as _, unix::net::UnixDatagram},
    path::{Path, PathBuf},
};
use tracing::Level;

/// Where journald listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// Records for journald, and for `fallback` while journald is away.
pub(super) struct JournalSink {
    socket: UnixDatagram,
    path: PathBuf,
    fallback: Box<dyn Sink>,
    away: bool,
}

impl JournalSink {
    /// Needs journald's socket to exist, not journald to read it.
    pub(super) fn open(path: &Path, fallback: Box<dyn Sink>) -> io::Result<Self> {
        // Connecting tells whether somebody listens and, unlike sending, never waits: this is not the sink's thread.
        UnixDatagram::unbound()?.connect(path)?;
        // Not connected itself: journald may be restarted and then has a new socket of the same name.
        let socket = UnixDatagram::unbound()?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            fallback,
            away: false,
        })
    }

    fn send(&self, payload: &[u8]) -> io::Result<()> {
        match self.socket.send_to(payload, &self.path) {
            Ok(_) => Ok(()),
            Err(error)
                if error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) =>
            {
                self.send_large(payload)
            }
            Err(error) => Err(error),
        }
    }

    /// What is too large for a datagram goes as a sealed memfd, whose descriptor is sent with an empty datagram.
    fn send_large(&self, payload: &[u8]) -> io::Result<()> {
        use rustix::{
            fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
            net::{
                SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg_addr,
            },
        };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = std::fs::File::from(memfd_create("vman-journal", flags)?);
        file.write_all(payload)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
        fcntl_add_seals(&file, seals)?;
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [file.as_fd()];
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("no room for one descriptor"));
        }
        let address = SocketAddrUnix::new(&self.path)?;
        let nothing = [IoSlice::new(&[])];
        sendmsg_addr(
            &self.socket,
            &address,
            &nothing,
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }
}

impl Sink for JournalSink {
    fn write(&mut self, record: &Record) {
        match self.send(&encode(record)) {
            Ok(()) => self.away = false,
            Err(error) => {
                if !self.away {
                    let fields = vec![("error", error.to_string())];
                    let message = "journald does not take records, they go to standard error";
                    self.fallback
                        .write(&Record::own(Level::WARN, message, fields));
                }
                self.away = true;
                self.fallback.write(record);
            }
        }
    }
}

/// syslog's priorities; trace and debug are both 7, since there is nothing below.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    }
}

/// The record in journald's form.
pub(super) fn encode(record: &Record) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    put(&mut out, "MESSAGE", &record.message);
    put(&mut out, "PRIORITY", priority(record.level));
    put(&mut out, "SYSLOG_IDENTIFIER", "vman");
    put(&mut out, "VMAN_TARGET", &record.target);
    let event = record.fields.iter().find(|(name, _)| *name == "event");
    if let Some(id) = event.and_then(|(_, event)| message_id(event)) {
        put(&mut out, "MESSAGE_ID", id);
    }
    if let (Some(file), Some(line)) = (record.file, record.line) {
        put(&mut out, "CODE_FILE", file);
        put(&mut out, "CODE_LINE", &line.to_string());
    }
    for (name, value) in &record.fields {
        put(&mut out, &field_name(name), value);
    }
    out
}

/// `vm_id` is `VMAN_VM_ID`; `message_id` is journald's own field. journald takes A-Z, 0-9 and `_`, at most 64 of them.
fn field_name(name: &str) -> String {
    if name == "message_id" {
        return "MESSAGE_ID".to_owned();
    }
    let letters = name.chars().map(|c| match c {
        c if c.is_ascii_alphanumeric() => c.to_ascii_uppercase(),
        _ => '_',
    });
    "VMAN_".chars().chain(letters).take(64).collect()
}

fn put(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        // A value with line ends is told by its length, or it could forge further fields.
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

/// What a journald sink falls back to.
pub(super) fn stderr() -> Box<dyn Sink> {
    Box::new(super::file::StderrSink { shape: Shape::Text })
}
