use super::*;
use proptest::prelude::*;
use redb::BackendError;
use std::{
    fs,
    process::Command,
    sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering},
    time::Instant,
};
use tempfile::TempDir;
use vman_actors::ports::contract::storage::storage_contract;

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

fn row(key: &str, value: &str) -> Row {
    Row {
        table: Table::Vms,
        key: key.into(),
        value: Some(value.into()),
    }
}

fn store_in(dir: &TempDir) -> RedbStorage {
    RedbStorage::new(dir.path().join("vman.redb"))
}

fn opened_in(dir: &TempDir) -> RedbStorage {
    let storage = store_in(dir);
    storage.open().unwrap();
    storage
}

/// Which operations of the file fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Failing {
    Nothing,
    Write,
    Sync,
    Growth,
}

/// The operations of one kind fail from the n-th on.
#[derive(Debug, Default)]
struct Fault {
    kind: AtomicU8,
    left: AtomicI64,
    len: AtomicU64,
}

impl Fault {
    fn arm(&self, kind: Failing, after: i64) {
        self.left.store(after, Ordering::SeqCst);
        self.kind.store(kind as u8, Ordering::SeqCst);
    }

    fn check(&self, kind: Failing, code: i32) -> io::Result<()> {
        let hit = self.kind.load(Ordering::SeqCst) == kind as u8
            && self.left.fetch_sub(1, Ordering::SeqCst) <= 0;
        if hit {
            return Err(io::Error::from_raw_os_error(code));
        }
        Ok(())
    }
}

#[derive(Debug)]
struct FaultyFile(FileBackend, Arc<Fault>);

impl StorageBackend for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        // The blocks, and with them the length, were allocated just before.
        if len > self.1.len.swap(len, Ordering::SeqCst) {
            self.1.check(Failing::Growth, ENOSPC)?;
        }
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.1.check(Failing::Sync, EIO)?;
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.1.check(Failing::Write, EIO)?;
        self.0.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }
}

fn faulty_in(dir: &TempDir) -> (RedbStorage, Arc<Fault>) {
    let fault = Arc::<Fault>::default();
    let shared = fault.clone();
    let storage = RedbStorage::with_file(
        dir.path().join("vman.redb"),
        Box::new(move |file| Box::new(FaultyFile(file, shared.clone()))),
    );
    storage.open().unwrap();
    (storage, fault)
}

#[test]
fn the_redb_storage_keeps_the_contract() {
    let root = tempfile::tempdir().unwrap();
    let next = AtomicI64::new(0);
    storage_contract(|| {
        let n = next.fetch_add(1, Ordering::SeqCst);
        let dir = root.path().join(n.to_string());
        fs::create_dir(&dir).unwrap();
        RedbStorage::new(dir.join("vman.redb"))
    });
}

#[test]
fn wherever_the_file_fails_the_answer_is_true() {
    let mut unknown = 0;
    for kind in [Failing::Write, Failing::Sync] {
        for after in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let (storage, fault) = faulty_in(&dir);
            storage.commit(&[row("before", "1")]).unwrap();
            fault.arm(kind, after);
            let answer = storage.commit(&[row("a", "1"), row("b", "1")]);
            fault.arm(Failing::Nothing, 0);
            match answer {
                Ok(()) => {}
                Err(CommitError::Unknown(_)) => {
                    unknown += 1;
                    assert!(storage.load(Table::Vms).is_err(), "it guesses");
                    let next = storage.commit(&[row("c", "1")]);
                    assert!(matches!(next, Err(CommitError::Refused(_))), "{next:?}");
                    storage.open().unwrap();
                    assert_eq!(storage.get(Table::Vms, b"c"), Ok(None));
                }
                Err(_) => {
                    // The file failed while it was opened again, too.
                    storage.open().unwrap();
                    assert_eq!(storage.get(Table::Vms, b"a"), Ok(None), "{kind:?} {after}");
                }
            }
            let a = storage.get(Table::Vms, b"a").unwrap();
            assert_eq!(storage.get(Table::Vms, b"b").unwrap(), a, "a torn batch");
            assert!(storage.get(Table::Vms, b"before").unwrap().is_some());
            storage.commit(&[row("after", "1")]).unwrap();
        }
    }
    assert!(unknown > 0, "no failure was seen");
}

