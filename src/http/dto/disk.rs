//! Disks in the API.

use super::{Time, size::gib};
use crate::http::{error::ApiError, extract::Post, fields::Fields};
use serde::Serialize;
use utoipa::ToSchema;
use vman_actors::{
    disks::{LastSeen, NewDisk},
    store::{Inventory, Versioned},
};
use vman_model::{
    DiskCache, DiskFormat, DiskId, DiskLimits, DiskOptions, DiskRecord, ImageName, VmId,
    disk::MAX_SERIAL,
    vm::{AttachState, Attachment, spec::MAX_DISK_MIB},
};

const MIB_PER_GIB: u64 = 1_024;
/// More requests a second than any disk has.
const MAX_IOPS: u64 = 100_000_000;
/// More bytes a second than any bus has (1 TiB/s).
const MAX_BPS: u64 = 1 << 40;

/// The device name of a letter.
pub(crate) fn mount_point(letter: u8) -> String {
    format!("/dev/vd{}", char::from(letter))
}

/// The device name that a guest has for a disk.
pub(crate) fn name_of(held: &Attachment) -> Option<String> {
    (held.state != AttachState::LetGo).then(|| mount_point(held.letter))
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
    /// The device name the guest has for it, or will have at its next start. The serial number is
    /// what a guest can rely on.
    mount_point: Option<String>,
    /// `available`, `attached`, or `error` where its file is gone.
    state: &'static str,
    /// A sentence where something is under way or wrong.
    detail: Option<String>,
    /// The VM it is attached to.
    vm_id: Option<&'a str>,
    /// Its slot in that VM's machine.
    slot: Option<u8>,
    /// `qcow2` or `raw`.
    format: &'static str,
    /// Bytes it takes on the host's storage; none where they are not known yet or the file is made
    /// at the first start.
    allocated_bytes: Option<u64>,
    /// The image it is a linked clone of.
    backing_image: Option<&'a str>,
    /// Whether it is its VM's root disk: made at the first start and deleted with the VM.
    root: bool,
    /// How the host's page cache is used: `writeback`, `none`, `writethrough` or `unsafe`.
    cache: &'static str,
    /// What becomes of what the guest discards: `unmap` or `ignore`.
    discard: &'static str,
    /// Whether the guest may only read.
    read_only: bool,
    /// The serial number as the guest reads it.
    serial: String,
    /// Requests a second; 0 is without a limit.
    iops: u64,
    /// Requests a second in a burst.
    iops_burst: u64,
    /// Bytes a second; 0 is without a limit.
    bps: u64,
    /// Bytes a second in a burst.
    bps_burst: u64,
    /// When its record was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    /// The revision of its last change, as in `ETag`.
    revision: u64,
}

/// Where a disk is in its VM.
fn place<'a>(inventory: &'a Inventory, disk: &DiskRecord) -> Option<&'a Attachment> {
    let vm = inventory.vms.get(disk.vm_id.as_ref()?)?;
    vm.value.disks.iter().find(|held| held.disk == disk.id)
}

impl<'a> DiskBody<'a> {
    /// `seen` is what was last seen of its file.
    pub(crate) fn of(
        row: &'a Versioned<DiskRecord>,
        inventory: &'a Inventory,
        seen: LastSeen,
    ) -> Self {
        let disk = &row.value;
        let attached = disk.vm_id.is_some();
        let place = place(inventory, disk);
        let gone = seen.is_lost(disk);
        let name = match place {
            Some(held) => name_of(held),
            None => (attached && disk.root).then(|| mount_point(b'a')),
        };
        let DiskOptions { limits, .. } = disk.options;
        Self {
            id: disk.id.as_str(),
            size: gib(disk.size_mib),
            size_mib: disk.size_mib,
            mount_point: name,
            state: match (gone, attached) {
                (true, _) => "error",
                (false, true) => "attached",
                (false, false) => "available",
            },
            detail: detail(gone, place),
            vm_id: disk.vm_id.as_ref().map(VmId::as_str),
            slot: match place {
                Some(held) => Some(held.slot),
                None => (attached && disk.root).then_some(vman_model::disk::ROOT_DISK_SLOT),
            },
            format: disk.format.as_str(),
            allocated_bytes: match seen {
                LastSeen::File(file) => Some(file.allocated),
                LastSeen::NotYet | LastSeen::NoFile => None,
            },
            backing_image: disk.image.as_ref().map(ImageName::as_str),
            root: disk.root,
            cache: disk.options.cache.as_str(),
            discard: if disk.options.keep_discarded {
                "ignore"
            } else {
                "unmap"
            },
            read_only: disk.options.read_only,
            serial: disk.serial(),
            iops: limits.iops,
            iops_burst: limits.iops_burst,
            bps: limits.bps,
            bps_burst: limits.bps_burst,
            created_at: Time(disk.created_at),
            revision: row.revision.0,
        }
    }
}

