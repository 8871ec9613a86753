//! A VM's network cards: choosing what a new one needs, its rows, and the work
//! on a living QEMU.
//!
//! A card that is plugged in gets its TAP only when the host's rules know its
//! address. Work runs beside the lane, as that on disks does (`disks.rs`).
//! Must not: decide what becomes of a card (the model does).

use super::{
    CommandRequest, VmDeps, VmMsg, VmState,
    disks::outcome,
    handle::{CommandError, VmsHandle},
};
use crate::{
    mailbox::ActorRef,
    network::{
        LeaseError,
        leases::{self, Card, MAX_CHOICES},
    },
    ports::{DiskError, Machine, NicAction, NicPlan, NicWish},
};
use core::net::Ipv4Addr;
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};
use vman_model::{
    Guard, IdempotencyRecord, Incarnation, NetworkName, OperationId, OperationRecord, VmId, Write,
    network::{LinkState, MAX_NICS, NewNic, NicLimits, nic::nic_slot},
    vm::{Command, CommandContext, Fact, NetworkKind, NicChange, NicWork, Refusal, VmRecord},
};

/// A card that a VM is to have.
#[derive(Clone, Debug)]
pub struct WantedNic {
    /// How VMs are connected.
    pub kind: NetworkKind,
    /// The network it is connected to.
    pub network: NetworkName,
    /// The address it shall have; one is chosen if it is not said.
    pub address: Option<Ipv4Addr>,
    /// How fast it may be.
    pub limits: NicLimits,
    /// Its cable.
    pub link: LinkState,
    /// Who asks, and the operation it becomes.
    pub context: CommandContext,
    /// The client's key, stored in the same commit.
    pub idempotency: Option<IdempotencyRecord>,
}