#[test]
fn a_disk_that_is_full_is_told_for_certain_and_reads_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, fault) = faulty_in(&dir);
    storage.commit(&[row("before", "1")]).unwrap();
    fault.arm(Failing::Growth, 0);
    let large = "x".repeat(8 << 20);
    assert_eq!(
        storage.commit(&[row("large", &large)]),
        Err(CommitError::NoSpace)
    );
    assert!(storage.get(Table::Vms, b"before").unwrap().is_some());
    assert_eq!(storage.get(Table::Vms, b"large"), Ok(None));
    // What needs no growth still works: a VM can be stopped on a full disk.
    storage.commit(&[row("small", "1")]).unwrap();
    fault.arm(Failing::Nothing, 0);
    storage.commit(&[row("large", &large)]).unwrap();
}

/// A small file system of its own; none where we may not mount one.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir.path())
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            eprintln!("SKIPPED: a tmpfs cannot be mounted here");
        }
        mounted.then(|| Self(dir))
    }

    fn remount(&self, how: &str) {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,{how}")])
            .arg(self.0.path())
            .status();
        assert!(status.unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_really_full_file_system_never_makes_an_outcome_unknown() {
    let Some(disk) = SmallDisk::mount("6m") else {
        return;
    };
    let storage = RedbStorage::new(disk.0.path().join("vman.redb"));
    storage.open().unwrap();
    storage.commit(&[row("vm", "running")]).unwrap();
    let value = "x".repeat(100_000);
    let mut written = 0;
    let error = loop {
        match storage.commit(&[row(&format!("filler{written}"), &value)]) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 1000, "the disk never got full");
    };
    assert_eq!(error, CommitError::NoSpace);
    // Another program takes what is left, to the last byte.
    let mut rest = File::create(disk.0.path().join("rest")).unwrap();
    let _ = io::copy(&mut io::repeat(1), &mut rest);
    assert_eq!(storage.load(Table::Vms).unwrap().len(), written + 1);
    for n in 0..50 {
        match storage.commit(&[row("vm", &format!("stopped {n}"))]) {
            Ok(()) | Err(CommitError::NoSpace) => {}
            Err(error) => panic!("{error}"),
        }
    }
    fs::remove_file(disk.0.path().join("rest")).unwrap();
    storage.commit(&[row("vm", "stopped")]).unwrap();
}

#[test]
fn a_file_system_that_turns_read_only_is_read_on_and_written_to_again_later() {
    let Some(disk) = SmallDisk::mount("16m") else {
        return;
    };
    let storage = RedbStorage::new(disk.0.path().join("vman.redb"));
    storage.open().unwrap();
    storage.commit(&[row("a", "1")]).unwrap();
    storage.close("a file open for writing hinders the remount");
    disk.remount("ro");
    storage.open().unwrap();
    for _ in 0..2 {
        assert_eq!(storage.commit(&[row("b", "1")]), Err(CommitError::ReadOnly));
        assert_eq!(storage.load(Table::Vms).unwrap().len(), 1);
    }
    disk.remount("rw");
    storage.commit(&[row("b", "1")]).unwrap();
    assert_eq!(storage.load(Table::Vms).unwrap().len(), 2);
}

#[test]
fn a_file_that_was_lost_never_becomes_an_empty_inventory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vman.redb");
    drop(opened_in(&dir));
    fs::remove_file(&path).unwrap();
    let error = store_in(&dir).open().unwrap_err();
    assert!(matches!(error, LoadError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("vman.redb.created"), "{error}");
    assert!(!path.exists());
}

#[test]
fn a_creation_that_was_cut_short_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("vman.redb.new"), vec![0; 5000]).unwrap();
    opened_in(&dir).commit(&[row("a", "1")]).unwrap();
    assert!(!dir.path().join("vman.redb.new").exists());
    // Cut short right before the marker.
    fs::remove_file(dir.path().join("vman.redb.created")).unwrap();
    let storage = opened_in(&dir);
    assert_eq!(storage.load(Table::Vms).unwrap().len(), 1);
    assert!(dir.path().join("vman.redb.created").exists());
}

#[test]
fn a_store_that_is_held_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let lock = crate::host::dirs::StorageLock::acquire(dir.path()).unwrap();
    let first = opened_in(&dir);
    let error = store_in(&dir).open().unwrap_err();
    let LoadError::Locked { holder, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(*holder, format!(" (pid {})", std::process::id()));
    drop(first);
    store_in(&dir).open().unwrap();
    drop(lock);
}

/// The bytes of a store with some rows, closed cleanly or as a SIGKILL leaves it.
fn store_bytes(clean: bool) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let storage = opened_in(&dir);
    for n in 0..20 {
        let value = "v".repeat(n * 50);
        storage.commit(&[row(&format!("vm{n}"), &value)]).unwrap();
    }
    let path = dir.path().join("vman.redb");
    if clean {
        drop(storage);
        return fs::read(path).unwrap();
    }
    fs::read(path).unwrap()
}

