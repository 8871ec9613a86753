//! How others reach the network.

use super::{NetworkMsg, forwards, limits, limits::LimitError};
use crate::{
    ports::{Clock, Network, NetworkError, NetworkFacts, NetworkSurvey, NicRequest, Traffic},
    slot::Slot,
    store::StoreHandle,
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::oneshot, time::timeout};
use vman_model::{ForwardId, ForwardRecord, Origin, VmId, network::NicLimits, vm::NicClaim};

/// How long a change of limits is waited for until it is in force.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(2);

/// The network, as others see it.
#[derive(Clone)]
pub struct NetworkHandle {
    slot: Arc<Slot<NetworkMsg>>,
    network: Arc<dyn Network>,
    store: StoreHandle,
    clock: Arc<dyn Clock>,
}

fn gone() -> NetworkError {
    NetworkError("the network actor is being restarted; try again".to_owned())
}

impl NetworkHandle {
    /// A handle that stays good across restarts of the actor.
    pub fn new(
        slot: Arc<Slot<NetworkMsg>>,
        network: Arc<dyn Network>,
        store: StoreHandle,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            slot,
            network,
            store,
            clock,
        }
    }

    /// How VMs are connected. Never waits.
    pub fn facts(&self) -> NetworkFacts {
        self.network.facts()
    }

    /// What went through a VM's card. Asks the kernel and no actor.
    pub async fn traffic(&self, vm: VmId, nic: u8) -> Option<Traffic> {
        self.network.traffic(vm, nic).await
    }

    /// What is on the host, ours or not. Asks the kernel and no actor.
    pub async fn survey(&self) -> Result<NetworkSurvey, NetworkError> {
        self.network.survey().await
    }

    /// Whether a VM's guest answers at the address it holds.
    pub async fn answers(&self, vm: &VmId) -> bool {
        let lease = self.store.inventory().lease_of(vm, 0).cloned();
        let Some(lease) = lease else { return false };
        self.network
            .answers(lease.value.address, lease.value.mac)
            .await
    }

    /// The network cards for one life of a VM. Idempotent.
    pub async fn claim(&self, request: NicRequest) -> Result<Vec<NicClaim>, NetworkError> {
        let (reply, answer) = oneshot::channel();
        self.cast(NetworkMsg::Claim(request, reply))?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Answers as soon as the host's rules know the address of a VM's card; at
    /// once where there is none.
    pub async fn await_rules(&self, vm: VmId, nic: u8) -> Result<(), NetworkError> {
        let (reply, answer) = oneshot::channel();
        self.cast(NetworkMsg::AwaitRules(vm, nic, reply))?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Gives back whatever the VM holds while it runs. Idempotent.
    pub async fn release(&self, vm: VmId) -> Result<(), NetworkError> {
        let (reply, answer) = oneshot::channel();
        self.cast(NetworkMsg::Release(vm, reply))?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// What works, or what is degraded, in a sentence.
    pub async fn health(&self) -> Result<String, String> {
        let (reply, answer) = oneshot::channel();
        self.cast(NetworkMsg::Health(reply))
            .map_err(|error| error.to_string())?;
        answer.await.unwrap_or_else(|_| Err(gone().to_string()))
    }

    /// Lets a port of the host lead into a guest. `Ok` means that it is durable;
    /// the host follows within milliseconds.
    pub async fn forward(
        &self,
        new: forwards::NewForward,
    ) -> Result<ForwardRecord, forwards::ForwardError> {
        forwards::create(&self.store, self.clock.as_ref(), &self.facts(), new).await
    }

    /// Ends the forwarding of a port.
    pub async fn unforward(
        &self,
        id: &ForwardId,
        origin: vman_model::Origin,
    ) -> Result<(), forwards::ForwardError> {
        forwards::erase(&self.store, self.clock.as_ref(), id, origin).await
    }

    /// Limits how fast a VM's card may be, also while it runs. `Ok` means that
    /// the limits are durable, and in force unless the network does not work,
    /// which health says.
    pub async fn limit(
        &self,
        (vm, nic): (&VmId, u8),
        limits: NicLimits,
        origin: Origin,
    ) -> Result<(), LimitError> {
        let clock = self.clock.as_ref();
        limits::change(&self.store, clock, (vm, nic), limits, origin).await?;
        let known = self.await_rules(vm.clone(), nic);
        if !matches!(timeout(IN_FORCE_WITHIN, known).await, Ok(Ok(()))) {
            tracing::warn!(vm_id = %vm, nic, "the limits of a network card are not in force yet");
        }
        Ok(())
    }

    fn cast(&self, message: NetworkMsg) -> Result<(), NetworkError> {
        let actor = self.slot.get().ok_or_else(gone)?;
        actor.cast(message).map_err(|_| gone())
    }
}
