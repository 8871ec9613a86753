//! SIGKILL at each step of a backup and the commit after it, by strace(1): what an upgrade does to the file.

use super::*;
use std::process::{Command, Stdio};

const PLACE: &str = "VMAN_TEST_STORE_IN";
/// Whatever it does to files.
const STEPS: &str = "openat,pwrite64,write,ftruncate,fallocate,fsync,fdatasync,rename,unlink,copy_file_range,sendfile,close";
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
    let place = std::env::var_os(PLACE).expect("another test runs this one");
    let storage = RedbStorage::new(Path::new(&place).join("vman.redb"));
    storage.open().unwrap();
    storage.backup(SUFFIX).unwrap();
    storage.commit(&all("new")).unwrap();
}

fn killed_at(step: u32, place: &Path) -> Option<bool> {
    let names = [
        "vman.redb",
        "vman.redb.before-upgrade",
        "vman.redb.before-upgrade.new",
    ];
    let status = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null"])
        .arg(format!("--trace-path={}", place.display()))
        .args(names.map(|name| format!("--trace-path={}", place.join(name).display())))
        .arg(format!("--inject={STEPS}:signal=KILL:when={step}"))
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture"])
        .arg("host::store_redb::tests::upgrade::backs_a_store_up_and_writes_it_anew")
        .env(PLACE, place)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .ok()?;
    Some(!status.success())
}

/// What all rows say; panics if they do not say the same.
fn said(storage: &RedbStorage) -> String {
    let rows = storage.load(Table::Vms).unwrap();
    assert_eq!(rows.len(), ROWS);
    assert!(rows.iter().all(|(_, value)| *value == rows[0].1));
    String::from_utf8(rows[0].1.clone()).unwrap()
}

#[test]
fn an_upgrade_killed_at_any_step_leaves_a_store_that_is_wholly_old_or_wholly_new() {
    let mut seen = Vec::new();
    for step in 1..1000 {
        let dir = tempfile::tempdir().unwrap();
        let storage = opened_in(&dir);
        storage.commit(&all("old")).unwrap();
        drop(storage);
        let Some(killed) = killed_at(step, dir.path()) else {
            crate::host::testing::skip("strace is not installed");
            return;
        };
        let storage = opened_in(&dir);
        let now = said(&storage);
        let backup = dir.path().join(format!("vman.redb{SUFFIX}"));
        if now == "new" {
            assert!(backup.exists(), "step {step}: nothing new without a backup");
        }
        if backup.exists() {
            let restored = RedbStorage::new(&backup);
            restored.open().unwrap();
            assert_eq!(said(&restored), "old", "step {step}");
        }
        // Whatever was left lying about is in nobody's way.
        storage.backup(SUFFIX).unwrap();
        storage.commit(&all("newer")).unwrap();
        seen.push(now);
        if !killed {
            assert!(step > 20, "only {step} steps were seen");
            assert!(seen.contains(&"old".to_owned()) && seen.contains(&"new".to_owned()));
            eprintln!("killed at each of {} steps", step - 1);
            return;
        }
    }
    panic!("it never came to its end");
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