/// Opens a file with these bytes; if that is refused, the file must be as it was.
fn try_bytes(bytes: &[u8]) -> Result<usize, LoadError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vman.redb");
    fs::write(&path, bytes).unwrap();
    let storage = store_in(&dir);
    let result = storage.open();
    if result.is_err() {
        drop(storage);
        assert!(
            fs::read(&path).unwrap() == bytes,
            "a corrupt file was changed"
        );
        return result.map(|()| 0);
    }
    storage.load(Table::Vms).map(|rows| rows.len())
}

#[test]
fn a_store_that_was_killed_is_opened_with_all_its_rows() {
    assert_eq!(try_bytes(&store_bytes(false)), Ok(20));
    assert_eq!(try_bytes(&store_bytes(true)), Ok(20));
}

#[test]
fn what_is_no_store_is_corrupt_and_left_as_it_is() {
    let whole = store_bytes(true);
    let mut headless = whole.clone();
    headless[..4096].fill(0);
    let mut hollow = whole.clone();
    hollow[4096..].fill(0);
    let other_program = {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("other.redb");
        drop(Database::create(&path).unwrap());
        fs::read(path).unwrap()
    };
    for (what, bytes) in [
        ("empty", vec![]),
        ("one byte", vec![b'r']),
        ("text", b"not a store".repeat(1000)),
        ("all zero", vec![0; whole.len()]),
        ("a zeroed header", headless),
        ("zeroed pages", hollow),
        ("cut after the header", whole[..4096].to_vec()),
        ("cut in half", whole[..whole.len() / 2].to_vec()),
        ("another program's", other_program),
    ] {
        let result = try_bytes(&bytes);
        assert!(
            matches!(result, Err(LoadError::Corrupt { .. })),
            "{what}: {result:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_damaged_store_never_panics_and_is_left_as_it_is_if_it_is_refused(
        clean: bool,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        early: bool,
    ) {
        let mut bytes = store_bytes(clean);
        let end = if early { 64 << 10 } else { bytes.len() };
        for (at, value) in damage {
            let at = at.index(end.min(bytes.len()));
            bytes[at] = value;
        }
        let _ = try_bytes(&bytes);
    }
}

/// `cargo test --release -- --ignored --nocapture commits_are_measured`
#[test]
#[ignore = "a measurement, not a test"]
fn commits_are_measured() {
    let dir =
        tempfile::tempdir_in(std::env::var("VMAN_MEASURE_IN").unwrap_or("/tmp".into())).unwrap();
    let storage = opened_in(&dir);
    let value = "v".repeat(600);
    for (commits, batch) in [(300_u32, 1_u32), (100, 16), (50, 256)] {
        let mut times = Vec::new();
        for n in 0..commits {
            let rows: Vec<Row> = (0..batch)
                .map(|b| row(&format!("{n}.{b}"), &value))
                .collect();
            let begin = Instant::now();
            storage.commit(&rows).unwrap();
            times.push(begin.elapsed());
        }
        times.sort();
        let (median, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        eprintln!("{batch} rows a commit: median {median:?}, p99 {p99:?}");
    }
    let rows: Vec<Row> = (0..100_000_u32)
        .map(|n| Row {
            table: Table::Events,
            key: n.to_be_bytes().to_vec(),
            value: Some(vec![7; 300]),
        })
        .collect();
    for part in rows.chunks(10_000) {
        storage.commit(part).unwrap();
    }
    eprintln!("{} MiB", storage.size() >> 20);
    let killed = dir.path().join("killed");
    fs::create_dir(&killed).unwrap();
    fs::copy(&storage.path, killed.join("vman.redb")).unwrap();
    let begin = Instant::now();
    drop(storage);
    eprintln!("close: {:?}", begin.elapsed());
    for (what, path) in [("closed", dir.path().to_owned()), ("killed", killed)] {
        let storage = RedbStorage::new(path.join("vman.redb"));
        let begin = Instant::now();
        storage.open().unwrap();
        eprintln!(
            "open of a {what} store with 100,000 events: {:?}",
            begin.elapsed()
        );
    }
    // The floor: one write and one fdatasync.
    let file = File::create(dir.path().join("floor")).unwrap();
    let mut times = Vec::new();
    for n in 0..200 {
        let begin = Instant::now();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], n % 16 * 4096).unwrap();
        file.sync_data().unwrap();
        times.push(begin.elapsed());
    }
    times.sort();
    eprintln!("floor: write 4 KiB + fdatasync: median {:?}", times[100]);
}
