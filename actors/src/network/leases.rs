//! Giving addresses: the choice against what is held now, and the commit that
//! makes it true. Two that choose at once are told apart by the guard.

use crate::{
    ports::{Clock, NetworkFacts},
    store::{Inventory, StoreError, StoreHandle},
};
use core::net::Ipv4Addr;
use vman_model::{
    Cause, Change, EventDraft, EventKind, Guard, LeaseRecord, NetworkName, Origin, Pool, Subject,
    UnixMs, VmId, Write,
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
    /// The network asked for is not there; these are.
    #[error("there is no network named {0}: there is {1}")]
    NoNetwork(NetworkName, String),
    /// An address was asked for where addresses are not VMAN's to give.
    #[error("VMs are not connected to a bridge, so addresses are not given by this host")]
    NotOurs,
    /// Limits were asked for where the host has none.
    #[error("VMs are not connected to a bridge, so this host does not limit their cards")]
    NoLimits,
}

/// A network card that gets an address.
#[derive(Clone, Copy)]
pub(crate) struct Card<'a> {
    pub(crate) vm: &'a VmId,
    pub(crate) nic: u8,
    pub(crate) mac: [u8; 6],
    pub(crate) network: &'a NetworkName,
    pub(crate) limits: NicLimits,
}

/// The lease of a card, as of this inventory; none where addresses are not ours to
/// give. `fixed` is the address that was asked for.
pub(crate) fn wanted(
    inventory: &Inventory,
    facts: &NetworkFacts,
    card: Card<'_>,
    fixed: Option<Ipv4Addr>,
    now: UnixMs,
) -> Result<Option<LeaseRecord>, LeaseError> {
    if !facts.has(card.network) {
        return Err(LeaseError::NoNetwork(card.network.clone(), facts.names()));
    }
    let Some(bridge) = facts.bridge(card.network) else {
        return match fixed {
            Some(_) => Err(LeaseError::NotOurs),
            None if !card.limits.is_empty() => Err(LeaseError::NoLimits),
            None => Ok(None),
        };
    };
    let address = choose(inventory, &bridge.pool, (card.vm, card.nic), fixed)?;
    Ok(Some(LeaseRecord {
        id: lease_id(address),
        vm_id: card.vm.clone(),
        nic: card.nic,
        address,
        mac: card.mac,
        fixed: fixed.is_some(),
        limits: card.limits,
        created_at: now,
        network: card.network.clone(),
    }))
}

/// An address for a VM's card, as of this inventory.
fn choose(
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

/// Gives an address to a VM's card that was made before there was a bridge.
pub(super) async fn give(
    store: &StoreHandle,
    clock: &dyn Clock,
    facts: &NetworkFacts,
    card: Card<'_>,
) -> Result<(), String> {
    let Card { vm, nic, .. } = card;
    for _ in 0..MAX_CHOICES {
        let inventory = store.inventory();
        if inventory.lease_of(vm, nic).is_some() {
            return Ok(());
        }
        let lease = wanted(&inventory, facts, card, None, clock.now());
        let lease = lease.map_err(|error| error.to_string())?;
        let lease = lease.ok_or_else(|| LeaseError::NotOurs.to_string())?;
        let address = lease.address;
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
