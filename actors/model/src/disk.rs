//! Disks: a VM's root disk is one. (Hot-plug and free-standing disks build on
//! the same record.)

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

/// A disk and to whom it belongs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Its id; its file is named by it.
    pub id: DiskId,
    /// The size a guest sees, in MiB.
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
}
