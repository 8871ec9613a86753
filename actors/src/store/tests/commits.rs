//! Group commit, refusals, failures, and writers that live too long.

use super::given::{Store, disk, forward, lease, make, template, vm};
use crate::{
    fakes::NextCommit,
    ports::{Storage, Table},
    store::StoreError,
};
use std::time::Duration;
use vman_model::{
    Change, DiskRecord, Guard, Revision, VmId, Write,
    vm::{Claim, VmRecord},
};

const SLOW: NextCommit = NextCommit::Slow(Duration::from_millis(150));

/// A store whose first commit is under way, so that what follows is one group.
async fn busy() -> (Store, impl Future<Output = ()>) {
    let store = Store::start().await;
    store.storage.then(SLOW);
    let commits = store.storage.commits();
    let first = store.send(make("first"));
    let storage = store.storage.clone();
    super::given::until("the first is under way", || storage.commits() > commits).await;
    (store, async move {
        first.await.unwrap().unwrap();
    })
}

#[tokio::test]
async fn what_was_answered_is_on_disk_and_in_the_inventory() {
    let store = Store::start().await;
    let mut last = Revision(0);
    for n in 0..50 {
        let name = format!("t-{n}");
        let committed = store.handle.commit(make(&name)).await.unwrap();
        assert!(committed.revision > last);
        last = committed.revision;
        let row = store.storage.get(Table::Templates, name.as_bytes());
        assert!(row.unwrap().is_some());
        let inventory = store.handle.inventory();
        assert!(inventory.templates.contains_key(name.as_str()));
        assert_eq!(inventory.revision, last);
    }
}

#[tokio::test]
async fn changes_that_wait_are_one_commit_and_each_has_its_revision() {
    let (store, first) = busy().await;
    let answers: Vec<_> = (0..200)
        .map(|n| store.send(make(&format!("t-{n}"))))
        .collect();
    first.await;
    let mut revisions = Vec::new();
    for answer in answers {
        revisions.push(answer.await.unwrap().unwrap().revision);
    }
    let expected: Vec<_> = (2..202).map(Revision).collect();
    assert_eq!(revisions, expected);
    assert!(store.storage.commits() <= 3, "{}", store.storage.commits());
}

#[tokio::test]
async fn within_a_group_guards_see_what_came_before_and_a_refusal_harms_nobody() {
    let (store, first) = busy().await;
    let (one, same, other) = (
        store.send(make("a")),
        store.send(make("a")),
        store.send(make("b")),
    );
    first.await;
    assert!(one.await.unwrap().is_ok());
    let name = template("a").name;
    let conflict = StoreError::Conflict(Guard::TemplateAbsent(name));
    assert_eq!(same.await.unwrap(), Err(conflict));
    assert!(other.await.unwrap().is_ok());
    assert_eq!(store.handle.inventory().templates.len(), 3);
    assert_eq!(store.handle.inventory().revision, Revision(3));
}

#[tokio::test]
async fn a_certain_failure_leaves_everything_as_it_was_and_tells_no_conflict_with_it() {
    for next in [
        NextCommit::NoSpace,
        NextCommit::ReadOnly,
        NextCommit::Refused,
    ] {
        let (store, first) = busy().await;
        store.storage.then(next.clone());
        let (one, same, stale) = (
            store.send(make("a")),
            store.send(make("a")),
            store.send(make("first")),
        );
        first.await;
        let error = one.await.unwrap().unwrap_err();
        assert!(error.is_certain());
        // It conflicts only with what was not written.
        assert_eq!(same.await.unwrap(), Err(error));
        let stale = stale.await.unwrap();
        assert!(matches!(stale, Err(StoreError::Conflict(_))), "{stale:?}");
        let inventory = store.handle.inventory();
        assert_eq!(inventory.revision, Revision(1));
        assert_eq!(inventory.templates.len(), 1);
        assert_eq!(inventory.recent_events.len(), 1);
        store.handle.commit(make("a")).await.unwrap();
        assert_eq!(store.handle.inventory().revision, Revision(2));
    }
}

