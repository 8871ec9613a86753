use super::*;
use proptest::prelude::*;
use std::{fs, io::Cursor, process::Command};

fn judge(kind: ImageKind, bytes: &[u8]) -> Result<Inspected, String> {
    inspect(kind, &mut Cursor::new(bytes)).map_err(|error| error.to_string())
}

/// What qemu-img makes of these arguments, as bytes.
fn made_by_qemu_img(arguments: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("base.raw"), vec![1; 1 << 20]).unwrap();
    let output = Command::new("qemu-img")
        .args(arguments)
        .current_dir(dir.path())
        .output()
        .expect("qemu-img is installed");
    assert!(output.status.success(), "{output:?}");
    fs::read(dir.path().join("x")).unwrap()
}

fn qcow2(options: &str) -> Vec<u8> {
    made_by_qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "x", "100M"])
}

#[test]
fn a_qcow2_image_that_stands_alone_is_taken_with_its_size() {
    for options in [
        "compat=0.10",
        "compat=1.1",
        "cluster_size=512",
        "cluster_size=2M",
        "extended_l2=on,cluster_size=128k",
        "compression_type=zstd",
        "preallocation=metadata",
        "refcount_bits=64",
    ] {
        let expected = Inspected {
            format: ImageFormat::Qcow2,
            virtual_size: 100 << 20,
        };
        assert_eq!(
            judge(ImageKind::Disk, &qcow2(options)),
            Ok(expected),
            "{options}"
        );
    }
}

#[test]
fn a_qcow2_image_that_names_another_file_is_refused() {
    let backed = made_by_qemu_img(&[
        "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.raw", "x",
    ]);
    let error = judge(ImageKind::Disk, &backed).unwrap_err();
    assert!(error.contains("backing file"), "{error}");
    let split = qcow2("data_file=data.raw");
    let error = judge(ImageKind::Disk, &split).unwrap_err();
    assert!(error.contains("external data file"), "{error}");
    // The same with the feature bit cleared: the extension still names the file.
    let mut hidden = split;
    hidden[79] &= !4;
    let error = judge(ImageKind::Disk, &hidden).unwrap_err();
    assert!(error.contains("external data file"), "{error}");
}

#[test]
fn hostile_qcow2_headers_are_refused_with_the_reason() {
    let good = qcow2("compat=1.1");
    let at = |offset: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
        judge(ImageKind::Disk, &image).expect_err("refused")
    };
    for (offset, bytes, says) in [
        (4, &[0, 0, 0, 1][..], "version 1"),
        (4, &[0, 0, 0, 9], "version 9"),
        (16, &[0, 0, 0, 5], "backing file"),
        (20, &[0, 0, 0, 63], "2^63"),
        (24, &[0; 8], "0 bytes"),
        (24, &[0xff; 8], "impossible"),
        (32, &[0, 0, 0, 2], "encrypted"),
        (36, &[0, 0, 0, 0], "does not fit"),
        (36, &[0xff; 4], "does not fit"),
        (40, &[0x7f, 0, 0, 0, 0, 0, 0, 0], "beyond the end"),
        (40, &[0, 0, 0, 0, 0, 0, 0, 0], "impossible place"),
        (48, &[0x7f, 0, 0, 0, 0, 0, 0, 0], "beyond the end"),
        (56, &[0xff; 4], "reference count"),
        (60, &[0, 0, 0, 1], "snapshots"),
        (72, &[0x80, 0, 0, 0, 0, 0, 0, 0], "not known"),
        (79, &[1], "closed cleanly"),
        (96, &[0, 0, 0, 7], "reference counts"),
        (100, &[0, 0, 0, 8], "header of 8 bytes"),
    ] {
        let error = at(offset, bytes);
        assert!(error.contains(says), "{offset}: {error}");
    }
}

