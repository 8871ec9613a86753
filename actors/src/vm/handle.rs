//! How others reach VMs: the directory of present refs, and commands with a
//! bound on how many wait.

use super::{create, msg::VmMsg, supervisor::VmSupervisorMsg};
use crate::{
    mailbox::ActorRef,
    ports::{Clock, ConsoleTail, HostError, Hypervisor, NetworkFacts},
    slot::Slot,
    store::{StoreError, StoreHandle},
};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};
use tokio::sync::{Mutex, MutexGuard, Semaphore, oneshot, watch};
use vman_model::{
    IdempotencyRecord, OperationId, OperationRecord, Revision, VmId,
    vm::{Command, CommandContext, Refusal},
};

/// Commands that may wait for one VM. A VM takes one in a few milliseconds;
/// more than this is a client gone wild.
const MAX_WAITING_COMMANDS: usize = 16;
/// How often a command is sent again to a VM whose actor was just replaced.
const MAX_REROUTES: usize = 3;

/// A command with everything that is committed together with it.
#[derive(Clone, Debug)]
pub struct CommandRequest {
    /// What is asked.
    pub command: Command,
    /// By whom, and the operation it becomes.
    pub context: CommandContext,
    /// Only if the VM still has this revision.
    pub if_revision: Option<Revision>,
    /// The client's key, stored in the same commit.
    pub idempotency: Option<IdempotencyRecord>,
}

/// Why a command was not taken. Except for `Unknown`, nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The VM refused it in its present state.
    #[error("refused: {}", .0.code())]
    Refused(Refusal),
    /// No such VM.
    #[error("no such VM")]
    NotFound,
    /// The VM has changed since the revision the client named.
    #[error("the VM has changed meanwhile")]
    Stale,
    /// The idempotency key was used meanwhile.
    #[error("the idempotency key was used meanwhile")]
    KeyInUse,
    /// The disk is gone, not whole, or belongs to another VM by now.
    #[error("disk {0} cannot be had")]
    DiskTaken(vman_model::DiskId),
    /// The address chosen for a network card was taken meanwhile.
    #[error("the address was taken meanwhile")]
    AddressTaken,
    /// The host has not enough left to promise; the sum.
    #[error("the host has no room for it: {0}")]
    NoRoom(String),
    /// VMs are not started because the host is to go down.
    #[error("the host is being drained")]
    HostDraining,
    /// Too many commands wait for this VM.
    #[error("too many commands are waiting for this VM")]
    TooMany,
    /// The VM's actor failed too often and rests for a while.
    #[error("the VM's actor failed too often and is left alone for a while; its guest runs on")]
    Quarantined,
    /// The VM's actor, or what it depends on, is being restarted.
    #[error("the VM's actor is being restarted")]
    Unavailable,
    /// The store refused it.
    #[error(transparent)]
    Store(StoreError),
    /// It is unknown whether it was taken.
    #[error("it is unknown whether the command was taken")]
    Unknown,
    /// For routing only: this actor's VM is erased.
    #[error("the VM is erased")]
    Retired,
}

/// The turn of one VM on the host. It outlives the VM's actor, so that what an
/// earlier actor began is waited for and what it had not begun is dropped.
#[derive(Clone, Default)]
pub(super) struct HostGate(Arc<Gate>);

#[derive(Default)]
struct Gate {
    turn: Mutex<()>,
    /// Counts the VM's actors.
    generation: watch::Sender<u64>,
}

impl HostGate {
    pub(super) fn next_generation(&self) -> u64 {
        let generation = &self.0.generation;
        generation.send_modify(|generation| *generation += 1);
        *generation.borrow()
    }

    pub(super) fn is_current(&self, generation: u64) -> bool {
        *self.0.generation.borrow() == generation
    }

    /// Waits until the VM has a later actor.
    pub(super) async fn superseded(&self, generation: u64) {
        let mut present = self.0.generation.subscribe();
        // An error means that the gate is gone, and with it everybody who waits.
        let _ = present.wait_for(|present| *present != generation).await;
    }

    pub(super) async fn lock(&self) -> MutexGuard<'_, ()> {
        self.0.turn.lock().await
    }
}

/// What the directory knows of one VM's actor.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) actor: Option<ActorRef<VmMsg>>,
    pub(super) quarantined: bool,
    pub(super) permits: Arc<Semaphore>,
    /// One question of the Observer at a time: a deaf machine answers late, and
    /// the permits above are for users.
    pub(super) observed: Arc<Semaphore>,
    pub(super) gate: HostGate,
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            actor: None,
            quarantined: false,
            permits: Arc::new(Semaphore::new(MAX_WAITING_COMMANDS)),
            observed: Arc::new(Semaphore::new(1)),
            gate: HostGate::default(),
        }
    }
}

/// The present refs of all VM actors, and the seat of their supervisor. A VM
/// at rest has none until somebody asks something of it.
#[derive(Default)]
pub struct VmDirectory {
    pub(super) supervisor: Slot<VmSupervisorMsg>,
    entries: RwLock<BTreeMap<VmId, Entry>>,
}

impl VmDirectory {
    pub(super) fn get(&self, id: &VmId) -> Option<Entry> {
        self.entries
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }

    pub(super) fn update(&self, id: &VmId, change: impl FnOnce(&mut Entry)) -> Entry {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.entry(id.clone()).or_default();
        change(entry);
        entry.clone()
    }

    pub(super) fn remove(&self, id: &VmId) {
        self.entries
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }

    pub(super) fn forget_actors(&self) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        for entry in entries.values_mut() {
            entry.actor = None;
            entry.quarantined = false;
        }
    }

    /// How many VM actors there are.
    pub fn len(&self) -> usize {
        self.entries
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// VMs, as others see them.
#[derive(Clone)]
pub struct VmsHandle {
    pub(super) directory: Arc<VmDirectory>,
    pub(super) store: StoreHandle,
    pub(super) clock: Arc<dyn Clock>,
    hypervisor: Arc<dyn Hypervisor>,
    pub(super) networks: NetworkFacts,
    pub(super) max_vms: usize,
}

impl VmsHandle {
    /// A handle that stays good across restarts of the actors.
    pub fn new(
        directory: Arc<VmDirectory>,
        store: StoreHandle,
        clock: Arc<dyn Clock>,
        hypervisor: Arc<dyn Hypervisor>,
        networks: NetworkFacts,
        max_vms: usize,
    ) -> Self {
        Self {
            directory,
            store,
            clock,
            hypervisor,
            networks,
            max_vms,
        }
    }

    /// A fresh id for an operation; ids sort by the time they were made.
    pub fn new_operation_id(&self) -> OperationId {
        create::operation_id(self.clock.as_ref())
    }

    /// Gives a command to a VM. `Ok` means that it is durable: the operation
    /// reaches an end whatever dies.
    pub async fn command(
        &self,
        id: &VmId,
        request: CommandRequest,
    ) -> Result<OperationRecord, CommandError> {
        let starts = matches!(request.command, Command::Start | Command::Restart { .. });
        if starts && self.is_draining() {
            return Err(CommandError::HostDraining);
        }
        for attempt in 0..MAX_REROUTES {
            // An actor that did not take it is replaced by its supervisor, who
            // has heard of its end before the question reaches it.
            let entry = self.route(id, attempt > 0).await?;
            let actor = entry.actor.ok_or(CommandError::Unavailable)?;
            let permit = entry
                .permits
                .try_acquire_owned()
                .map_err(|_| CommandError::TooMany)?;
            let (reply, answer) = oneshot::channel();
            let message = VmMsg::Command(Box::new(request.clone()), reply);
            if actor.cast(message).is_err() {
                continue;
            }
            // Waits to the end even if the client has gone: the permit bounds
            // what is in the mailbox.
            let answer = tokio::spawn(async move {
                let answer = answer.await;
                drop(permit);
                answer
            });
            match answer.await {
                Ok(Ok(Err(CommandError::Retired))) => {}
                Ok(Ok(answer)) => return answer,
                // The actor died with the command: it may have been committed.
                Ok(Err(_)) | Err(_) => return Err(CommandError::Unknown),
            }
        }
        Err(CommandError::Unavailable)
    }

    fn is_draining(&self) -> bool {
        let inventory = self.store.inventory();
        let host = inventory.host.as_ref();
        host.is_some_and(|host| host.value.drains(&self.clock.boot_id()))
    }

    /// Tells a VM that the limits of one of its disks were changed. One that does not
    /// run reads them at its next start.
    pub fn limit_disk(&self, id: &VmId, disk: vman_model::DiskId) {
        if let Some(actor) = self.directory.get(id).and_then(|entry| entry.actor) {
            let _ = actor.cast(VmMsg::LimitDisk(disk));
        }
    }

    async fn route(&self, id: &VmId, ask: bool) -> Result<Entry, CommandError> {
        if !self.store.inventory().vms.contains_key(id) {
            return Err(CommandError::NotFound);
        }
        if let Some(entry) = self.directory.get(id) {
            if entry.quarantined {
                return Err(CommandError::Quarantined);
            }
            if entry.actor.is_some() && !ask {
                return Ok(entry);
            }
        }
        let supervisor = self
            .directory
            .supervisor
            .get()
            .ok_or(CommandError::Unavailable)?;
        let (reply, answer) = oneshot::channel();
        supervisor
            .cast(VmSupervisorMsg::Ensure(id.clone(), reply))
            .map_err(|_| CommandError::Unavailable)?;
        answer.await.map_err(|_| CommandError::Unavailable)?;
        self.directory.get(id).ok_or(CommandError::Unavailable)
    }

    /// The end of a VM's serial console, at most `max` bytes.
    pub async fn console(&self, id: &VmId, max: usize) -> Result<ConsoleTail, HostError> {
        self.hypervisor.console(id, max).await
    }

    /// A VM's serial console as it is written, after its last `backlog` bytes.
    pub fn follow_console(&self, id: &VmId, backlog: usize) -> BoxStream<'static, Bytes> {
        self.hypervisor.follow_console(id, backlog)
    }

    /// The last `limit` events about a VM, newest first.
    pub async fn explain(
        &self,
        id: &VmId,
        limit: usize,
    ) -> Result<Vec<Arc<vman_model::Event>>, crate::ports::LoadError> {
        let last = self
            .store
            .inventory()
            .vms
            .get(id)
            .and_then(|vm| vm.value.last_event);
        self.store.events().chain(last, limit).await
    }
}