#[tokio::test]
async fn after_an_unknown_outcome_the_store_dies_and_its_successor_reads_the_truth() {
    for (next, written) in [
        (NextCommit::UnknownButWritten, true),
        (NextCommit::UnknownNotWritten, false),
    ] {
        let store = Store::start().await;
        store.handle.commit(make("a")).await.unwrap();
        store.storage.then(next);
        let answer = store.handle.commit(make("b")).await;
        assert!(matches!(answer, Err(StoreError::Unknown(_))));
        assert!(!store.handle.inventory().templates.contains_key("b"));
        store.until_dead().await;
        let answer = store.handle.commit(make("c")).await;
        assert_eq!(answer, Err(StoreError::Unavailable));
        let store = store.successor().await;
        let inventory = store.handle.inventory();
        assert_eq!(inventory.templates.contains_key("b"), written);
        let next = store.handle.commit(make("d")).await.unwrap().revision;
        assert_eq!(next, Revision(if written { 3 } else { 2 }));
    }
}

#[tokio::test]
async fn a_writer_that_outlives_its_actor_writes_nothing() {
    let store = Store::start().await;
    store.handle.commit(make("first")).await.unwrap();
    // As the load of a successor does it, while the writer waits for its turn.
    *store.slot.turn() += 1;
    let late = store.handle.commit(make("late")).await;
    assert!(matches!(late, Err(StoreError::Unknown(_))), "{late:?}");
    store.until_dead().await;
    let on_disk = store.storage.load(Table::Templates).unwrap();
    assert_eq!(on_disk.len(), 1);
    assert_eq!(store.handle.inventory().templates.len(), 1);
}

#[tokio::test]
async fn what_a_killed_store_was_still_writing_is_either_known_or_not_there() {
    let (store, first) = busy().await;
    let late = store.send(make("late"));
    // Both are behind the actor before it dies.
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
    store.actor.kill();
    let successor = store.successor().await;
    let known = successor.handle.inventory();
    first.await;
    let written = late.await.unwrap().is_ok();
    successor.handle.commit(make("next")).await.unwrap();
    assert!(known.templates.contains_key("first"));
    assert_eq!(known.templates.contains_key("late"), written);
    let on_disk = store.storage.load(Table::Templates).unwrap();
    assert_eq!(on_disk.len(), if written { 3 } else { 2 });
}

#[tokio::test]
async fn what_belongs_together_is_written_together_or_not_at_all() {
    let store = Store::start().await;
    let change = |guards| Change {
        guards,
        writes: vec![
            Write::PutVm(Box::new(vm())),
            Write::PutDisk(super::given::disk()),
        ],
        event: None,
    };
    let absent = Guard::VmRevision(vm().id, Revision(9));
    let refused = store.handle.commit(change(vec![absent.clone()])).await;
    assert_eq!(refused, Err(StoreError::Conflict(absent)));
    assert!(store.handle.inventory().disks.is_empty());
    store.handle.commit(change(Vec::new())).await.unwrap();
    let inventory = store.successor().await.handle.inventory();
    assert_eq!((inventory.vms.len(), inventory.disks.len()), (1, 1));
    assert_eq!(inventory.vms[&vm().id].value, vm());
}

#[tokio::test]
async fn a_mac_address_is_held_by_a_vms_present_record_and_by_no_erased_one() {
    let store = Store::start().await;
    let put = |vm| Change {
        writes: vec![Write::PutVm(Box::new(vm))],
        ..Change::default()
    };
    let held = |store: &Store, mac| store.handle.inventory().has_mac(mac);
    let mut vm = vm();
    store.handle.commit(put(vm.clone())).await.unwrap();
    let old: Vec<_> = vm.macs().map(|(_, mac)| mac).collect();
    assert!(old.iter().all(|mac| held(&store, *mac)));
    let again = store.successor().await;
    assert!(old.iter().all(|mac| held(&again, *mac)), "read back");
    let new = [2, 0, 0, 9, 9, 9];
    vm.mac = new;
    again.handle.commit(put(vm.clone())).await.unwrap();
    assert!(held(&again, new) && !held(&again, old[0]));
    let erase = Change {
        writes: vec![Write::EraseVm(vm.id)],
        ..Change::default()
    };
    again.handle.commit(erase).await.unwrap();
    assert!(!held(&again, new));
    assert!(!old.iter().any(|mac| held(&again, *mac)));
}

