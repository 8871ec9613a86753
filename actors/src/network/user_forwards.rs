//! Forwarded ports where VMs have QEMU's user-mode network: each VM's own QEMU
//! listens on the host's port. It is told which ports whenever they or the VM's
//! life change, and made to have exactly those.
//!
//! Must not: touch a VM that has never had a port. Look next: `forwards.rs` for
//! how ports come and go in the store.

use super::{NetworkArguments, NetworkMsg, heal::told};
use crate::{
    mailbox::ActorRef,
    ports::{HostError, PortForward},
    store::Inventory,
};
use std::collections::{BTreeMap, BTreeSet};
use vman_model::{
    EventKind, Incarnation, VmId,
    network::nic::nic_slot,
    vm::{NetworkKind, Phase, VmRecord},
};

type Ports = BTreeSet<PortForward>;

/// What each QEMU was told last.
#[derive(Default)]
pub(super) struct UserForwards {
    /// By VM, with the life it was told to and whether it did so.
    told: BTreeMap<VmId, Told>,
    /// The lives that an earlier actor may have told something.
    inherited: BTreeMap<VmId, Incarnation>,
}

struct Told {
    life: Incarnation,
    ports: Ports,
    /// Under way, done, or why not.
    outcome: Option<Result<(), HostError>>,
}

/// What became of telling one QEMU its ports.
pub struct Outcome {
    pub(super) vm: VmId,
    life: Incarnation,
    ports: Ports,
    result: Result<bool, HostError>,
}

impl UserForwards {
    /// At the actor's start.
    pub(super) fn new(inventory: &Inventory) -> Self {
        let vms = inventory.vms.values().map(|row| &row.value);
        // Also those that are yet to be found again.
        let inherited = vms.filter(|vm| vm.phase.may_have_process() && is_user(vm));
        Self {
            told: BTreeMap::new(),
            inherited: inherited
                .map(|vm| (vm.id.clone(), vm.incarnation))
                .collect(),
        }
    }

    /// Tells those whose ports are not what they shall be. `again`: also those
    /// who refused before.
    pub(super) fn settle(
        &mut self,
        arguments: &NetworkArguments,
        myself: &ActorRef<NetworkMsg>,
        again: bool,
    ) {
        let inventory = arguments.store.inventory();
        for (vm, ports) in self.wanted(&inventory) {
            let Some(record) = inventory.vms.get(&vm).map(|row| &row.value) else {
                self.forget(&vm);
                continue;
            };
            if !listens(record) {
                self.rest(vm);
                continue;
            }
            let life = record.incarnation;
            if !self.is_due(&vm, life, &ports, again) {
                continue;
            }
            let told = Told {
                life,
                ports: ports.clone(),
                outcome: None,
            };
            self.told.insert(vm.clone(), told);
            let hypervisor = &arguments.hypervisor;
            let telling = hypervisor.forward_ports(vm.clone(), life, nic_slot(0), ports.clone());
            let actor = myself.clone();
            tokio::spawn(async move {
                let outcome = Outcome {
                    vm,
                    life,
                    ports,
                    result: telling.await,
                };
                let _ = actor.cast(NetworkMsg::Forwarded(outcome));
            });
        }
    }

    /// The ports of every VM that has some, had some, or may have had some.
    fn wanted(&self, inventory: &Inventory) -> BTreeMap<VmId, Ports> {
        let known = self.told.keys().chain(self.inherited.keys());
        let mut wanted: BTreeMap<VmId, Ports> =
            known.map(|vm| (vm.clone(), Ports::new())).collect();
        for forward in inventory.forwards.values().map(|row| &row.value) {
            let ports = wanted.entry(forward.vm_id.clone()).or_default();
            ports.insert(PortForward {
                protocol: forward.protocol,
                host_port: forward.host_port,
                guest_port: forward.guest_port,
            });
        }
        wanted
    }

    fn is_due(&self, vm: &VmId, life: Incarnation, ports: &Ports, again: bool) -> bool {
        match self.told.get(vm).filter(|told| told.life == life) {
            Some(told) if told.outcome.is_none() => false,
            Some(told) if told.ports == *ports => again && matches!(told.outcome, Some(Err(_))),
            Some(_) => true,
            // A new life has no ports of its own.
            None => !ports.is_empty() || self.inherited.get(vm) == Some(&life),
        }
    }

    /// It listens for nobody now. Should this life go on after all, it is told again.
    fn rest(&mut self, vm: VmId) {
        if let Some(told) = self.told.remove(&vm) {
            self.inherited.insert(vm, told.life);
        }
    }

    fn forget(&mut self, vm: &VmId) {
        self.told.remove(vm);
        self.inherited.remove(vm);
    }

    /// One QEMU has its ports, or has not. A port that cannot be had is told
    /// once and tried again.
    pub(super) fn done(
        &mut self,
        arguments: &NetworkArguments,
        myself: &ActorRef<NetworkMsg>,
        outcome: Outcome,
    ) {
        let Outcome {
            vm,
            life,
            ports,
            result,
        } = outcome;
        let inherited = self.inherited.remove(&vm) == Some(life);
        let Some(known) = self.told.get_mut(&vm).filter(|known| known.life == life) else {
            return;
        };
        let result = match result {
            Ok(true) => Ok(()),
            // There is no such QEMU any more, or not yet: looked at again.
            Ok(false) => {
                self.told.remove(&vm);
                if inherited || !ports.is_empty() {
                    self.inherited.insert(vm, life);
                }
                return;
            }
            Err(error) => Err(error),
        };
        if let Err(error) = &result {
            let detail = format!("ports of the host do not lead into VM {vm}: {error}");
            let arguments = arguments.clone();
            tokio::spawn(async move { told(&arguments, EventKind::NetworkFailed, detail).await });
        }
        known.outcome = Some(result);
        // What changed meanwhile.
        self.settle(arguments, myself, false);
    }

    /// Why ports do not lead where they shall, for health.
    pub(super) fn problem(&self) -> Option<String> {
        self.told.iter().find_map(|(vm, told)| match &told.outcome {
            Some(Err(error)) => Some(format!(
                "ports of the host do not lead into VM {vm}: {error}"
            )),
            _ => None,
        })
    }
}

/// Whether the VM has a QEMU that can be told ports.
fn listens(vm: &VmRecord) -> bool {
    matches!(vm.phase, Phase::Running | Phase::Paused) && is_user(vm)
}

/// Whether its first card is in user mode in this life.
fn is_user(vm: &VmRecord) -> bool {
    let mut claimed = vm.claim.iter().flat_map(|claim| &claim.nics);
    claimed.any(|nic| nic.nic == 0 && nic.kind == NetworkKind::User)
}
