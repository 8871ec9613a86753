//! Giving addresses: the choice against what is held now, and the commit that
//! makes it true. Two that choose at once are told apart by the guard.

use crate::{
    ports::Clock,
    store::{Inventory, StoreError, StoreHandle},
};
use core::net::Ipv4Addr;
use vman_model::{
    Cause, Change, EventDraft, EventKind, Guard, LeaseRecord, Origin, Pool, Subject, UnixMs, VmId,
    Write,
    network::{NicLimits, allocate, lease_id},
};

/// How often an address that was taken meanwhile is chosen anew: as many VMs
/// would have to be made at once with ids that want the same addresses.
pub(crate) const MAX_CHOICES: usize = 64;

/// Why no address was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// All addresses are held.
    #[error("all {0} addresses of the network are held: delete a VM, or configure a larger subnet")]
    Exhausted(u32),
    /// The address asked for is not one that guests can have.
    #[error("{0} is not an address that guests of this network can have")]
    Outside(Ipv4Addr),
    /// The address asked for is held.
    #[error("{0} is held by VM {1}")]
    Taken(Ipv4Addr, VmId),
}

/// An address for a VM's card, as of this inventory.
pub(crate) fn choose(
    inventory: &Inventory,
    pool: &Pool,
    (vm, nic): (&VmId, u8),
    fixed: Option<Ipv4Addr>,
) -> Result<Ipv4Addr, LeaseError> {
    if let Some(address) = fixed {
        if !pool.holds(address) {
            return Err(LeaseError::Outside(address));
        }
        return match inventory.leases.get(&lease_id(address)) {
            Some(lease) => Err(LeaseError::Taken(address, lease.value.vm_id.clone())),
            None => Ok(address),
        };
    }
    let taken = inventory.leases.values().map(|row| row.value.address);
    allocate(pool, (vm, nic), &taken.collect()).ok_or_else(|| LeaseError::Exhausted(pool.size()))
}

/// The lease of an address, which may have been asked for by name.
pub(crate) fn lease(
    (vm, nic): (&VmId, u8),
    (address, fixed): (Ipv4Addr, bool),
    mac: [u8; 6],
    now: UnixMs,
) -> LeaseRecord {
    LeaseRecord {
        id: lease_id(address),
        vm_id: vm.clone(),
        nic,
        address,
        mac,
        fixed,
        limits: NicLimits::default(),
        created_at: now,
    }
}

/// Gives an address to a VM's card that was made before there was a bridge.
pub(super) async fn give(
    store: &StoreHandle,
    clock: &dyn Clock,
    pool: &Pool,
    (vm, nic): (&VmId, u8),
    mac: [u8; 6],
) -> Result<(), String> {
    for _ in 0..MAX_CHOICES {
        let inventory = store.inventory();
        if inventory.lease_of(vm, nic).is_some() {
            return Ok(());
        }
        let address =
            choose(&inventory, pool, (vm, nic), None).map_err(|error| error.to_string())?;
        let lease = lease((vm, nic), (address, false), mac, clock.now());
        let previous = inventory.vms.get(vm).and_then(|vm| vm.value.last_event);
        let cause = Cause {
            led_by: previous,
            ..Cause::new(Origin::Effect, "claim")
        };
        let told = format!("VM {vm} was given the address {address}");
        let subject = Subject::Vm(vm.clone());
        let event = EventDraft {
            previous,
            ..EventDraft::new(clock.now(), subject, EventKind::LeaseGiven, told, cause)
        };
        let change = Change {
            guards: vec![
                Guard::VmPresent(vm.clone()),
                Guard::AddressFree(lease.id.clone()),
            ],
            writes: vec![Write::PutLease(lease)],
            event: Some(event),
        };
        match store.commit(change).await {
            Err(StoreError::Conflict(Guard::AddressFree(_))) => {}
            other => return other.map(drop).map_err(|error| error.to_string()),
        }
    }
    Err("every address that was chosen was taken meanwhile: try again".to_owned())
}