#[tokio::test]
async fn a_user_id_is_held_by_a_vms_present_claim_and_by_no_erased_one() {
    let store = Store::start().await;
    let put = |vm| Change {
        writes: vec![Write::PutVm(Box::new(vm))],
        ..Change::default()
    };
    let claiming = |user: Option<u32>| {
        let mut claim = Claim::default();
        claim.confinement.uid = user;
        VmRecord {
            claim: Some(claim),
            ..vm()
        }
    };
    let held = |store: &Store, by: &VmId| -> Vec<u32> {
        let inventory = store.handle.inventory();
        inventory.user_ids_of_others(by).collect()
    };
    let other = VmId::parse("other").unwrap();
    for (user, told) in [(Some(7), vec![7]), (Some(8), vec![8]), (None, Vec::new())] {
        store.handle.commit(put(claiming(user))).await.unwrap();
        assert_eq!(held(&store, &other), told);
        assert!(held(&store, &vm().id).is_empty(), "its own");
    }
    // Two that hold one: that of the other stays when the first lets go.
    let mut beside = claiming(Some(7));
    (beside.id, beside.mac) = (other.clone(), [2, 0, 0, 9, 9, 9]);
    store.handle.commit(put(beside)).await.unwrap();
    store.handle.commit(put(claiming(Some(7)))).await.unwrap();
    let again = store.successor().await;
    assert_eq!(held(&again, &other), [7], "read back");
    let erase = Change {
        writes: vec![Write::EraseVm(other.clone())],
        ..Change::default()
    };
    again.handle.commit(erase).await.unwrap();
    assert!(held(&again, &vm().id).is_empty());
    assert_eq!(held(&again, &other), [7]);
}

#[tokio::test]
async fn it_is_told_for_how_long_a_commit_has_waited_for_the_disk() {
    let (store, first) = busy().await;
    let told = store.handle.commit_waits();
    assert!(told.is_some_and(|waits| waits < Duration::from_mins(1)));
    first.await;
    super::given::until("nothing is under way", || {
        store.handle.commit_waits().is_none()
    })
    .await;
    assert!(store.handle.commit_waits().is_none());
}

#[tokio::test]
async fn what_is_disconnected_or_freed_is_what_there_is_in_the_moment_of_the_commit() {
    let (store, first) = busy().await;
    let write = |writes| Change {
        writes,
        ..Change::default()
    };
    let (vm, disk) = (vm(), disk());
    let grown = DiskRecord {
        size_mib: disk.size_mib * 2,
        root: true,
        vm_id: Some(vm.id.clone()),
        ..disk.clone()
    };
    // Whoever erases the VM cannot know of these yet: they wait for the same commit.
    let late = store.send(write(vec![
        Write::PutVm(Box::new(vm.clone())),
        Write::PutDisk(grown),
        Write::PutLease(lease()),
        Write::PutForward(forward()),
    ]));
    let erased = store.send(write(vec![
        Write::EraseVm(vm.id.clone()),
        Write::FreeDisk(disk.id.clone()),
        Write::DisconnectVm(vm.id.clone()),
    ]));
    first.await;
    late.await.unwrap().unwrap();
    erased.await.unwrap().unwrap();
    for store in [&store, &store.successor().await] {
        let now = store.handle.inventory();
        assert!(now.leases.is_empty() && now.forwards.is_empty());
        assert_eq!(now.leases_of(&vm.id).count(), 0);
        let kept = &now.disks[&disk.id].value;
        assert_eq!(
            kept.size_mib,
            disk.size_mib * 2,
            "the rest of its row stays"
        );
        assert!(kept.is_free() && !kept.root);
    }
}
