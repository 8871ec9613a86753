//! SIGKILL at each step of a backup and the commit after it, by strace(1): what an upgrade does to the file.

use super::{killed::Work, *};

const UPGRADE: Work = Work {
    test: "upgrade::backs_a_store_up_and_writes_it_anew",
    files: &[
        "",
        "vman.redb",
        "vman.redb.before-upgrade",
        "vman.redb.before-upgrade.new",
    ],
};
const SUFFIX: &str = ".before-upgrade";
const ROWS: usize = 50;

fn all(value: &str) -> Vec<Row> {
    let name = |number| format!("vm-{number}");
    (0..ROWS).map(|number| row(&name(number), value)).collect()
}

/// Not a test: what the test below runs and kills.
#[test]
#[ignore = "run by another test"]
fn backs_a_store_up_and_writes_it_anew() {
    let storage = RedbStorage::new(killed::place().join("vman.redb"));
    storage.open().unwrap();
    storage.backup(SUFFIX).unwrap();
    storage.commit(&all("new")).unwrap();
}

/// What all rows say; panics if they do not say the same.
fn said(storage: &RedbStorage) -> String {
    let rows = storage.load(Table::Vms).unwrap();
    assert_eq!(rows.len(), ROWS);
    assert!(rows.iter().all(|(_, value)| *value == rows[0].1));
    String::from_utf8(rows[0].1.clone()).unwrap()
}

fn store_of(place: &Path) -> RedbStorage {
    let storage = RedbStorage::new(place.join("vman.redb"));
    storage.open().unwrap();
    storage
}

#[test]
fn an_upgrade_killed_at_any_step_leaves_a_store_that_is_wholly_old_or_wholly_new() {
    let (mut old, mut new) = (0, 0);
    let given = |place: &Path| store_of(place).commit(&all("old")).unwrap();
    let kills = UPGRADE.killed_at_each_call(given, |run| {
        let storage = store_of(run.place);
        let now = said(&storage);
        let backup = run.place.join(format!("vman.redb{SUFFIX}"));
        if now == "new" {
            assert!(backup.exists(), "{}: nothing new without a backup", run.at);
        }
        if backup.exists() {
            let restored = RedbStorage::new(&backup);
            restored.open().unwrap();
            assert_eq!(said(&restored), "old", "{}", run.at);
        }
        // Whatever was left lying about is in nobody's way.
        storage.backup(SUFFIX).unwrap();
        storage.commit(&all("newer")).unwrap();
        assert!(run.killed || now == "new", "{}", run.at);
        *(if now == "new" { &mut new } else { &mut old }) += 1;
    });
    if let Some(kills) = kills {
        assert!(kills > 40, "only {kills} calls were seen");
        assert!(old > 20 && new > 1, "{old} old, {new} new");
    }
}

#[test]
fn a_backup_without_room_is_refused_and_leaves_nothing_behind() {
    let Some(disk) = SmallDisk::mount("6m") else {
        return;
    };
    let storage = RedbStorage::new(disk.path().join("vman.redb"));
    storage.open().unwrap();
    // More than what redb gives back when it closes the file.
    let value = "old".repeat(10_000);
    storage.commit(&all(&value)).unwrap();
    // It ends where the disk does.
    let filled = fs::write(disk.path().join("filler"), vec![0; 6 << 20]);
    assert!(filled.is_err());
    assert_eq!(storage.backup(SUFFIX), Err(CommitError::NoSpace));
    assert_eq!(said(&storage), value, "reads go on");
    let names = fs::read_dir(disk.path()).unwrap().flatten();
    let names: Vec<_> = names.map(|entry| entry.file_name()).collect();
    let ours = names
        .iter()
        .filter(|name| name.to_string_lossy().contains("upgrade"));
    assert_eq!(ours.count(), 0, "{names:?}");
}

#[test]
fn a_store_is_copied_while_another_writes_it() {
    let dir = tempfile::tempdir().unwrap();
    let storage = opened_in(&dir);
    let copy = dir.path().join("copy");
    for round in 0..20 {
        std::thread::scope(|scope| {
            scope.spawn(|| storage.commit(&all(&round.to_string())).unwrap());
            copy_of_running(&dir.path().join("vman.redb"), &copy).unwrap();
        });
        let copied = RedbStorage::new(&copy);
        copied.open().unwrap();
        let rows = copied.load(Table::Vms).unwrap();
        assert!(rows.is_empty() || rows.iter().all(|(_, value)| *value == rows[0].1));
    }
}
