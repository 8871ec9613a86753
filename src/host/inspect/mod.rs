//! What a file is that was streamed in, by its first bytes. A pure judgement: refused with a
//! sentence, or harmless.
//!
//! A disk image is somebody else's: its header may name any file of this host as a backing or data
//! file. So it is parsed here before any tool opens it, and what is let through is never probed
//! again: the format found here is kept in the record and always said.
//!
//! Must not: write, or trust a number of the file. Look next: [`qcow2`].

mod qcow2;

use std::io::{self, Read, Seek, SeekFrom};
use vman_model::{ImageFormat, ImageKind};

/// Disks come in sectors.
const SECTOR: u64 = 512;
/// As much of the beginning as any check below looks at.
const HEAD_BYTES: u64 = 4096;

/// What an accepted file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// Its format, to be said to every tool from now on.
    pub format: ImageFormat,
    /// Bytes of the disk a guest would see; the file's bytes for kernels and initrds.
    pub virtual_size: u64,
}

/// Why a file was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// Its content is not what it must be; a sentence for whoever sent it.
    #[error("{0}")]
    Refused(String),
    /// It could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn refused<T>(why: impl Into<String>) -> Result<T, InspectError> {
    Err(InspectError::Refused(why.into()))
}

/// Judges a file.
pub fn inspect<F: Read + Seek>(kind: ImageKind, file: &mut F) -> Result<Inspected, InspectError> {
    let len = file.seek(SeekFrom::End(0))?;
    if len == 0 {
        return refused("the file is empty");
    }
    let head = read_at(file, 0, len.min(HEAD_BYTES))?;
    match kind {
        ImageKind::Disk => disk(file, &head, len),
        ImageKind::Kernel => kernel(&head).map(|()| plain(len)),
        ImageKind::Initrd => initrd(&head).map(|()| plain(len)),
    }
}

/// The size of the disk in a file whose format is known.
pub fn virtual_size<F: Read + Seek>(
    format: ImageFormat,
    file: &mut F,
) -> Result<u64, InspectError> {
    let len = file.seek(SeekFrom::End(0))?;
    match format {
        ImageFormat::Raw => Ok(len),
        ImageFormat::Qcow2 => {
            let head = read_at(file, 0, len.min(HEAD_BYTES))?;
            qcow2::check(file, &head, len)
        }
    }
}

fn plain(len: u64) -> Inspected {
    Inspected {
        format: ImageFormat::Raw,
        virtual_size: len,
    }
}

