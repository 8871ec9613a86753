use super::*;
use crate::config::JailMode;
use crate::host::dirs::StorageLock;
use std::time::Duration;
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    time::Instant,
};

fn storage() -> (tempfile::TempDir, StorageLock) {
    let dir = tempfile::tempdir().unwrap();
    // Characters that split options and protocols must do no harm.
    let lock = StorageLock::acquire(&dir.path().join("a, b:c=%s")).unwrap();
    (dir, lock)
}

fn disks(lock: &StorageLock) -> HostDisks {
    let jail = ToolJail::new(JailMode::Require, "qemu-img".into());
    HostDisks::new(lock.dirs(), Some(Arc::new(jail))).unwrap()
}

fn disk(size_mib: u64, image: Option<ImageFormat>) -> NewDiskFile {
    NewDiskFile {
        id: DiskId::parse("d1").unwrap(),
        format: DiskFormat::Qcow2,
        size_mib,
        image: image.map(|format| (ImageName::parse("debian").unwrap(), format)),
        made: false,
    }
}

fn qemu_img(arguments: &[&str], path: &Path) -> serde_json::Value {
    let output = std::process::Command::new("qemu-img")
        .args(arguments)
        .arg(path)
        .output()
        .expect("qemu-img is installed");
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn entries(path: &Path) -> usize {
    fs::read_dir(path).unwrap().count()
}

/// A tool that says nothing of its version, and is not kept from anything for it.
fn unconfined(tool: PathBuf) -> Arc<ToolJail> {
    Arc::new(ToolJail::new(JailMode::Off, tool))
}

/// A program in the place of qemu-img.
fn stand_in(dir: &Path, script: &str) -> PathBuf {
    let path = dir.join("stand-in");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    path
}

#[tokio::test]
async fn an_empty_disk_is_made_once_private_and_of_its_size() {
    let (_dir, lock) = storage();
    let disks = disks(&lock);
    let path = disks.ensure(disk(64, None)).await.unwrap();
    assert_eq!(path, lock.dirs().disks().join("d1.qcow2"));
    let seen = qemu_img(&["info", "--output=json", "-f", "qcow2"], &path);
    assert_eq!(seen["virtual-size"], 64 << 20);
    let before = fs::metadata(&path).unwrap();
    assert_eq!(before.mode() & 0o777, 0o600);
    disks.ensure(disk(64, None)).await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), before.ino());
    assert_eq!(entries(&lock.dirs().tmp()), 0);
    let id = DiskId::parse("d1").unwrap();
    disks.remove(id.clone(), DiskFormat::Qcow2).await.unwrap();
    disks.remove(id, DiskFormat::Qcow2).await.unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn a_clone_reads_as_its_image_also_after_the_storage_was_moved() {
    let (dir, lock) = storage();
    fs::write(lock.dirs().images().join("debian"), vec![7; 4 << 20]).unwrap();
    let path = disks(&lock)
        .ensure(disk(64, Some(ImageFormat::Raw)))
        .await
        .unwrap();
    let seen = qemu_img(&["info", "--output=json", "-f", "qcow2"], &path);
    assert_eq!(seen["backing-filename"], "../images/debian");
    assert_eq!(seen["backing-filename-format"], "raw");
    let moved = dir.path().join("moved");
    fs::rename(lock.dirs().root(), &moved).unwrap();
    let raw = dir.path().join("out.raw");
    let from = moved.join("disks/d1.qcow2");
    let from = from.to_str().unwrap();
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", from], &raw);
    let bytes = fs::read(raw).unwrap();
    assert_eq!(bytes.len(), 64 << 20);
    assert!(bytes[..4 << 20].iter().all(|byte| *byte == 7));
    assert!(bytes[4 << 20..].iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn a_qcow2_image_is_cloned_by_its_own_format_and_its_own_size() {
    let (_dir, lock) = storage();
    let image = lock.dirs().images().join("debian");
    std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&image)
        .arg("100M")
        .status()
        .unwrap();
    let error = disks(&lock)
        .ensure(disk(99, Some(ImageFormat::Qcow2)))
        .await
        .unwrap_err();
    let says = "disk d1 of 99 MiB is smaller than image debian, which needs 100 MiB";
    assert_eq!(error, FileError::Refused(says.to_owned()));
    let path = disks(&lock)
        .ensure(disk(100, Some(ImageFormat::Qcow2)))
        .await
        .unwrap();
    let seen = qemu_img(&["info", "--output=json", "-f", "qcow2"], &path);
    assert_eq!(seen["backing-filename-format"], "qcow2");
}

#[tokio::test]
async fn a_raw_disk_needs_no_tool_and_takes_no_space() {
    let (_dir, lock) = storage();
    let disks = HostDisks::new(lock.dirs(), None).unwrap();
    let raw = NewDiskFile {
        format: DiskFormat::Raw,
        ..disk(1 << 10, None)
    };
    let file = fs::metadata(disks.ensure(raw).await.unwrap()).unwrap();
    assert_eq!((file.len(), file.blocks()), (1 << 30, 0));
}

#[tokio::test]
async fn impossible_disks_are_refused_with_the_reason() {
    let (_dir, lock) = storage();
    let disks = disks(&lock);
    let raw_clone = NewDiskFile {
        format: DiskFormat::Raw,
        ..disk(64, Some(ImageFormat::Raw))
    };
    for (wanted, says) in [
        (disk(0, None), "0 MiB"),
        (disk(u64::MAX, None), "MiB"),
        (disk(64, Some(ImageFormat::Raw)), "gone"),
        (raw_clone, "only a qcow2 disk"),
    ] {
        let error = disks.ensure(wanted).await.unwrap_err();
        let FileError::Refused(why) = &error else {
            panic!("{error:?}")
        };
        assert!(why.contains(says), "{why}");
    }
    assert_eq!(
        entries(&lock.dirs().disks()) + entries(&lock.dirs().tmp()),
        0
    );
}

#[tokio::test]
async fn a_tool_that_is_missing_or_fails_is_told_and_leaves_nothing() {
    let (dir, lock) = storage();
    let nospace = "echo 'qemu-img: d1: No space left on device' >&2; exit 1";
    let flood = "head -c 1000000 /dev/zero >&2; exit 1";
    for (tool, says) in [
        (None, "install qemu-utils"),
        (Some(dir.path().join("none")), "install qemu-utils"),
        (
            Some(stand_in(dir.path(), nospace)),
            "no space left on the storage",
        ),
    ] {
        let disks = HostDisks::new(lock.dirs(), tool.map(unconfined)).unwrap();
        let error = disks.ensure(disk(64, None)).await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(
            entries(&lock.dirs().disks()) + entries(&lock.dirs().tmp()),
            0
        );
    }
    let killed = stand_in(dir.path(), "kill -9 $$");
    let disks = HostDisks::new(lock.dirs(), Some(unconfined(killed))).unwrap();
    let error = disks.ensure(disk(64, None)).await.unwrap_err();
    assert!(error.to_string().contains("signal: 9"), "{error}");
    let flooding = stand_in(dir.path(), flood);
    let disks = HostDisks::new(lock.dirs(), Some(unconfined(flooding))).unwrap();
    disks.ensure(disk(64, None)).await.unwrap_err();
    assert_eq!(
        entries(&lock.dirs().disks()) + entries(&lock.dirs().tmp()),
        0
    );
}

#[tokio::test]
async fn a_making_that_is_abandoned_kills_its_tool_and_leaves_nothing() {
    let (dir, lock) = storage();
    let mark = dir.path().join("pid");
    let script = format!("echo $$ > '{}'; exec sleep 1000", mark.display());
    let tool = stand_in(dir.path(), &script);
    let disks = HostDisks::new(lock.dirs(), Some(unconfined(tool))).unwrap();
    let making = tokio::spawn(disks.ensure(disk(64, None)));
    let until = Instant::now() + Duration::from_secs(20);
    let pid = loop {
        let text = fs::read_to_string(&mark).unwrap_or_default();
        if text.ends_with('\n') {
            break text.trim().to_owned();
        }
        assert!(Instant::now() < until, "the tool did not start");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    loop {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let cpu = limits.lines().find(|line| line.starts_with("Max cpu time"));
        if cpu.unwrap().contains(" 30 ") {
            break;
        }
        assert!(Instant::now() < until, "{limits}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    making.abort();
    assert!(making.await.unwrap_err().is_cancelled());
    assert_eq!(entries(&lock.dirs().tmp()), 0);
    while Path::new(&format!("/proc/{pid}")).exists() {
        assert!(Instant::now() < until, "the tool lives on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn two_makings_at_once_are_one_disk() {
    let (_dir, lock) = storage();
    let disks = disks(&lock);
    let both = tokio::join!(disks.ensure(disk(64, None)), disks.ensure(disk(64, None)));
    assert_eq!(both.0.unwrap(), both.1.unwrap());
    assert_eq!(entries(&lock.dirs().disks()), 1);
    assert_eq!(entries(&lock.dirs().tmp()), 0);
}

#[tokio::test]
async fn a_symbolic_link_in_the_place_of_a_disk_is_refused() {
    let (_dir, lock) = storage();
    std::os::unix::fs::symlink("/etc/passwd", lock.dirs().disks().join("d1.qcow2")).unwrap();
    let error = disks(&lock).ensure(disk(64, None)).await.unwrap_err();
    assert!(error.to_string().contains("symbolic link"), "{error}");
}

#[tokio::test]
async fn what_is_no_qcow2_file_any_more_is_told_as_such_however_short_it_is() {
    let (_dir, lock) = storage();
    for content in ["", "junk", "this was a qcow2 file and is none any more"] {
        fs::write(lock.dirs().disks().join("d1.qcow2"), content).unwrap();
        let error = disks(&lock).ensure(disk(64, None)).await.unwrap_err();
        assert!(error.to_string().contains("no qcow2 file"), "{error}");
    }
}

#[tokio::test]
async fn a_full_storage_is_told_as_such_and_keeps_no_half_made_disk() {
    let Some(small) = crate::host::testing::SmallDisk::mount("1m") else {
        return;
    };
    let lock = StorageLock::acquire(small.path()).unwrap();
    let rest = lock.dirs().root().join("rest");
    let mut file = fs::File::create(&rest).unwrap();
    let _ = io::copy(&mut io::repeat(1), &mut file);
    let error = disks(&lock).ensure(disk(64, None)).await.unwrap_err();
    assert!(matches!(error, FileError::NoSpace { .. }), "{error}");
    assert_eq!(
        entries(&lock.dirs().disks()) + entries(&lock.dirs().tmp()),
        0
    );
    drop(file);
    fs::remove_file(rest).unwrap();
    disks(&lock).ensure(disk(64, None)).await.unwrap();
}

/// Writes what it could do to the file it is to make. The script's own words find that file.
const PRYING: &str = r#"
[ "$1" != --version ] || exit 0
for word; do case $word in *.part) part=$word ;; esac; done
{
    cat "${0%/*}/../secret" /etc/shadow
    echo x > "${0%/*}/../planted"
    perl -MSocket -e 'socket(my $s, AF_INET, SOCK_DGRAM, 0) and print "socket made\n"'
    echo end
} > "$part" 2>/dev/null
"#;

/// What the prying tool could do, and whether it could plant a file.
async fn pried(mode: JailMode) -> (String, bool) {
    let (dir, lock) = storage();
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    fs::write(dir.path().join("secret"), "the secret").unwrap();
    let jail = Arc::new(ToolJail::new(mode, stand_in(&bin, PRYING)));
    let whole = jail.describe().await;
    let disks = HostDisks::new(lock.dirs(), Some(jail)).unwrap();
    let path = disks.ensure(disk(64, None)).await.unwrap();
    let did = fs::read_to_string(path).unwrap() + &whole;
    assert!(did.contains("end\n"), "{did}");
    (did, dir.path().join("planted").exists())
}

#[tokio::test]
async fn a_tool_reads_and_writes_the_files_of_its_call_alone_and_has_no_network() {
    let (free, planted) = pried(JailMode::Off).await;
    assert!(
        free.contains("the secret") && free.contains("socket made"),
        "{free}"
    );
    assert!(planted && free.contains("VMAN_JAIL=off"), "{free}");
    let (kept, planted) = pried(JailMode::Auto).await;
    if kept.contains("without landlock") {
        eprintln!("left out: no Landlock here");
    } else {
        assert!(
            !kept.contains("the secret") && !kept.contains("root:"),
            "{kept}"
        );
        assert!(!planted);
    }
    assert!(!kept.contains("socket made"), "{kept}");
}

#[tokio::test]
async fn a_tool_that_cannot_be_confined_runs_where_that_is_not_required_and_is_told() {
    let (dir, lock) = storage();
    let tool = stand_in(dir.path(), "[ \"$1\" != --version ]");
    let auto = ToolJail::new(JailMode::Auto, tool.clone());
    let told = auto.describe().await;
    assert!(
        told.contains("; without all but resource_limits: it does not start"),
        "{told}"
    );
    let disks = HostDisks::new(lock.dirs(), Some(Arc::new(auto))).unwrap();
    disks.ensure(disk(64, None)).await.unwrap();
    let required = ToolJail::new(JailMode::Require, tool);
    let disks = HostDisks::new(lock.dirs(), Some(Arc::new(required))).unwrap();
    let other = NewDiskFile {
        id: DiskId::parse("d2").unwrap(),
        ..disk(64, None)
    };
    let error = disks.ensure(other).await.unwrap_err();
    assert!(error.to_string().contains("VMAN_JAIL=require"), "{error}");
}
