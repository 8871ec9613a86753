//! How others ask for a drain, or its end.

use super::PowerMsg;
use crate::{
    ports::Clock,
    slot::Slot,
    store::{StoreError, StoreHandle},
};
use std::sync::Arc;
use tokio::sync::oneshot;
use vman_model::{
    Guard, IdempotencyRecord, OperationRecord, Origin, power::HostRecord, vm::CommandContext,
};

/// A drain that is asked for.
#[derive(Clone, Debug)]
pub struct DrainRequest {
    /// How long guests have until force is used, in milliseconds.
    pub timeout_ms: u64,
    /// Who asks, and the operation it becomes.
    pub context: CommandContext,
    /// The client's key, stored in the same commit.
    pub idempotency: Option<IdempotencyRecord>,
}

/// Why a drain or resume was not taken. Except where the store says so, nothing
/// has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PowerError {
    /// There is no drain to end.
    #[error("the host is not drained")]
    NotDrained,
    /// The idempotency key was used meanwhile.
    #[error("the idempotency key was used meanwhile")]
    KeyInUse,
    /// The drain is still going on.
    #[error("the host is being drained")]
    Draining,
    /// The actor is being restarted.
    #[error("the power actor is being restarted")]
    Unavailable,
    /// The store.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for PowerError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict(Guard::KeyUnused(_)) => PowerError::KeyInUse,
            error => PowerError::Store(error),
        }
    }
}

/// The host's boot and drain, as others see them.
#[derive(Clone)]
pub struct PowerHandle {
    slot: Arc<Slot<PowerMsg>>,
    store: StoreHandle,
    clock: Arc<dyn Clock>,
}

impl PowerHandle {
    /// A handle that stays good across restarts of the actor.
    pub fn new(slot: Arc<Slot<PowerMsg>>, store: StoreHandle, clock: Arc<dyn Clock>) -> Self {
        Self { slot, store, clock }
    }

    /// What is durable about the host in this boot; none before it was written.
    pub fn host(&self) -> Option<HostRecord> {
        let inventory = self.store.inventory();
        let host = inventory.host.as_ref().map(|row| row.value.clone());
        host.filter(|host| host.boot_id == self.clock.boot_id())
    }

    /// Stops all VMs. `Ok` means that it is durable, and what is to become of
    /// them; a host that is drained already answers the operation it was drained by.
    pub async fn drain(&self, request: DrainRequest) -> Result<OperationRecord, PowerError> {
        let (reply, answer) = oneshot::channel();
        self.cast(PowerMsg::Drain(request, reply))?;
        answer.await.unwrap_or(Err(PowerError::Unavailable))
    }

    /// The host stays up: starts again what was drained.
    pub async fn resume(&self, origin: Origin) -> Result<(), PowerError> {
        let (reply, answer) = oneshot::channel();
        self.cast(PowerMsg::Resume(origin, reply))?;
        answer.await.unwrap_or(Err(PowerError::Unavailable))
    }

    fn cast(&self, message: PowerMsg) -> Result<(), PowerError> {
        let actor = self.slot.get().ok_or(PowerError::Unavailable)?;
        actor.cast(message).map_err(|_| PowerError::Unavailable)
    }
}
