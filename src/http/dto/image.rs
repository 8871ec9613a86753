//! Images in the API.

use super::Time;
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;
use vman_actors::store::{Inventory, Versioned};
use vman_model::{ImageName, ImageRecord};

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
    /// The disks that are linked clones of it.
    disks: Vec<&'a str>,
    /// When it became usable.
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    /// The revision of its last change, as in `ETag`.
    revision: u64,
}

impl<'a> ImageBody<'a> {
    pub(crate) fn of(row: &'a Versioned<ImageRecord>, clones: &Clones<'a>) -> Self {
        let image = &row.value;
        Self {
            name: image.name.as_str(),
            kind: image.kind.as_str(),
            format: image.format.as_str(),
            size_bytes: image.file_size,
            virtual_size_bytes: image.virtual_size,
            sha256: &image.sha256,
            disks: clones.0.get(&image.name).cloned().unwrap_or_default(),
            created_at: Time(image.created_at),
            revision: row.revision.0,
        }
    }
}

/// Which disks are linked clones of which image.
pub(crate) struct Clones<'a>(BTreeMap<&'a ImageName, Vec<&'a str>>);

impl<'a> Clones<'a> {
    pub(crate) fn of(inventory: &'a Inventory) -> Self {
        let mut clones: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (id, disk) in &inventory.disks {
            if let Some(image) = &disk.value.image {
                clones.entry(image).or_default().push(id.as_str());
            }
        }
        Self(clones)
    }
}
