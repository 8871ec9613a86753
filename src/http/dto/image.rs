//! Images and disks in the API.

use super::Time;
use serde::Serialize;
use utoipa::ToSchema;
use vman_actors::store::Versioned;
use vman_model::{DiskRecord, ImageName, ImageRecord, VmId};

/// An image.
#[derive(Serialize, ToSchema)]
#[schema(as = Image)]
pub(crate) struct ImageBody<'a> {
    /// Its name.
    name: &'a str,
    /// `disk`, `kernel` or `initrd`.
    kind: &'static str,
    /// The inspected format: `raw` or `qcow2`.
    format: &'static str,
    /// Bytes of its file.
    size_bytes: u64,
    /// Bytes of the disk a guest would see.
    virtual_size_bytes: u64,
    /// SHA-256 of the file as it was uploaded, lower-case hex.
    sha256: &'a str,
    /// When it became usable.
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    /// The revision of its last change, as in `ETag`.
    revision: u64,
}

impl<'a> ImageBody<'a> {
    pub(crate) fn of(row: &'a Versioned<ImageRecord>) -> Self {
        let image = &row.value;
        Self {
            name: image.name.as_str(),
            kind: image.kind.as_str(),
            format: image.format.as_str(),
            size_bytes: image.file_size,
            virtual_size_bytes: image.virtual_size,
            sha256: &image.sha256,
            created_at: Time(image.created_at),
            revision: row.revision.0,
        }
    }
}

/// A disk.
#[derive(Serialize, ToSchema)]
#[schema(as = Disk)]
pub(crate) struct DiskBody<'a> {
    /// Its id.
    id: &'a str,
    /// The size a guest sees, in GiB, rounded up.
    size: u64,
    /// The size a guest sees, in MiB.
    size_mib: u64,
    /// The device name the guest sees for it.
    mount_point: Option<&'static str>,
    /// `available` or `attached`.
    state: &'static str,
    /// The VM it is attached to.
    vm_id: Option<&'a str>,
    /// `qcow2` or `raw`.
    format: &'static str,
    /// The image it is a linked clone of.
    backing_image: Option<&'a str>,
    /// Whether it is its VM's root disk: made at the first start and deleted with the VM.
    root: bool,
    /// When its record was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    /// The revision of its last change, as in `ETag`.
    revision: u64,
}

impl<'a> DiskBody<'a> {
    pub(crate) fn of(row: &'a Versioned<DiskRecord>) -> Self {
        let disk = &row.value;
        let attached = disk.vm_id.is_some();
        Self {
            id: disk.id.as_str(),
            size: super::size::gib(disk.size_mib),
            size_mib: disk.size_mib,
            mount_point: (attached && disk.root).then_some("/dev/vda"),
            state: if attached { "attached" } else { "available" },
            vm_id: disk.vm_id.as_ref().map(VmId::as_str),
            format: disk.format.as_str(),
            backing_image: disk.image.as_ref().map(ImageName::as_str),
            root: disk.root,
            created_at: Time(disk.created_at),
            revision: row.revision.0,
        }
    }
}