fn read_at<F: Read + Seek>(file: &mut F, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(len).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn has(head: &[u8], offset: usize, magic: &[u8]) -> bool {
    head.get(offset..)
        .is_some_and(|rest| rest.starts_with(magic))
}

/// Formats that are not taken, by what their first bytes are. Taken for a raw disk they would only
/// boot into nothing; opened by a tool that probes they may name other files.
const REFUSED_DISKS: &[(usize, &[u8], &str)] = &[
    (0, b"KDMV", "a VMDK image"),
    (0, b"COWD", "a VMDK image"),
    (0, b"# Disk DescriptorFile", "a VMDK descriptor"),
    (64, &[0x7f, 0x10, 0xda, 0xbe], "a VDI image"),
    (0, b"vhdxfile", "a VHDX image"),
    (0, b"conectix", "a VHD image"),
    (0, b"QED\0", "a QED image"),
    (0, b"LUKS\xba\xbe", "a LUKS container"),
    (0, b"WithoutFreeSpace", "a Parallels image"),
    (0, b"WithouFreSpacExt", "a Parallels image"),
    (0, b"#!/bin/sh\n#V2.0 Format\n", "a cloop image"),
    (0, b"Bochs Virtual HD Image", "a Bochs image"),
    (0, b"OOOM", "a User Mode Linux copy-on-write file"),
];

/// Packed or mistaken files.
const REFUSED_FILES: &[(usize, &[u8], &str)] = &[
    (0, &[0x1f, 0x8b], "gzip-compressed"),
    (0, &[0xfd, b'7', b'z', b'X', b'Z', 0], "xz-compressed"),
    (0, &[0x28, 0xb5, 0x2f, 0xfd], "zstd-compressed"),
    (0, b"BZh", "bzip2-compressed"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (257, b"ustar", "a tar archive"),
];

fn disk<F: Read + Seek>(file: &mut F, head: &[u8], len: u64) -> Result<Inspected, InspectError> {
    if has(head, 0, qcow2::MAGIC) {
        return Ok(Inspected {
            format: ImageFormat::Qcow2,
            virtual_size: qcow2::check(file, head, len)?,
        });
    }
    for (offset, magic, name) in REFUSED_DISKS {
        if has(head, *offset, magic) {
            return refused(format!(
                "this is {name}; convert it first: qemu-img convert -O qcow2"
            ));
        }
    }
    for (offset, magic, name) in REFUSED_FILES {
        if has(head, *offset, magic) {
            return refused(format!("this is {name}; unpack it first"));
        }
    }
    if head.trim_ascii_start().first() == Some(&b'<') {
        return refused("this is a web page, not a disk image");
    }
    // Two formats have their mark in the last sector.
    let foot = read_at(file, len.saturating_sub(SECTOR), SECTOR)?;
    for (magic, name) in [(&b"conectix"[..], "a VHD image"), (b"koly", "a DMG image")] {
        if has(&foot, 0, magic) {
            return refused(format!(
                "this is {name}; convert it first: qemu-img convert -O qcow2"
            ));
        }
    }
    if !len.is_multiple_of(SECTOR) {
        return refused(format!(
            "a raw disk image is a multiple of {SECTOR} bytes, this file has {len}: it was cut \
             short or is no disk image"
        ));
    }
    Ok(plain(len))
}

/// The Linux/x86 boot protocol: the boot flag at 0x1fe, `HdrS` at 0x202.
const BOOT_FLAG: (usize, &[u8]) = (0x1fe, &[0x55, 0xaa]);
const SETUP_MAGIC: (usize, &[u8]) = (0x202, b"HdrS");

fn kernel(head: &[u8]) -> Result<(), InspectError> {
    let bz_image = has(head, BOOT_FLAG.0, BOOT_FLAG.1) && has(head, SETUP_MAGIC.0, SETUP_MAGIC.1);
    if bz_image || is_pe(head) {
        return Ok(());
    }
    let why = if has(head, 0, b"\x7fELF") {
        "it is an ELF file; send the compressed kernel (bzImage, vmlinuz) instead of vmlinux"
    } else if has(head, 0, &[0x1f, 0x8b]) {
        "it is gzip-compressed; unpack it first"
    } else {
        "it is neither a bzImage nor an EFI executable"
    };
    refused(format!("this is no Linux kernel that can be booted: {why}"))
}

/// An EFI executable: `MZ`, and where the word at 0x3c says, `PE\0\0`.
fn is_pe(head: &[u8]) -> bool {
    let Some(word) = head.get(0x3c..0x40) else {
        return false;
    };
    let at = word
        .iter()
        .rev()
        .fold(0, |sum, byte| (sum << 8) | usize::from(*byte));
    has(head, 0, b"MZ") && has(head, at, b"PE\0\0")
}

/// What the Linux kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
const INITRDS: &[&[u8]] = &[
    b"070701",
    b"070702",
    &[0x1f, 0x8b],
    &[0xfd, b'7', b'z', b'X', b'Z', 0],
    &[0x28, 0xb5, 0x2f, 0xfd],
    &[0x02, 0x21, 0x4c, 0x18],
    &[0x5d, 0, 0],
    &[0x89, b'L', b'Z', b'O'],
    b"BZh",
];

fn initrd(head: &[u8]) -> Result<(), InspectError> {
    if INITRDS.iter().any(|magic| has(head, 0, magic)) {
        return Ok(());
    }
    refused(
        "this is no initrd: it must be a newc cpio archive, plain or packed with gzip, xz, zstd, \
         lz4, lzma, lzo or bzip2",
    )
}

#[cfg(test)]
mod tests;
