//! The event log across memory and disk, and what is forgotten when.

use super::given::{Store, event, key, make, operation};
use crate::{
    ports::{Storage, Table},
    store::{
        Inventory,
        apply::{IDEMPOTENCY_MS, MAX_EVENTS, MAX_OPERATIONS, RECENT_EVENTS},
        inventory::event_key,
    },
};
use vman_model::{Change, OperationStatus, Revision, UnixMs, Write};

/// A change that only tells, and names the one before as the previous of its
/// subject.
fn tell(previous: Option<Revision>) -> Change {
    let mut what = event().what;
    what.previous = previous;
    Change {
        event: Some(what),
        ..Change::default()
    }
}

#[tokio::test]
async fn events_are_read_across_the_border_of_memory_and_disk() {
    let store = Store::start().await;
    let total = RECENT_EVENTS as u64 + 300;
    let mut answers = Vec::new();
    for n in 1..=total {
        let previous = (n > 1).then(|| Revision(n - 1));
        answers.push(store.send(tell(previous)));
    }
    for answer in answers {
        answer.await.unwrap().unwrap();
    }
    let log = store.handle.events();
    let revisions = |events: Vec<std::sync::Arc<vman_model::Event>>| {
        let revisions = events.iter().map(|event| event.revision.0);
        revisions.collect::<Vec<_>>()
    };
    let border = total - RECENT_EVENTS as u64;
    for since in [0, 1, border - 1, border, border + 1, total - 1] {
        let after = log.after(Revision(since), 10).await.unwrap();
        let expected: Vec<_> = (since + 1..=total).take(10).collect();
        assert_eq!(revisions(after), expected, "since {since}");
    }
    for since in [total, total + 5, u64::MAX] {
        let after = log.after(Revision(since), 10).await.unwrap();
        assert!(after.is_empty(), "since {since}");
    }
    let chain = log.chain(Some(Revision(total)), 2_000).await.unwrap();
    let expected: Vec<_> = (1..=total).rev().collect();
    assert_eq!(revisions(chain), expected);
    let chain = log.chain(Some(Revision(total)), 3).await.unwrap();
    assert_eq!(revisions(chain), [total, total - 1, total - 2]);
    // And the same after a new start.
    let log = store.successor().await.handle.events();
    let after = log.after(Revision(border - 2), 5).await.unwrap();
    assert_eq!(after.len(), 5);
}

#[tokio::test]
async fn a_chain_ends_where_the_log_was_cut() {
    let store = Store::start().await;
    store
        .handle
        .commit(tell(Some(Revision(1_000))))
        .await
        .unwrap();
    let log = store.handle.events();
    assert_eq!(log.chain(Some(Revision(1)), 10).await.unwrap().len(), 1);
    assert!(log.chain(None, 10).await.unwrap().is_empty());
}

#[test]
fn old_events_are_erased_from_disk_one_for_each_new_one() {
    let inventory = Inventory {
        revision: Revision(MAX_EVENTS + 6),
        ..Inventory::default()
    };
    let (next, rows) = inventory.apply(tell(None), UnixMs(0)).unwrap();
    assert_eq!(next.revision, Revision(MAX_EVENTS + 7));
    let erased: Vec<_> = rows.iter().filter(|row| row.value.is_none()).collect();
    assert_eq!(erased.len(), 1);
    assert_eq!(erased[0].table, Table::Events);
    assert_eq!(erased[0].key, event_key(Revision(7)));
}

#[test]
fn finished_operations_are_bounded_and_open_ones_are_never_forgotten() {
    let mut inventory = Inventory::default();
    let mut open = operation("op-000000-open");
    open.status = OperationStatus::Running;
    let put = |record| Change {
        writes: vec![Write::PutOperation(record)],
        ..Change::default()
    };
    (inventory, _) = inventory.apply(put(open.clone()), UnixMs(0)).unwrap();
    for n in 0..MAX_OPERATIONS + 100 {
        let record = operation(&format!("op-{n:06}"));
        (inventory, _) = inventory.apply(put(record), UnixMs(0)).unwrap();
    }
    assert!(inventory.operations.len() <= MAX_OPERATIONS + 1);
    assert!(inventory.operations.contains_key(&open.id));
    assert!(!inventory.operations.contains_key("op-000001"));
    let last = format!("op-{:06}", MAX_OPERATIONS + 99);
    assert!(inventory.operations.contains_key(last.as_str()));
}

#[tokio::test]
async fn an_idempotency_key_is_remembered_for_a_day_also_across_a_restart() {
    let store = Store::start().await;
    let began = UnixMs(1_800_000_000_000);
    store.clock.set(began);
    let remember = |name: &str| {
        let mut change = make(name);
        let row = key(name, began);
        change.writes.push(Write::PutIdempotency(row));
        change
    };
    store.handle.commit(remember("k-1")).await.unwrap();
    store.handle.commit(remember("k-2")).await.unwrap();
    let store = store.successor().await;
    assert_eq!(store.handle.inventory().idempotency.len(), 2);
    store.clock.set(UnixMs(began.0 + IDEMPOTENCY_MS - 1_000));
    store.handle.commit(make("a")).await.unwrap();
    assert_eq!(store.handle.inventory().idempotency.len(), 2);
    store.clock.set(UnixMs(began.0 + IDEMPOTENCY_MS + 1_000));
    store.handle.commit(make("b")).await.unwrap();
    assert!(store.handle.inventory().idempotency.is_empty());
    assert_eq!(store.storage.load(Table::Idempotency), Ok(Vec::new()));
}
