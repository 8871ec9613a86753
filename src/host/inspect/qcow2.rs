//! The header of a qcow2 file (QEMU's docs/interop/qcow2.txt, versions 2 and 3).
//!
//! Let through is only what stands by itself: no backing file, no data file, no encryption, no
//! internal snapshot, no feature that is not known here, and tables that lie within the file.

use super::{InspectError, read_at, refused};
use std::io::{Read, Seek};

pub(super) const MAGIC: &[u8] = b"QFI\xfb";

const V2_HEADER: usize = 72;
const V3_HEADER: usize = 104;
/// QEMU's own limits: `QCOW_MAX_L1_SIZE`, `QCOW_MAX_REFTABLE_SIZE`.
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Larger than any disk a host could mean; beyond it QEMU's tables need more than its limits at
/// the usual cluster size.
const MAX_VIRTUAL_SIZE: u64 = 64 << 40;
/// Offsets in the tables: bits 9 to 55.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

const INCOMPATIBLE_DIRTY: u64 = 1;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;

const EXTENSION_END: u32 = 0;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;

fn u32_at(bytes: &[u8], offset: usize) -> Result<u32, InspectError> {
    match bytes.get(offset..offset + 4) {
        Some(&[a, b, c, d]) => Ok(u32::from_be_bytes([a, b, c, d])),
        _ => refused("the qcow2 header is cut short"),
    }
}

fn u64_at(bytes: &[u8], offset: usize) -> Result<u64, InspectError> {
    Ok(u64::from(u32_at(bytes, offset)?) << 32 | u64::from(u32_at(bytes, offset + 4)?))
}

/// Checks a file that begins with `head` and has `len` bytes; answers the size of its disk.
pub(super) fn check<F: Read + Seek>(
    file: &mut F,
    head: &[u8],
    len: u64,
) -> Result<u64, InspectError> {
    if !head.starts_with(MAGIC) {
        return refused("this is no qcow2 image");
    }
    let version = u32_at(head, 4)?;
    match version {
        1 => refused("this is a qcow (version 1) image; convert it: qemu-img convert -O qcow2"),
        2 | 3 => Ok(()),
        _ => refused(format!("qcow2 version {version} is not known")),
    }?;
    stands_alone(head)?;
    let features = if version == 3 { features(head)? } else { 0 };
    let cluster_bits = u32_at(head, 20)?;
    if !(9..=21).contains(&cluster_bits) {
        return refused(format!(
            "a cluster size of 2^{cluster_bits} bytes is impossible"
        ));
    }
    let cluster = 1_u64 << cluster_bits;
    extensions(file, head, version, cluster)?;
    let size = u64_at(head, 24)?;
    if size == 0 || size > MAX_VIRTUAL_SIZE {
        return refused(format!("a disk of {size} bytes is impossible"));
    }
    refcount_table(head, cluster, len)?;
    l1_table(file, head, cluster, len, size, features)?;
    Ok(size)
}

/// Nothing outside the file, nothing hidden inside it.
fn stands_alone(head: &[u8]) -> Result<(), InspectError> {
    if u64_at(head, 8)? != 0 || u32_at(head, 16)? != 0 {
        return refused(
            "the image has a backing file; flatten it first: qemu-img convert -O qcow2",
        );
    }
    if u32_at(head, 32)? != 0 {
        return refused("the image is encrypted; convert it first: qemu-img convert -O qcow2");
    }
    if u32_at(head, 60)? != 0 {
        return refused(
            "the image has internal snapshots; drop them first: qemu-img convert -O qcow2",
        );
    }
    Ok(())
}

/// The feature bits of version 3.
fn features(head: &[u8]) -> Result<u64, InspectError> {
    let bits = u64_at(head, 72)?;
    if bits & INCOMPATIBLE_DATA_FILE != 0 {
        return refused(
            "the image has an external data file; convert it first: qemu-img convert -O qcow2",
        );
    }
    if bits & (INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT) != 0 {
        return refused("the image was not closed cleanly; repair it first: qemu-img check -r all");
    }
    let unknown = bits & !(INCOMPATIBLE_COMPRESSION | INCOMPATIBLE_EXTENDED_L2);
    if unknown != 0 {
        return refused(format!(
            "the image has features that are not known: {unknown:#x}"
        ));
    }
    if u32_at(head, 96)? > 6 {
        return refused("the width of the reference counts is impossible");
    }
    // 0 deflate, 1 zstd. The byte is there only if the header is long enough.
    if bits & INCOMPATIBLE_COMPRESSION != 0 && head.get(104).is_none_or(|kind| *kind > 1) {
        return refused("the kind of compression is not known");
    }
    Ok(bits)
}

/// The list of extensions after the header, within the first cluster.
fn extensions<F: Read + Seek>(
    file: &mut F,
    head: &[u8],
    version: u32,
    cluster: u64,
) -> Result<(), InspectError> {
    let mut at = V2_HEADER;
    if version == 3 {
        at = u32_at(head, 100)? as usize;
        if at < V3_HEADER || !at.is_multiple_of(8) || at as u64 > cluster {
            return refused(format!("a header of {at} bytes is impossible"));
        }
    }
    let first = read_at(file, 0, cluster)?;
    while at + 8 <= first.len() {
        let (kind, size) = (u32_at(&first, at)?, u32_at(&first, at + 4)? as usize);
        match kind {
            EXTENSION_END => return Ok(()),
            EXTENSION_DATA_FILE => return refused("the image names an external data file"),
            EXTENSION_ENCRYPTION => return refused("the image is encrypted"),
            _ => {}
        }
        if size > first.len() - at - 8 {
            return refused("a header extension is longer than the first cluster");
        }
        at += 8 + size.next_multiple_of(8);
    }
    Ok(())
}

fn refcount_table(head: &[u8], cluster: u64, len: u64) -> Result<(), InspectError> {
    let offset = u64_at(head, 48)?;
    let bytes = u64::from(u32_at(head, 56)?) * cluster;
    if bytes == 0 || bytes > MAX_REFCOUNT_TABLE_BYTES {
        return refused("the size of the reference count table is impossible");
    }
    within("the reference count table", offset, bytes, cluster, len)
}

/// The table of tables: each must lie within the file, or the file was cut short.
fn l1_table<F: Read + Seek>(
    file: &mut F,
    head: &[u8],
    cluster: u64,
    len: u64,
    size: u64,
    features: u64,
) -> Result<(), InspectError> {
    let entry = if features & INCOMPATIBLE_EXTENDED_L2 == 0 {
        8
    } else {
        16
    };
    let needed = size.div_ceil(cluster * (cluster / entry));
    let (entries, offset) = (u64::from(u32_at(head, 36)?), u64_at(head, 40)?);
    if entries < needed || entries * 8 > MAX_L1_BYTES {
        return refused(format!(
            "a table of {entries} entries does not fit a disk of {size} bytes"
        ));
    }
    within("the cluster table", offset, entries * 8, cluster, len)?;
    for word in read_at(file, offset, entries * 8)?.chunks_exact(8) {
        let table = u64_at(word, 0)? & OFFSET_MASK;
        if table != 0 {
            within("a cluster table", table, cluster, cluster, len)?;
        }
    }
    Ok(())
}

fn within(what: &str, offset: u64, bytes: u64, cluster: u64, len: u64) -> Result<(), InspectError> {
    if offset < cluster || !offset.is_multiple_of(cluster) {
        return refused(format!("{what} is at an impossible place"));
    }
    if offset.checked_add(bytes).is_none_or(|end| end > len) {
        return refused(format!(
            "{what} lies beyond the end of the file: it was cut short"
        ));
    }
    Ok(())
}
