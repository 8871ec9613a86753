//! SIGKILL at each step of a copy that is kept, by strace(1).

use super::*;
use crate::host::dirs::StorageLock;
use std::process::{Command, Stdio};

const PLACE: &str = "VMAN_TEST_STORE_IN";
/// Whatever it does to files. strace(1) counts each of them by itself.
const CALLS: [&str; 10] = [
    "mkdir",
    "openat",
    "pwrite64",
    "write",
    "ftruncate",
    "fallocate",
    "fsync",
    "fdatasync",
    "renameat2",
    "close",
];
const AT: UnixMs = UnixMs(1_795_238_640_000);
const ROWS: usize = 50;

fn all() -> Vec<Row> {
    let name = |number| format!("vm-{number}");
    (0..ROWS).map(|number| row(&name(number), "1")).collect()
}

/// Not a test: what the test below runs and kills.
#[test]
#[ignore = "run by another test"]
fn keeps_a_copy_of_a_store() {
    let place = std::env::var_os(PLACE).expect("another test runs this one");
    let storage = RedbStorage::new(Path::new(&place).join("vman.redb"));
    storage.open().unwrap();
    storage.keep_copy(AT, 2).unwrap();
}

fn killed_at(call: &str, nth: u32, place: &Path) -> Option<bool> {
    let names = [
        "backups",
        "backups/vman-20261121T052400000Z.part",
        "backups/vman-20261121T052400000Z.redb",
    ];
    let status = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null"])
        .args(names.map(|name| format!("--trace-path={}", place.join(name).display())))
        .arg(format!("--inject={call}:signal=KILL:when={nth}"))
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture"])
        .arg("host::store_redb::tests::keep_killed::keeps_a_copy_of_a_store")
        .env(PLACE, place)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .ok()?;
    Some(!status.success())
}

/// What a daemon that starts afterwards finds: a whole copy, or none.
fn whole_copies(place: &Path, at: &str) -> usize {
    let lock = StorageLock::acquire(place).unwrap();
    let left = fs::read_dir(lock.dirs().backups());
    let left: Vec<_> = left.into_iter().flatten().flatten().collect();
    for copy in &left {
        let restored = RedbStorage::new(copy.path());
        restored.open().unwrap();
        assert_eq!(restored.load(Table::Vms).unwrap().len(), ROWS, "{at}");
    }
    left.len()
}

#[test]
fn a_copy_killed_at_any_step_is_whole_or_gone_with_the_next_start() {
    let (mut gone, mut whole) = (0, 0);
    for call in CALLS {
        for nth in 1..1000 {
            let dir = tempfile::tempdir().unwrap();
            let storage = opened_in(&dir);
            storage.commit(&all()).unwrap();
            drop(storage);
            let Some(killed) = killed_at(call, nth, dir.path()) else {
                crate::host::testing::skip("strace is not installed");
                return;
            };
            let at = format!("{call} {nth}");
            let copies = whole_copies(dir.path(), &at);
            assert_eq!(opened_in(&dir).load(Table::Vms).unwrap().len(), ROWS);
            if !killed {
                assert_eq!(copies, 1, "{at}");
                break;
            }
            assert!(copies <= 1, "{at}");
            *(if copies == 0 { &mut gone } else { &mut whole }) += 1;
        }
    }
    eprintln!("killed at each of {} steps", gone + whole);
    assert!(gone > 15 && whole > 1, "{gone} gone, {whole} whole");
}
