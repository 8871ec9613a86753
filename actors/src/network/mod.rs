//! NetworkActor: owns what connects VMs to networks.
//!
//! Owns: the Network port and who holds what of it. For now every VM is given
//! QEMU's user-mode network; bridge, TAPs and leases build on this seat.
//! Must not: wait inside a handler for the kernel.

use crate::{
    ports::{Network, NetworkError},
    slot::Slot,
};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::sync::Arc;
use tokio::sync::oneshot;
use vman_model::{Incarnation, VmId, vm::NicClaim};

/// What the NetworkActor is told.
pub enum NetworkMsg {
    /// The network cards for one life of a VM.
    Claim(
        VmId,
        Incarnation,
        [u8; 6],
        oneshot::Sender<Result<Vec<NicClaim>, NetworkError>>,
    ),
    /// Give back whatever the VM holds.
    Release(VmId, oneshot::Sender<Result<(), NetworkError>>),
    /// `ok` or what is degraded.
    Health(oneshot::Sender<Result<String, String>>),
}

/// What the NetworkActor needs.
#[derive(Clone)]
pub struct NetworkArguments {
    /// The network.
    pub network: Arc<dyn Network>,
    /// Where the actor's present ref is published.
    pub slot: Arc<Slot<NetworkMsg>>,
}

/// The NetworkActor.
pub struct NetworkActor;

impl Actor for NetworkActor {
    type Msg = NetworkMsg;
    type State = Arc<dyn Network>;
    type Arguments = NetworkArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<NetworkMsg>,
        arguments: NetworkArguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        arguments.slot.set(myself);
        Ok(arguments.network)
    }

    async fn handle(
        &self,
        _: ActorRef<NetworkMsg>,
        message: NetworkMsg,
        network: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            NetworkMsg::Claim(vm, incarnation, mac, reply) => {
                let claim = network.claim(vm, incarnation, mac);
                tokio::spawn(async move { reply.send(claim.await) });
            }
            NetworkMsg::Release(vm, reply) => {
                let release = network.release(vm);
                tokio::spawn(async move { reply.send(release.await) });
            }
            NetworkMsg::Health(reply) => {
                let health = network.health();
                tokio::spawn(async move { reply.send(health.await) });
            }
        }
        Ok(())
    }
}

/// The network, as others see it.
#[derive(Clone)]
pub struct NetworkHandle(Arc<Slot<NetworkMsg>>);

fn gone() -> NetworkError {
    NetworkError("the network actor is being restarted; try again".to_owned())
}

impl NetworkHandle {
    /// A handle that stays good across restarts of the actor.
    pub fn new(slot: Arc<Slot<NetworkMsg>>) -> Self {
        Self(slot)
    }

    /// The network cards for one life of a VM. Idempotent.
    pub async fn claim(
        &self,
        vm: VmId,
        incarnation: Incarnation,
        mac: [u8; 6],
    ) -> Result<Vec<NicClaim>, NetworkError> {
        let (reply, answer) = oneshot::channel();
        self.cast(NetworkMsg::Claim(vm, incarnation, mac, reply))?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Gives back whatever the VM holds. Idempotent.
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

    fn cast(&self, message: NetworkMsg) -> Result<(), NetworkError> {
        let actor = self.0.get().ok_or_else(gone)?;
        actor.cast(message).map_err(|_| gone())
    }
}
