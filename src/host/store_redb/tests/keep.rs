//! Copies that are kept of a store in use.

use super::*;
use std::{os::unix::fs::PermissionsExt as _, path::Path};
use vman_actors::ports::KeptCopy;

/// 2026-11-21T05:24:00Z.
const NOW: u64 = 1_795_238_640_000;

fn kept(storage: &RedbStorage, after_ms: u64, keep: usize) -> KeptCopy {
    storage.keep_copy(UnixMs(NOW + after_ms), keep).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn values(storage: &RedbStorage) -> Vec<Vec<u8>> {
    let rows = storage.load(Table::Vms).unwrap();
    rows.into_iter().map(|(_, value)| value).collect()
}

#[test]
fn copies_made_among_commits_are_each_the_store_of_one_moment() {
    let dir = tempfile::tempdir().unwrap();
    let storage = opened_in(&dir);
    let pair = |n: u32| [row("a", &n.to_string()), row("b", &n.to_string())];
    storage.commit(&pair(0)).unwrap();
    let done = AtomicU8::new(0);
    let copies: Vec<_> = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0;
            while done.load(Ordering::SeqCst) == 0 {
                n += 1;
                storage.commit(&pair(n)).unwrap();
            }
        });
        let copies = (0..5).map(|n| kept(&storage, n, 10)).collect();
        done.store(1, Ordering::SeqCst);
        copies
    });
    for copy in &copies {
        let mode = fs::metadata(&copy.file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::metadata(&copy.file).unwrap().len(), copy.bytes);
        let restored = RedbStorage::new(&copy.file);
        restored.open().unwrap();
        let values = values(&restored);
        assert_eq!((values.len(), &values[0]), (2, &values[1]), "{copy:?}");
    }
    let folder = dir.path().join("backups");
    let mode = fs::metadata(&folder).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_copy_takes_the_stores_place_with_every_table() {
    let dir = tempfile::tempdir().unwrap();
    let storage = opened_in(&dir);
    let all = Table::ALL.map(|table| Row {
        table,
        ..row("same", table.as_str())
    });
    storage.commit(&all).unwrap();
    let copy = kept(&storage, 0, 1);
    assert_eq!(copy.meta, storage.load(Table::Meta).unwrap());
    storage.commit(&[row("later", "1")]).unwrap();
    drop(storage);
    fs::copy(&copy.file, dir.path().join("vman.redb")).unwrap();
    let storage = opened_in(&dir);
    for table in Table::ALL {
        let expected = vec![(b"same".to_vec(), table.as_str().as_bytes().to_vec())];
        assert_eq!(storage.load(table), Ok(expected), "{table:?}");
    }
    storage.commit(&[row("later", "2")]).unwrap();
}

#[test]
fn the_newest_are_kept_and_files_of_other_names_are_nobodys() {
    let dir = tempfile::tempdir().unwrap();
    let storage = opened_in(&dir);
    kept(&storage, 0, 2);
    let folder = dir.path().join("backups");
    let others = [
        "notes.txt",
        "simulated-20200101T000000000Z.redb",
        "vman-before-the-move.redb",
    ];
    for other in others {
        fs::write(folder.join(other), "x").unwrap();
    }
    assert_eq!(kept(&storage, 60_000, 2).removed, [""; 0]);
    let removed = kept(&storage, 120_000, 2).removed;
    assert_eq!(removed.len(), 1);
    assert!(
        removed[0].ends_with("vman-20261121T052400000Z.redb"),
        "{removed:?}"
    );
    // A clock that went back: what was just made is not the one to go.
    let older = kept(&storage, 30_000, 2);
    assert!(Path::new(&older.file).exists());
    assert!(older.removed[0].ends_with("vman-20261121T052500000Z.redb"));
    let left = [
        others[0],
        others[1],
        "vman-20261121T052430000Z.redb",
        "vman-20261121T052600000Z.redb",
        others[2],
    ];
    assert_eq!(names(&folder), left);
}

#[test]
fn a_copy_of_the_same_moment_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let storage = opened_in(&dir);
    let copy = kept(&storage, 0, 2);
    let before = fs::read(&copy.file).unwrap();
    storage.commit(&[row("a", "1")]).unwrap();
    storage.keep_copy(UnixMs(NOW), 2).unwrap_err();
    assert_eq!(fs::read(&copy.file).unwrap(), before);
    assert_eq!(names(&dir.path().join("backups")).len(), 1);
}

#[test]
fn without_room_there_is_no_copy_and_nothing_of_it_and_the_store_goes_on() {
    let Some(disk) = SmallDisk::mount("40m") else {
        return;
    };
    let storage = RedbStorage::new(disk.path().join("vman.redb"));
    storage.open().unwrap();
    let long = "x".repeat(100_000);
    for n in 0..40 {
        storage.commit(&[row(&n.to_string(), &long)]).unwrap();
    }
    // From none at all to all but enough, so that it is full at each point of the writing.
    for left in [0, 100_000, 1_000_000, 3_000_000] {
        let free = rustix::fs::statvfs(disk.path()).unwrap();
        let free = free.f_bavail * free.f_frsize;
        let filler = disk.path().join("filler");
        fs::write(&filler, vec![0; usize::try_from(free - left).unwrap()]).unwrap();
        let refused = storage.keep_copy(UnixMs(NOW), 2).unwrap_err();
        assert_eq!(refused, CommitError::NoSpace, "{left} bytes free");
        assert_eq!(names(&disk.path().join("backups")), [""; 0]);
        fs::remove_file(&filler).unwrap();
        storage.commit(&[row("goes", "on")]).unwrap();
    }
    kept(&storage, 0, 2);
}