#[test]
fn a_qcow2_image_that_was_cut_short_is_refused() {
    let whole = made_by_qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "base.raw", "x"]);
    judge(ImageKind::Disk, &whole).unwrap();
    for len in [4, 50, 103, 512, 65_536, 200_000] {
        let error = judge(ImageKind::Disk, &whole[..len]).unwrap_err();
        assert!(
            error.contains("cut short") || error.contains("impossible"),
            "{len}: {error}"
        );
    }
}

#[test]
fn images_of_other_formats_are_refused_by_their_name() {
    for (format, name) in [
        ("vmdk", "VMDK"),
        ("vdi", "VDI"),
        ("vhdx", "VHDX"),
        ("vpc", "VHD"),
        ("qed", "QED"),
        ("qcow", "version 1"),
        ("parallels", "Parallels"),
    ] {
        let image = made_by_qemu_img(&["create", "-q", "-f", format, "x", "100M"]);
        let error = judge(ImageKind::Disk, &image).unwrap_err();
        assert!(error.contains(name), "{format}: {error}");
    }
    let fixed = made_by_qemu_img(&[
        "create",
        "-q",
        "-f",
        "vpc",
        "-o",
        "subformat=fixed",
        "x",
        "1M",
    ]);
    assert!(judge(ImageKind::Disk, &fixed).unwrap_err().contains("VHD"));
}

#[test]
fn what_is_no_disk_is_refused() {
    for (bytes, says) in [
        (b"".to_vec(), "empty"),
        (b"\x1f\x8b\x08 packed".to_vec(), "gzip"),
        (b"<!DOCTYPE html>".to_vec(), "web page"),
        (vec![7; 1000], "multiple of 512"),
    ] {
        let error = judge(ImageKind::Disk, &bytes).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
    let raw = judge(ImageKind::Disk, &[7; 1024]).unwrap();
    assert_eq!((raw.format, raw.virtual_size), (ImageFormat::Raw, 1024));
}

#[test]
fn a_kernel_must_be_bootable() {
    let mut bz_image = vec![0; 2048];
    bz_image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bz_image[0x202..0x206].copy_from_slice(b"HdrS");
    assert_eq!(
        judge(ImageKind::Kernel, &bz_image).unwrap().virtual_size,
        2048
    );
    let mut efi = vec![0; 2048];
    efi[..2].copy_from_slice(b"MZ");
    efi[0x3c] = 0x80;
    efi[0x80..0x84].copy_from_slice(b"PE\0\0");
    judge(ImageKind::Kernel, &efi).unwrap();
    efi[0x3f] = 0xff;
    judge(ImageKind::Kernel, &efi).unwrap_err();
    for bad in [&b"\x7fELF"[..], &[0x1f, 0x8b], b"MZ", b"hello", &[0; 1024]] {
        judge(ImageKind::Kernel, bad).unwrap_err();
    }
}

#[test]
fn an_initrd_must_be_something_the_kernel_unpacks() {
    for magic in INITRDS {
        let bytes = [*magic, &[0; 100]].concat();
        judge(ImageKind::Initrd, &bytes).unwrap();
    }
    for bad in [&b"hello"[..], b"QFI\xfb", b"0707", &[0]] {
        judge(ImageKind::Initrd, bad).unwrap_err();
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000), magic: bool) {
        let bytes = if magic { [qcow2::MAGIC, &bytes].concat() } else { bytes };
        for kind in [ImageKind::Disk, ImageKind::Kernel, ImageKind::Initrd] {
            let _ = judge(kind, &bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_damaged_header_is_refused_or_harmless(
        damage in proptest::collection::vec((0..128_usize, any::<u8>()), 1..12),
    ) {
        static GOOD: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| qcow2("compat=1.1"));
        let mut image = GOOD.clone();
        for (at, value) in damage {
            image[at] = value;
        }
        if let Ok(taken) = judge(ImageKind::Disk, &image)
            && taken.format == ImageFormat::Qcow2
        {
            prop_assert_eq!(&image[8..20], &[0; 12], "a backing file");
            prop_assert_eq!(image[79] & 4, 0, "a data file");
            prop_assert_eq!(&image[32..36], &[0; 4], "encryption");
        }
    }
}
