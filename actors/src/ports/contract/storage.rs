//! What every [`Storage`] keeps.

use crate::ports::{Row, Storage, Table};
use std::sync::atomic::{AtomicBool, Ordering};

fn put(table: Table, key: &[u8], value: &[u8]) -> Row {
    Row {
        table,
        key: key.to_vec(),
        value: Some(value.to_vec()),
    }
}

fn erase(table: Table, key: &[u8]) -> Row {
    Row {
        table,
        key: key.to_vec(),
        value: None,
    }
}

fn opened<S: Storage>(make: &impl Fn() -> S) -> S {
    let storage = make();
    storage.open().expect("a new storage opens");
    storage
}

/// Runs the suite. `make` gives a new, empty, unopened storage each time.
pub fn storage_contract<S: Storage>(make: impl Fn() -> S) {
    an_unopened_storage_refuses(&make());
    a_new_storage_is_empty(&opened(&make));
    rows_come_back_in_key_order(&opened(&make));
    a_row_is_replaced_and_erased(&opened(&make));
    the_rows_of_one_batch_apply_in_order(&opened(&make));
    tables_are_apart(&opened(&make));
    a_range_begins_at_its_key_and_keeps_its_limit(&opened(&make));
    odd_rows_are_kept(&opened(&make));
    rows_survive_being_opened_again(&opened(&make));
    a_reader_sees_a_batch_whole_or_not_at_all(&opened(&make));
}

fn an_unopened_storage_refuses<S: Storage>(storage: &S) {
    let row = put(Table::Vms, b"a", b"1");
    assert!(storage.commit(&[row]).is_err(), "commit before open");
    assert!(storage.load(Table::Vms).is_err(), "load before open");
}

fn a_new_storage_is_empty<S: Storage>(storage: &S) {
    for table in Table::ALL {
        assert_eq!(storage.load(table), Ok(vec![]), "{table:?}");
        assert_eq!(storage.get(table, b"x"), Ok(None), "{table:?}");
    }
    assert_eq!(storage.commit(&[]), Ok(()), "an empty batch");
}

fn rows_come_back_in_key_order<S: Storage>(storage: &S) {
    let batch: Vec<Row> = [300_u64, 2, 256, 1, u64::MAX]
        .iter()
        .map(|n| put(Table::Events, &n.to_be_bytes(), n.to_string().as_bytes()))
        .collect();
    storage.commit(&batch).expect("commits");
    let values: Vec<Vec<u8>> = storage
        .load(Table::Events)
        .expect("loads")
        .into_iter()
        .map(|(_, value)| value)
        .collect();
    let expected = [1, 2, 256, 300, u64::MAX].map(|n| n.to_string().into_bytes());
    assert_eq!(values, expected);
}

fn a_row_is_replaced_and_erased<S: Storage>(storage: &S) {
    storage
        .commit(&[put(Table::Vms, b"a", b"1"), put(Table::Vms, b"b", b"1")])
        .expect("commits");
    storage
        .commit(&[put(Table::Vms, b"a", b"2"), erase(Table::Vms, b"b")])
        .expect("commits");
    assert_eq!(storage.get(Table::Vms, b"a"), Ok(Some(b"2".to_vec())));
    assert_eq!(storage.get(Table::Vms, b"b"), Ok(None));
    storage
        .commit(&[erase(Table::Vms, b"never there")])
        .expect("erasing what is not there is no error");
}

fn the_rows_of_one_batch_apply_in_order<S: Storage>(storage: &S) {
    storage
        .commit(&[
            put(Table::Vms, b"a", b"1"),
            put(Table::Vms, b"a", b"2"),
            put(Table::Vms, b"b", b"1"),
            erase(Table::Vms, b"b"),
            erase(Table::Vms, b"c"),
            put(Table::Vms, b"c", b"3"),
        ])
        .expect("commits");
    let expected = vec![
        (b"a".to_vec(), b"2".to_vec()),
        (b"c".to_vec(), b"3".to_vec()),
    ];
    assert_eq!(storage.load(Table::Vms), Ok(expected));
}

fn tables_are_apart<S: Storage>(storage: &S) {
    let batch: Vec<Row> = Table::ALL
        .iter()
        .map(|table| put(*table, b"same", table.as_str().as_bytes()))
        .collect();
    storage.commit(&batch).expect("commits");
    for table in Table::ALL {
        let expected = vec![(b"same".to_vec(), table.as_str().as_bytes().to_vec())];
        assert_eq!(storage.load(table), Ok(expected), "{table:?}");
    }
}

fn a_range_begins_at_its_key_and_keeps_its_limit<S: Storage>(storage: &S) {
    let batch: Vec<Row> = (1..=9_u8)
        .map(|n| put(Table::Events, &[n * 10], &[n]))
        .collect();
    storage.commit(&batch).expect("commits");
    let range = |from: &[u8], limit| -> Vec<u8> {
        let rows = storage.range(Table::Events, from, limit).expect("reads");
        rows.into_iter().map(|(_, value)| value[0]).collect()
    };
    assert_eq!(range(&[30], 2), [3, 4], "the key itself is in");
    assert_eq!(range(&[31], 2), [4, 5], "a key between two rows");
    assert_eq!(range(&[85], 100), [9], "fewer than the limit");
    assert_eq!(range(&[91], 100), [0; 0], "beyond the last row");
    assert_eq!(range(&[], 1), [1], "from the beginning");
    assert_eq!(range(&[], 0), [0; 0], "none asked for");
}

fn odd_rows_are_kept<S: Storage>(storage: &S) {
    let long = vec![0xa5; 300_000];
    storage
        .commit(&[
            put(Table::Meta, b"empty", b""),
            put(Table::Meta, &[0, 0xff, 0], b"\0binary\0"),
            put(Table::Meta, b"long", &long),
        ])
        .expect("commits");
    assert_eq!(storage.get(Table::Meta, b"empty"), Ok(Some(vec![])));
    let binary = storage.get(Table::Meta, &[0, 0xff, 0]);
    assert_eq!(binary, Ok(Some(b"\0binary\0".to_vec())));
    assert_eq!(storage.get(Table::Meta, b"long"), Ok(Some(long)));
}

fn rows_survive_being_opened_again<S: Storage>(storage: &S) {
    storage
        .commit(&[put(Table::Vms, b"a", b"1")])
        .expect("commits");
    for _ in 0..3 {
        storage.open().expect("opens again");
        assert_eq!(storage.get(Table::Vms, b"a"), Ok(Some(b"1".to_vec())));
    }
    storage
        .commit(&[put(Table::Vms, b"a", b"2")])
        .expect("commits");
    assert_eq!(storage.get(Table::Vms, b"a"), Ok(Some(b"2".to_vec())));
}

fn a_reader_sees_a_batch_whole_or_not_at_all<S: Storage>(storage: &S) {
    let pair = |n: u32| {
        let value = n.to_be_bytes();
        [put(Table::Vms, b"a", &value), put(Table::Vms, b"b", &value)]
    };
    storage.commit(&pair(0)).expect("commits");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1..50 {
                storage.commit(&pair(n)).expect("commits");
            }
            done.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) {
            let rows = storage
                .load(Table::Vms)
                .expect("reads while another commits");
            assert_eq!(rows.len(), 2);
            assert_eq!(rows[0].1, rows[1].1, "a torn batch was seen");
        }
    });
}
