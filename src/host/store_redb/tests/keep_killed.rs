//! SIGKILL at each step of a copy that is kept, by strace(1).

use super::{killed::Work, *};
use crate::host::dirs::StorageLock;

const COPYING: Work = Work {
    test: "keep_killed::keeps_a_copy_of_a_store",
    files: &[
        "backups",
        "backups/vman-20261121T052400000Z.part",
        "backups/vman-20261121T052400000Z.redb",
    ],
};
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
    let storage = RedbStorage::new(killed::place().join("vman.redb"));
    storage.open().unwrap();
    storage.keep_copy(AT, 2).unwrap();
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

fn store_of(place: &Path) -> RedbStorage {
    let storage = RedbStorage::new(place.join("vman.redb"));
    storage.open().unwrap();
    storage
}

#[test]
fn a_copy_killed_at_any_step_is_whole_or_gone_with_the_next_start() {
    let (mut gone, mut whole) = (0, 0);
    let given = |place: &Path| store_of(place).commit(&all()).unwrap();
    let kills = COPYING.killed_at_each_call(given, |run| {
        let copies = whole_copies(run.place, run.at);
        assert_eq!(store_of(run.place).load(Table::Vms).unwrap().len(), ROWS);
        assert!(copies <= 1 && (run.killed || copies == 1), "{}", run.at);
        *(if copies == 0 { &mut gone } else { &mut whole }) += 1;
    });
    if kills.is_some() {
        assert!(gone > 15 && whole > 1, "{gone} gone, {whole} whole");
    }
}