/// Why a VM gets no further card. Except for an unknown outcome of the command,
/// nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NicError {
    /// No address could be given.
    #[error(transparent)]
    Address(#[from] LeaseError),
    /// The VM refused the command.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// The cards of a VM as a claim asks for them.
pub(super) fn wishes(record: &VmRecord) -> Vec<NicWish> {
    let wish = |(nic, mac)| NicWish {
        nic,
        mac,
        network: record.network_of(nic).cloned().unwrap_or_default(),
        address: None,
        limits: NicLimits::default(),
    };
    record.macs().map(wish).collect()
}

/// The operations whose work was begun and is not known to have been lost: it is
/// not begun a second time, for what was refused must not happen after all.
#[derive(Clone, Default)]
pub(super) struct UnderWay(Arc<Mutex<BTreeSet<OperationId>>>);

impl UnderWay {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<OperationId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is to be begun. Those that have ended are forgotten.
    fn begin(&self, operation: &OperationId, record: &VmRecord) -> bool {
        let mut begun = self.lock();
        begun.retain(|id| record.operations.iter().any(|op| op.id == *id));
        begun.insert(operation.clone())
    }

    fn lost(&self, operation: &OperationId) {
        self.lock().remove(operation);
    }
}

impl VmsHandle {
    /// Gives a VM another network card. `Ok` means that the card and its address
    /// are durable; the operation tells when a running guest has it.
    pub async fn attach_nic(
        &self,
        id: &VmId,
        wanted: WantedNic,
    ) -> Result<OperationRecord, NicError> {
        for _ in 0..MAX_CHOICES {
            let new = self.choose_nic(id, &wanted)?;
            let request = CommandRequest {
                command: Command::AttachNic(Box::new(new)),
                context: wanted.context.clone(),
                if_revision: None,
                idempotency: wanted.idempotency.clone(),
            };
            match self.command(id, request).await {
                // Somebody else was quicker: chosen anew.
                Err(CommandError::AddressTaken) => {}
                answer => return Ok(answer?),
            }
        }
        Err(CommandError::AddressTaken.into())
    }

    fn choose_nic(&self, id: &VmId, wanted: &WantedNic) -> Result<NewNic, NicError> {
        let inventory = self.store.inventory();
        let row = inventory.vms.get(id).ok_or(CommandError::NotFound)?;
        let taken: BTreeSet<u8> = row.value.macs().map(|(nic, _)| nic).collect();
        let number = (1..MAX_NICS).find(|nic| !taken.contains(nic));
        let number = number.ok_or(CommandError::Refused(Refusal::NoFreeNicSlot))?;
        let mac = self.free_mac(id, number);
        let card = Card {
            vm: id,
            nic: number,
            mac,
            network: &wanted.network,
            limits: wanted.limits,
        };
        let now = self.clock.now();
        let lease = leases::wanted(&inventory, &self.networks, card, wanted.address, now)?;
        Ok(NewNic {
            number,
            mac,
            link: wanted.link,
            network: wanted.network.clone(),
            kind: wanted.kind,
            lease,
        })
    }
}

impl VmState {
    /// The rows of a card that comes or goes.
    pub(super) fn nic_rows(
        &self,
        change: &NicChange,
        guards: &mut Vec<Guard>,
        writes: &mut Vec<Write>,
    ) {
        match change {
            NicChange::Take(new) => {
                guards.push(Guard::MacFree(new.mac));
                if let Some(lease) = &new.lease {
                    guards.push(Guard::AddressFree(lease.id.clone()));
                    writes.push(Write::PutLease(lease.clone()));
                }
            }
            NicChange::Return(nic) => {
                let inventory = self.deps.store.inventory();
                let held = inventory.lease_of(&self.id, *nic);
                writes.extend(held.map(|lease| Write::EraseLease(lease.value.id.clone())));
            }
        }
    }

    pub(super) fn work_on_nic(
        &self,
        myself: &ActorRef<VmMsg>,
        incarnation: Incarnation,
        operation: OperationId,
        (nic, work): (u8, NicWork),
    ) {
        let Some((_, record)) = self.record.as_ref() else {
            return;
        };
        if !self.nics.begin(&operation, record) {
            return;
        }
        let action = match work {
            NicWork::Plug => plugging(record, nic),
            NicWork::Unplug => Some(NicAction::Unplug(nic_slot(nic))),
            NicWork::Link(link) => Some(NicAction::Link(nic_slot(nic), link)),
        };
        let machine = self.machine_now().map(|machine| Arc::downgrade(&machine));
        let (deps, vm) = (self.deps.clone(), self.id.clone());
        let (actor, under_way) = (myself.clone(), self.nics.clone());
        tokio::spawn(async move {
            let done = match (machine, action) {
                (Ok(machine), Some(action)) => run(&machine, &deps, (&vm, nic), action).await,
                (Err(error), _) => Err(error),
                (Ok(_), None) => Err(DiskError::Refused("the card is not claimed".to_owned())),
            };
            match outcome(done) {
                Ok(outcome) => {
                    let fact = Fact::NicDone {
                        operation,
                        nic,
                        outcome,
                    };
                    let _ = actor.cast(VmMsg::Fact(incarnation, fact));
                }
                Err(why) => {
                    under_way.lost(&operation);
                    tracing::warn!(vm_id = %vm, nic, why, "what became of the work on a network card is unknown");
                }
            }
        });
    }
}

fn plugging(record: &VmRecord, nic: u8) -> Option<NicAction> {
    let claim = record.claim.as_ref()?;
    let held = claim.nics.iter().find(|held| held.nic == nic)?;
    let link = record.link_of(nic)?;
    let plan = NicPlan::of(&record.id, nic, held.kind, held.mac, link);
    Some(NicAction::Plug(plan, record.spec.size.cpu_count))
}

/// Does the work. What is awaited does not hold the machine: one that its actor
/// has dropped gives its connection up at once.
async fn run(
    machine: &Weak<dyn Machine>,
    deps: &VmDeps,
    (vm, nic): (&VmId, u8),
    action: NicAction,
) -> Result<(), DiskError> {
    if let NicAction::Plug(..) = action {
        let known = deps.network.await_rules(vm.clone(), nic).await;
        known.map_err(|error| DiskError::Refused(error.to_string()))?;
    }
    let work = machine.upgrade().map(|machine| machine.nic(action));
    match work {
        Some(work) => work.await,
        None => Err(DiskError::Unknown("its actor has given it up".to_owned())),
    }
}