fn detail(gone: bool, place: Option<&Attachment>) -> Option<String> {
    let told = match place.map(|held| &held.state) {
        _ if gone => "its file is gone: restore it, or delete the disk",
        Some(AttachState::Plugging(_)) => "it is being plugged in",
        Some(AttachState::Unplugging(_)) => "the guest is asked to let go of it",
        Some(AttachState::LetGo) => {
            "the guest has let go of it: detach it, or it is back at the next start"
        }
        Some(AttachState::Attached) | None => return None,
    };
    Some(told.to_owned())
}

/// A disk to be made.
#[derive(ToSchema)]
#[schema(as = NewDisk)]
#[allow(
    dead_code,
    reason = "its fields are the document; `read_disk` reads them one by one"
)]
pub(crate) struct NewDiskBody {
    /// Its size in GiB; the image's own size by default.
    #[schema(minimum = 1, maximum = 65536)]
    size: Option<u64>,
    /// Its size in MiB, instead of `size`.
    #[schema(minimum = 1, maximum = 67_108_864)]
    size_mib: Option<u64>,
    /// Its id; generated if it is not given.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    name: Option<String>,
    /// The device name that is wished for, `/dev/vda` to `/dev/vdz`: a preference for a slot. The
    /// answer tells the one the guest has.
    mount_point: Option<String>,
    /// The disk image it is a linked clone of.
    image: Option<String>,
    /// `qcow2` (the default) or `raw`.
    format: Option<String>,
    /// `writeback` (the default), `none`, `writethrough` or `unsafe`.
    cache: Option<String>,
    /// `unmap` (the default) or `ignore`.
    discard: Option<String>,
    /// Whether the guest may only read.
    read_only: Option<bool>,
    /// The serial number that the guest reads, at most 20 letters, digits, `.`, `_` and `-`; the
    /// beginning of the id by default.
    #[schema(max_length = 20)]
    serial: Option<String>,
    /// Requests a second; 0 is without a limit.
    iops: Option<u64>,
    /// Requests a second in a burst, not less than `iops`.
    iops_burst: Option<u64>,
    /// Bytes a second; 0 is without a limit.
    bps: Option<u64>,
    /// Bytes a second in a burst, not less than `bps`.
    bps_burst: Option<u64>,
}

/// What is to be changed of a disk. The limits take effect at once, the rest when it is attached
/// next.
#[derive(ToSchema)]
#[schema(as = DiskChange)]
#[allow(
    dead_code,
    reason = "its fields are the document; `read_change` reads them one by one"
)]
pub(crate) struct DiskChangeBody {
    /// `writeback`, `none`, `writethrough` or `unsafe`.
    cache: Option<String>,
    /// `unmap` or `ignore`.
    discard: Option<String>,
    /// Whether the guest may only read.
    read_only: Option<bool>,
    /// The serial number that the guest reads.
    serial: Option<String>,
    /// Requests a second; 0 is without a limit.
    iops: Option<u64>,
    /// Requests a second in a burst.
    iops_burst: Option<u64>,
    /// Bytes a second; 0 is without a limit.
    bps: Option<u64>,
    /// Bytes a second in a burst.
    bps_burst: Option<u64>,
}

/// What was said about a disk's options.
#[derive(Clone, Debug, Default)]
pub(crate) struct OptionFields {
    cache: Option<DiskCache>,
    keep_discarded: Option<bool>,
    read_only: Option<bool>,
    serial: Option<String>,
    iops: Option<u64>,
    iops_burst: Option<u64>,
    bps: Option<u64>,
    bps_burst: Option<u64>,
}

