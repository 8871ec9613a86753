//! Images: files that VMs boot or clone, streamed in and inspected before use.

use crate::{ids::ImageName, time::UnixMs};
use serde::{Deserialize, Serialize};

/// What an image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ImageKind {
    /// A disk image; root disks are linked clones of it.
    Disk,
    /// A Linux kernel for direct boot.
    Kernel,
    /// An initial RAM file system for direct boot.
    Initrd,
}

impl ImageKind {
    /// The word the API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            ImageKind::Disk => "disk",
            ImageKind::Kernel => "kernel",
            ImageKind::Initrd => "initrd",
        }
    }
}

/// The format of an image's file, as inspected once when it came in. It is
/// never probed again: a guest could write another format's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageFormat {
    /// Bytes as they are (also kernels and initrds).
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

impl ImageFormat {
    /// QEMU's name of the format.
    pub fn as_str(self) -> &'static str {
        match self {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
        }
    }
}

/// An image that can be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Its name, unique among images; its file is named by it.
    pub name: ImageName,
    /// What it is for.
    pub kind: ImageKind,
    /// The inspected format.
    pub format: ImageFormat,
    /// Bytes of the file.
    pub file_size: u64,
    /// Bytes of the disk a guest would see; the file's bytes for kernels and initrds.
    pub virtual_size: u64,
    /// SHA-256 of the file as it was streamed in, lower-case hex.
    pub sha256: String,
    /// When it became usable.
    pub created_at: UnixMs,
}
