//! Who waits for the host to know an address: claims of VMs that start, and
//! cards that are plugged in.
//!
//! Must not: let a TAP be made for an address that the rules do not know yet.

use super::{
    NetworkMsg, NetworkState,
    leases::{self, Card},
};
use crate::{
    mailbox::ActorRef,
    ports::{NetworkError, NicRequest, NicWish},
};
use tokio::{sync::oneshot, time::Instant};
use vman_model::{VmId, network::NicLimits, vm::NicClaim};

pub(super) type ClaimReply = oneshot::Sender<Result<Vec<NicClaim>, NetworkError>>;
pub(super) type RulesReply = oneshot::Sender<Result<(), NetworkError>>;

/// One who waits.
pub(super) enum Waiting {
    Claim(NicRequest, ClaimReply),
    Rules(VmId, u8, RulesReply),
}

impl Waiting {
    pub(super) fn refuse(self, error: NetworkError) {
        match self {
            Waiting::Claim(_, reply) => drop(reply.send(Err(error))),
            Waiting::Rules(_, _, reply) => drop(reply.send(Err(error))),
        }
    }
}

impl NetworkState {
    pub(super) fn claim(
        &mut self,
        myself: &ActorRef<NetworkMsg>,
        mut request: NicRequest,
        reply: ClaimReply,
    ) {
        if !self.bridged {
            return self.grant(request, reply);
        }
        let inventory = self.arguments.store.inventory();
        let vm = &request.vm;
        for wish in &mut request.nics {
            let Some(lease) = inventory.lease_of(vm, wish.nic) else {
                let missing = wish.clone();
                return self.give_address(myself, request, missing, reply);
            };
            wish.address = Some(lease.value.address);
            wish.limits = lease.value.limits;
        }
        let mut nics = request.nics.iter();
        if nics.all(|wish| self.rules_know(vm, wish.nic)) {
            return self.grant(request, reply);
        }
        self.waiting.push(Waiting::Claim(request, reply));
        self.settle(myself, Instant::now());
    }

    fn grant(&self, request: NicRequest, reply: ClaimReply) {
        let claim = self.arguments.network.claim(request);
        tokio::spawn(async move { reply.send(claim.await) });
    }

    pub(super) fn await_rules(
        &mut self,
        myself: &ActorRef<NetworkMsg>,
        vm: VmId,
        nic: u8,
        reply: RulesReply,
    ) {
        let has_rules = || {
            let inventory = self.arguments.store.inventory();
            self.bridged && inventory.lease_of(&vm, nic).is_some()
        };
        if !has_rules() || self.rules_know(&vm, nic) {
            let _ = reply.send(Ok(()));
            return;
        }
        self.waiting.push(Waiting::Rules(vm, nic, reply));
        self.settle(myself, Instant::now());
    }

    /// Whether the host looks as it shall, and knows this card's address and limits.
    fn rules_know(&self, vm: &VmId, nic: u8) -> bool {
        let inventory = self.arguments.store.inventory();
        let Some(lease) = inventory.lease_of(vm, nic) else {
            return false;
        };
        let (address, limits) = (lease.value.address, lease.value.limits);
        let known = self.settled.as_ref().is_some_and(|plan| {
            let ports = &plan.ports;
            let at = ports.binary_search_by_key(&address, |port| port.address);
            at.is_ok_and(|at| ports[at].vm == *vm && ports[at].limits == limits)
        });
        known && !self.failing.contains_key(&lease.value.network)
    }

    /// One whose address came too late for this plan waits for the next; one whose
    /// network fails is told so.
    pub(super) fn resume_waiting(&mut self, myself: &ActorRef<NetworkMsg>) {
        for waiting in std::mem::take(&mut self.waiting) {
            if let Some(error) = self.failure_of(&waiting) {
                waiting.refuse(error);
                continue;
            }
            match waiting {
                Waiting::Claim(request, reply) => self.claim(myself, request, reply),
                Waiting::Rules(vm, nic, reply) => self.await_rules(myself, vm, nic, reply),
            }
        }
    }

    fn failure_of(&self, waiting: &Waiting) -> Option<NetworkError> {
        let (vm, nics): (_, Vec<u8>) = match waiting {
            Waiting::Claim(request, _) => {
                let nics = request.nics.iter().map(|wish| wish.nic);
                (&request.vm, nics.collect())
            }
            Waiting::Rules(vm, nic, _) => (vm, vec![*nic]),
        };
        let inventory = self.arguments.store.inventory();
        let mut leases = nics.iter().filter_map(|nic| inventory.lease_of(vm, *nic));
        leases.find_map(|lease| self.failing.get(&lease.value.network).cloned())
    }

    fn give_address(
        &self,
        myself: &ActorRef<NetworkMsg>,
        request: NicRequest,
        missing: NicWish,
        reply: ClaimReply,
    ) {
        let (arguments, actor) = (self.arguments.clone(), myself.clone());
        tokio::spawn(async move {
            let facts = arguments.network.facts();
            let clock = arguments.clock.as_ref();
            let card = Card {
                vm: &request.vm,
                nic: missing.nic,
                mac: missing.mac,
                network: &missing.network,
                limits: NicLimits::default(),
            };
            match leases::give(&arguments.store, clock, &facts, card).await {
                Ok(()) => drop(actor.cast(NetworkMsg::Claim(request, reply))),
                Err(why) => drop(reply.send(Err(NetworkError(why)))),
            }
        });
    }
}