impl OptionFields {
    pub(crate) fn read(fields: &mut Fields) -> Self {
        let serial = fields.string("serial");
        if let Some(serial) = &serial
            && (serial.len() > MAX_SERIAL || DiskId::parse(serial).is_err())
        {
            let rule = "must be 1 to 20 letters, digits, '.', '_' and '-'";
            fields.wrong("serial", rule);
        }
        Self {
            cache: fields.word(
                "cache",
                &DiskCache::ALL.map(|cache| (cache.as_str(), cache)),
            ),
            keep_discarded: fields.word("discard", &[("unmap", false), ("ignore", true)]),
            read_only: fields.boolean("read_only"),
            serial,
            iops: fields.whole("iops", 0..=MAX_IOPS),
            iops_burst: fields.whole("iops_burst", 0..=MAX_IOPS),
            bps: fields.whole("bps", 0..=MAX_BPS),
            bps_burst: fields.whole("bps_burst", 0..=MAX_BPS),
        }
    }

    pub(crate) fn over(&self, options: &mut DiskOptions) {
        fn set<T: Clone>(to: &mut T, said: Option<&T>) {
            if let Some(said) = said {
                *to = said.clone();
            }
        }
        set(&mut options.cache, self.cache.as_ref());
        set(&mut options.keep_discarded, self.keep_discarded.as_ref());
        set(&mut options.read_only, self.read_only.as_ref());
        if self.serial.is_some() {
            options.serial.clone_from(&self.serial);
        }
        set(&mut options.limits.iops, self.iops.as_ref());
        set(&mut options.limits.iops_burst, self.iops_burst.as_ref());
        set(&mut options.limits.bps, self.bps.as_ref());
        set(&mut options.limits.bps_burst, self.bps_burst.as_ref());
    }
}

/// QEMU takes a burst only above its rate, and only with one.
pub(crate) fn check_limits(limits: &DiskLimits, fields: &mut Fields) {
    for (name, rate, burst) in [
        ("iops", limits.iops, limits.iops_burst),
        ("bps", limits.bps, limits.bps_burst),
    ] {
        if burst > 0 && (rate == 0 || burst < rate) {
            let told = format!("needs {name}, and must not be less than it");
            fields.wrong(&format!("{name}_burst"), told);
        }
    }
}

/// A size in GiB or MiB, one of the two.
pub(crate) fn read_size(fields: &mut Fields) -> Option<u64> {
    if fields.has("size") && fields.has("size_mib") {
        fields.wrong("size_mib", "cannot be given together with size");
    }
    let size_gib = fields.whole("size", 1..=MAX_DISK_MIB / MIB_PER_GIB);
    let size_mib = fields.whole("size_mib", 1..=MAX_DISK_MIB);
    size_mib.or(size_gib.map(|gib| gib * MIB_PER_GIB))
}

fn read_letter(fields: &mut Fields) -> Option<u8> {
    let name = fields.string("mount_point")?;
    let letter = match name.strip_prefix("/dev/vd").map(str::as_bytes) {
        Some([letter]) if letter.is_ascii_lowercase() => Some(*letter),
        _ => None,
    };
    if letter.is_none() {
        fields.wrong("mount_point", "must be /dev/vda to /dev/vdz");
    }
    letter
}

/// Reads a [`NewDiskBody`].
pub(crate) fn read_disk(post: &mut Post) -> Result<NewDisk, ApiError> {
    let origin = post.caller.origin();
    let mut fields = post.fields();
    let formats = [DiskFormat::Qcow2, DiskFormat::Raw];
    let asks_image = fields.has("image");
    let asks_size = fields.has("size") || fields.has("size_mib");
    if !asks_image && !asks_size {
        fields.require("size");
    }
    let mut options = DiskOptions::default();
    let new = NewDisk {
        id: fields.name("name"),
        size_mib: read_size(&mut fields),
        format: fields
            .word("format", &formats.map(|format| (format.as_str(), format)))
            .unwrap_or(DiskFormat::Qcow2),
        image: fields.name("image"),
        wished_letter: read_letter(&mut fields),
        options: {
            OptionFields::read(&mut fields).over(&mut options);
            options
        },
        origin,
        idempotency: None,
    };
    if new.format == DiskFormat::Raw && asks_image {
        fields.wrong("format", "a linked clone of an image is qcow2");
    }
    check_limits(&new.options.limits, &mut fields);
    fields.finish()?;
    Ok(new)
}
