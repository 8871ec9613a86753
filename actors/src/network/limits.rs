//! How fast a VM's card may be: kept with the card's address, which the host's
//! rules are made from; the NetworkActor makes the host follow.

use crate::{
    ports::Clock,
    store::{StoreError, StoreHandle},
};
use vman_model::{
    Cause, Change, EventDraft, EventKind, Guard, Origin, Subject, VmId, Write,
    network::{Limit, NicLimits, nic::nic_id},
};

/// Why a card's limits were not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// The card has no address of ours, so there is nothing to hold it back by.
    #[error("the card {nic} of VM {vm} is on no bridge", nic = nic_id(*.1), vm = .0)]
    NotBridged(VmId, u8),
    /// The store.
    #[error(transparent)]
    Store(StoreError),
}

/// Notes a card's limits. `Ok` means that they are durable.
pub(super) async fn change(
    store: &StoreHandle,
    clock: &dyn Clock,
    (vm, nic): (&VmId, u8),
    limits: NicLimits,
    origin: Origin,
) -> Result<(), LimitError> {
    let inventory = store.inventory();
    let not_bridged = || LimitError::NotBridged(vm.clone(), nic);
    let held = inventory.lease_of(vm, nic).ok_or_else(not_bridged)?;
    if held.value.limits == limits {
        return Ok(());
    }
    let mut lease = held.value.clone();
    lease.limits = limits;
    let previous = inventory.vms.get(vm).and_then(|vm| vm.value.last_event);
    let event = EventDraft {
        at: clock.now(),
        subject: Subject::Vm(vm.clone()),
        kind: EventKind::NicChanged,
        from: None,
        to: None,
        reason: None,
        detail: format!("{} of VM {vm}: {}", nic_id(nic), told(&limits)),
        incarnation: None,
        operation: None,
        cause: Cause {
            origin,
            input: "limit".to_owned(),
            led_by: None,
        },
        previous,
    };
    let change = Change {
        guards: vec![Guard::AddressHeld(lease.id.clone(), vm.clone(), nic)],
        writes: vec![Write::PutLease(lease)],
        event: Some(event),
    };
    match store.commit(change).await {
        // It was taken out at this moment.
        Err(StoreError::Conflict(Guard::AddressHeld(..))) => Err(not_bridged()),
        other => other.map(drop).map_err(LimitError::Store),
    }
}

/// Limits in words.
fn told(limits: &NicLimits) -> String {
    let direction = |what: &str, limit: Option<Limit>| match limit {
        Some(limit) => format!("{what} at most {} KiB/s", limit.average),
        None => format!("{what} without a limit"),
    };
    let (receives, sends) = (limits.inbound, limits.outbound);
    let receives = direction("its guest receives", receives);
    format!("{receives}, {}", direction("sends", sends))
}
