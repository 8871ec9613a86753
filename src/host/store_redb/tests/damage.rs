//! Files that are no store any more.

use super::*;
use proptest::prelude::*;

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
