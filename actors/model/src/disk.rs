//! Disks: what one is, how it behaves, and where it sits in a machine.
//!
//! A disk's record says to which VM it belongs; where it sits in that VM, and
//! what is under way with it there, is the VM's to say
//! ([`crate::vm::record::Attachment`]): both are written in one commit.
//!
//! | slot on the pcie-root-ports | what |
//! |---|---|
//! | 0 | the root disk |
//! | 1 to 3 | network cards |
//! | 4 to 11 | data disks |
//! | 12 to 15 | spare |

use crate::{
    ids::{DiskId, ImageName, VmId},
    time::UnixMs,
};
use serde::{Deserialize, Serialize};

/// The format of a disk's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskFormat {
    /// QEMU's copy-on-write format.
    Qcow2,
    /// Bytes as they are.
    Raw,
}

impl DiskFormat {
    /// QEMU's name of the format.
    pub fn as_str(self) -> &'static str {
        match self {
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Raw => "raw",
        }
    }
}

/// The root disk's slot.
pub const ROOT_DISK_SLOT: u8 = 0;
/// The first slot of data disks; the network cards sit between.
pub const FIRST_DATA_SLOT: u8 = 4;
/// The most data disks of one VM.
pub const MAX_DATA_DISKS: u8 = 8;
/// The longest serial number, in bytes (virtio-blk's own limit).
pub const MAX_SERIAL: usize = 20;

/// How QEMU uses the host's page cache for a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskCache {
    /// Through the page cache; a guest's flush reaches the disk.
    #[default]
    Writeback,
    /// Around the page cache (`O_DIRECT`); a guest's flush reaches the disk.
    None,
    /// Every write reaches the disk before it is answered.
    Writethrough,
    /// Through the page cache, and flushes are ignored: lost with the host.
    Unsafe,
}

impl DiskCache {
    /// All of them, for tables.
    pub const ALL: [DiskCache; 4] = [
        DiskCache::Writeback,
        DiskCache::None,
        DiskCache::Writethrough,
        DiskCache::Unsafe,
    ];

    /// QEMU's and the API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            DiskCache::Writeback => "writeback",
            DiskCache::None => "none",
            DiskCache::Writethrough => "writethrough",
            DiskCache::Unsafe => "unsafe",
        }
    }
}

/// How fast a disk may be; 0 is without a limit. A burst is what it may reach
/// for a second; 0 leaves it to QEMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLimits {
    /// Requests a second.
    pub iops: u64,
    /// Requests a second in a burst.
    pub iops_burst: u64,
    /// Bytes a second.
    pub bps: u64,
    /// Bytes a second in a burst.
    pub bps_burst: u64,
}

impl DiskLimits {
    /// Whether there is any.
    pub fn any(&self) -> bool {
        *self != DiskLimits::default()
    }
}

/// How a disk behaves. All but the limits take effect when it is attached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskOptions {
    /// How the host's page cache is used.
    pub cache: DiskCache,
    /// Whether what the guest discards is kept allocated all the same.
    pub keep_discarded: bool,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// The serial number that the guest reads; the beginning of the id if none
    /// is said.
    pub serial: Option<String>,
    /// How fast it may be. Changeable while it is in use.
    pub limits: DiskLimits,
}

/// What is known of a disk's file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskFile {
    /// Made when it is first needed (root disks).
    #[default]
    OnDemand,
    /// Being made. Found after a restart, it is undone: nobody was answered.
    Making,
    /// There. If it is not, that is told and no empty one takes its place.
    Made,
    /// Being deleted. Found after a restart, it is finished.
    Deleting,
}

/// A disk and to whom it belongs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Its id; its file is named by it.
    pub id: DiskId,
    /// The size a guest sees, in MiB. A file that is smaller is grown before it
    /// is used.
    pub size_mib: u64,
    /// The format of its file.
    pub format: DiskFormat,
    /// The disk image it is a linked clone of.
    pub image: Option<ImageName>,
    /// The VM it is attached to.
    pub vm_id: Option<VmId>,
    /// Whether it is that VM's root disk: made at the VM's first start, and
    /// deleted with the VM.
    pub root: bool,
    /// When its record was made. The file of a root disk comes later.
    pub created_at: UnixMs,
    /// How it behaves.
    pub options: DiskOptions,
    /// What is known of its file.
    pub file: DiskFile,
    /// The letter that was wished for (`b` of `/dev/vdb`): a preference for a
    /// slot, for the guest alone gives names.
    pub wished_letter: Option<u8>,
}

impl DiskRecord {
    /// The serial number that the guest reads.
    pub fn serial(&self) -> String {
        let id = || self.id.as_str().chars().take(MAX_SERIAL).collect();
        self.options.serial.clone().unwrap_or_else(id)
    }

    /// Whether it can be given to a VM.
    pub fn is_free(&self) -> bool {
        let usable = matches!(self.file, DiskFile::OnDemand | DiskFile::Made);
        self.vm_id.is_none() && usable
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn disk(id: &str) -> DiskRecord {
        DiskRecord {
            id: DiskId::parse(id).unwrap(),
            size_mib: 1,
            format: DiskFormat::Raw,
            image: None,
            vm_id: None,
            root: false,
            created_at: UnixMs(0),
            options: DiskOptions::default(),
            file: DiskFile::Made,
            wished_letter: None,
        }
    }

    #[test]
    fn the_words_of_caches_are_qemus() {
        let words = DiskCache::ALL.map(DiskCache::as_str);
        assert_eq!(words, ["writeback", "none", "writethrough", "unsafe"]);
    }

    #[test]
    fn any_one_limit_is_a_limit() {
        assert!(!DiskLimits::default().any());
        let one = |set: fn(&mut DiskLimits)| {
            let mut limits = DiskLimits::default();
            set(&mut limits);
            limits.any()
        };
        assert!(one(|limits| limits.iops = 1));
        assert!(one(|limits| limits.bps_burst = 1));
    }

    #[test]
    fn the_serial_is_what_was_said_or_the_beginning_of_the_id() {
        let long = "a".repeat(MAX_SERIAL + 5);
        assert_eq!(disk(&long).serial(), "a".repeat(MAX_SERIAL));
        let mut said = disk("data");
        assert_eq!(said.serial(), "data");
        said.options.serial = Some("S1".to_owned());
        assert_eq!(said.serial(), "S1");
    }

    #[test]
    fn only_a_whole_disk_that_nobody_has_is_free() {
        for (file, free) in [
            (DiskFile::OnDemand, true),
            (DiskFile::Made, true),
            (DiskFile::Making, false),
            (DiskFile::Deleting, false),
        ] {
            let mut disk = DiskRecord {
                file,
                ..disk("data")
            };
            assert_eq!(disk.is_free(), free, "{file:?}");
            disk.vm_id = Some(VmId::parse("web").unwrap());
            assert!(!disk.is_free(), "{file:?}");
        }
    }
}
