//! SIGKILL at each step of the first creation.

use super::{killed::Work, *};

const CREATION: Work = Work {
    test: "kill::opens_a_store_where_it_is_told_to",
    files: &["", "vman.redb", "vman.redb.new", "vman.redb.created"],
};

/// Not a test: what the test below runs and kills.
#[test]
#[ignore = "run by another test"]
fn opens_a_store_where_it_is_told_to() {
    let storage = RedbStorage::new(killed::place().join("vman.redb"));
    storage.open().unwrap();
    storage.commit(&[row("a", "1")]).unwrap();
}

#[test]
fn a_creation_killed_at_any_step_is_finished_by_the_next_start() {
    let (mut lost, mut kept) = (0, 0);
    let kills = CREATION.killed_at_each_call(
        |_| {},
        |run| {
            let storage = RedbStorage::new(run.place.join("vman.redb"));
            storage.open().unwrap();
            let found = storage.load(Table::Vms).unwrap().len();
            storage.commit(&[row("b", "1")]).unwrap();
            let names: Vec<_> = fs::read_dir(run.place).unwrap().collect();
            assert_eq!(names.len(), 2, "{}: {names:?}", run.at);
            assert!(run.killed || found == 1, "{}", run.at);
            *(if found == 0 { &mut lost } else { &mut kept }) += 1;
        },
    );
    if let Some(kills) = kills {
        assert!(kills > 40, "only {kills} calls were seen");
        assert!(
            lost > 20 && kept > 1,
            "{lost} before the commit, {kept} after"
        );
    }
}
