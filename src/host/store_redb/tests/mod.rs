mod damage;
mod keep;
mod keep_killed;
mod kill;
mod killed;
mod measure;
mod power;
mod upgrade;

use super::*;
use crate::host::testing::SmallDisk;
use redb::BackendError;
use std::{
    fs,
    sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering},
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

#[test]
fn a_really_full_file_system_never_makes_an_outcome_unknown() {
    let Some(disk) = SmallDisk::mount("6m") else {
        return;
    };
    let storage = RedbStorage::new(disk.path().join("vman.redb"));
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
    let mut rest = File::create(disk.path().join("rest")).unwrap();
    let _ = io::copy(&mut io::repeat(1), &mut rest);
    assert_eq!(storage.load(Table::Vms).unwrap().len(), written + 1);
    for n in 0..50 {
        match storage.commit(&[row("vm", &format!("stopped {n}"))]) {
            Ok(()) | Err(CommitError::NoSpace) => {}
            Err(error) => panic!("{error}"),
        }
    }
    fs::remove_file(disk.path().join("rest")).unwrap();
    storage.commit(&[row("vm", "stopped")]).unwrap();
}

#[test]
fn a_file_system_that_turns_read_only_is_read_on_and_written_to_again_later() {
    let Some(disk) = SmallDisk::mount("16m") else {
        return;
    };
    let storage = RedbStorage::new(disk.path().join("vman.redb"));
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
