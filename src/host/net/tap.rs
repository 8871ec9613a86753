//! TAPs, opened by us and handed to QEMU as descriptors.
//!
//! Owns: the ioctls, and the TAPs that were claimed and whose QEMU is not there yet. A TAP is not
//! made persistent: it is gone with the last descriptor of it, which is QEMU's. Must not: attach
//! it to a bridge (`links.rs` does). Look next: `host::qemu::launch`, who takes them.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::ioctl::{Setter, ioctl};

/// `_IOW('T', 202, int)`, although it takes a `struct ifreq`.
const TUNSETIFF: u32 = 0x4004_54ca;

const VHOST: &str = "/dev/vhost-net";

const IFF_TAP: i16 = 0x0002;
const IFF_MULTI_QUEUE: i16 = 0x0100;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;

/// The most queues of one card: more than this no guest profits from, and each costs descriptors.
pub const MAX_QUEUES: u32 = 8;

/// `struct ifreq` as TUNSETIFF reads it and writes it back.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

/// The descriptors of one network card.
#[derive(Debug)]
pub struct TapDescriptors {
    /// One for each queue, at least one.
    pub queues: Vec<OwnedFd>,
    /// As many of `/dev/vhost-net`, or none where the kernel has none.
    pub vhost: Vec<OwnedFd>,
}

/// Why there is no TAP.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Somebody else has it open.
    #[error("the TAP {0} is held by another process: end it, or remove the interface")]
    Held(String),
    /// The kernel refused.
    #[error("the TAP {name} cannot be made: {error}")]
    Refused {
        /// Its name.
        name: String,
        /// Why.
        error: io::Error,
    },
}

/// Opens a TAP of this name with so many queues; it is there, down and unattached, afterwards.
pub fn open(name: &str, queues: u32) -> Result<TapDescriptors, TapError> {
    let queues = queues.clamp(1, MAX_QUEUES);
    let many = if queues > 1 { IFF_MULTI_QUEUE } else { 0 };
    let opened: io::Result<Vec<OwnedFd>> = (0..queues).map(|_| open_queue(name, many)).collect();
    let queues = opened.map_err(|error| {
        if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) {
            return TapError::Held(name.to_owned());
        }
        let name = name.to_owned();
        TapError::Refused { name, error }
    })?;
    let vhost: io::Result<Vec<OwnedFd>> = queues
        .iter()
        .map(|_| device(VHOST).map(OwnedFd::from))
        .collect();
    Ok(TapDescriptors {
        queues,
        vhost: vhost.unwrap_or_default(),
    })
}

/// Whether TAPs can be made at all.
pub fn probe() -> io::Result<()> {
    device("/dev/net/tun").map(drop)
}

/// Why the kernel does not carry packets between a TAP and its guest itself.
pub fn vhost_missing() -> Option<String> {
    let error = device(VHOST).err()?;
    Some(format!(
        "QEMU carries guests' packets itself: {VHOST} cannot be opened (module vhost_net): {error}"
    ))
}

fn device(path: &str) -> io::Result<File> {
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nonblocking)
        .open(path)
}

#[allow(unsafe_code)]
fn open_queue(name: &str, many: i16) -> io::Result<OwnedFd> {
    let tun = device("/dev/net/tun")?;
    let mut request = InterfaceRequest {
        name: [0; 16],
        flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | many,
        rest: [0; 22],
    };
    // The last byte stays zero.
    let fits = name.len() < request.name.len();
    if !fits {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too long"));
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq` of 40 bytes, which `InterfaceRequest` is.
    unsafe { ioctl(&tun, Setter::<TUNSETIFF, InterfaceRequest>::new(request)) }?;
    Ok(tun.into())
}

/// TAPs that were claimed and wait for their QEMU.
#[derive(Debug, Default)]
pub struct Taps(Mutex<HashMap<String, TapDescriptors>>);

impl Taps {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, TapDescriptors>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it waits.
    pub fn has(&self, name: &str) -> bool {
        self.lock().contains_key(name)
    }

    /// Keeps it for its QEMU.
    pub fn keep(&self, name: &str, tap: TapDescriptors) {
        self.lock().insert(name.to_owned(), tap);
    }

    /// Hands it over. To drop it takes the kernel some 20 ms: never on a hot path.
    pub fn take(&self, name: &str) -> Option<TapDescriptors> {
        self.lock().remove(name)
    }
}
