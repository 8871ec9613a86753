//! VmSupervisor: starts a VmActor for each VM that has something to do, and
//! restarts one that failed, alone, with a budget of its own.
//!
//! Owns: the entries of the [`VmDirectory`].
//! Must not: die with a VmActor, or hold the others up for one that fails: a
//! VM over its budget is quarantined (its guest runs on) and tried again later.

use super::{
    VmActor, VmArguments, VmDeps,
    handle::{Entry, VmDirectory},
};
use crate::{
    mailbox::{self, Actor, ActorRef},
    slot::Slot,
};
use ractor::{ActorId, ActorProcessingErr, SupervisionEvent};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::oneshot, sync::watch, time::Instant};
use vman_model::VmId;

/// What a VmActor is among the figures.
const KIND: &str = "vm";
/// A VmActor may fail this often within [`WINDOW`] before it is quarantined.
const MAX_FAILURES: usize = 5;
const WINDOW: Duration = Duration::from_mins(1);
/// The delay before the second restart in the window; it doubles.
const BACKOFF: Duration = Duration::from_millis(50);
/// How long a quarantined VM is left alone.
const QUARANTINE: Duration = Duration::from_mins(1);

/// What the VmSupervisor is told.
pub enum VmSupervisorMsg {
    /// Somebody asks something of a VM that has no actor.
    Ensure(VmId, oneshot::Sender<()>),
    /// A VM was erased: this actor of it has nothing more to do.
    Erased(VmId, ActorId),
    /// Start a failed VM's actor again.
    Respawn(VmId),
}

/// How many VMs still have to be found again after the daemon started.
#[derive(Clone)]
pub struct RecoveryProgress(watch::Receiver<BTreeSet<VmId>>);

/// The VMs of which it is not known yet what became of their QEMU. Kept beside
/// the actors, so that the death of one is not taken for its recovery.
#[derive(Clone)]
pub struct Recovering(Arc<watch::Sender<BTreeSet<VmId>>>);

impl Recovering {
    fn begin(&self, vms: BTreeSet<VmId>) {
        self.0.send_replace(vms);
    }

    /// It is known now, or nobody waits for it any more.
    pub(super) fn resolved(&self, vm: &VmId) {
        self.0.send_if_modified(|left| left.remove(vm));
    }
}

impl RecoveryProgress {
    /// How many are left.
    pub fn left(&self) -> usize {
        self.0.borrow().len()
    }

    /// Waits until none is left.
    pub async fn done(&mut self) {
        // An error means that the tree is gone: nothing is left to wait for.
        let _ = self.0.wait_for(BTreeSet::is_empty).await;
    }
}

/// What the VmSupervisor needs.
#[derive(Clone)]
pub struct VmSupervisorArguments {
    /// What every VmActor needs.
    pub deps: VmDeps,
    /// Where their refs are published.
    pub directory: Arc<VmDirectory>,
    /// The VMs under recovery.
    pub recovery: Recovering,
}

impl VmSupervisorArguments {
    /// A fresh set; the progress tells when recovery is over.
    pub fn new(deps: VmDeps, directory: Arc<VmDirectory>) -> (Self, RecoveryProgress) {
        let recovery = Arc::new(watch::Sender::new(BTreeSet::new()));
        let progress = RecoveryProgress(recovery.subscribe());
        let recovery = Recovering(recovery);
        (
            Self {
                deps,
                directory,
                recovery,
            },
            progress,
        )
    }
}

/// What the VmSupervisor holds.
pub struct VmSupervisorState {
    arguments: VmSupervisorArguments,
    actors: HashMap<ActorId, VmId>,
    failures: BTreeMap<VmId, Vec<Instant>>,
}

/// The VmSupervisor actor.
pub struct VmSupervisor;

impl Actor for VmSupervisor {
    type Msg = VmSupervisorMsg;
    type State = VmSupervisorState;
    type Arguments = VmSupervisorArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<VmSupervisorMsg>,
        arguments: VmSupervisorArguments,
    ) -> Result<VmSupervisorState, ActorProcessingErr> {
        // What an earlier supervisor started has died with it.
        arguments.directory.forget_actors();
        Slot::set(&arguments.directory.supervisor, myself);
        // Here and not in `post_start`, which runs when the tree is said to be up.
        let inventory = arguments.deps.store.inventory();
        let busy = inventory
            .vms
            .iter()
            .filter(|(_, vm)| !vm.value.phase.is_rest());
        arguments
            .recovery
            .begin(busy.map(|(id, _)| id.clone()).collect());
        Ok(VmSupervisorState {
            arguments,
            actors: HashMap::new(),
            failures: BTreeMap::new(),
        })
    }

    async fn post_start(
        &self,
        myself: ActorRef<VmSupervisorMsg>,
        state: &mut VmSupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        let busy = state.arguments.recovery.0.borrow().clone();
        for id in &busy {
            state.spawn(&myself, id).await;
        }
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<VmSupervisorMsg>,
        message: VmSupervisorMsg,
        state: &mut VmSupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            VmSupervisorMsg::Ensure(id, reply) => {
                state.ensure(&myself, &id).await;
                let _ = reply.send(());
            }
            VmSupervisorMsg::Erased(id, actor) => state.retire(&id, actor),
            VmSupervisorMsg::Respawn(id) => state.respawn(&myself, &id).await,
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<VmSupervisorMsg>,
        event: SupervisionEvent,
        state: &mut VmSupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(actor, error) => {
                if let Some(id) = state.actors.remove(&actor.get_id()) {
                    state.failed(&myself, id, &error.to_string());
                }
            }
            SupervisionEvent::ActorTerminated(actor, _, why) => {
                let id = state.actors.remove(&actor.get_id());
                // Ended on purpose, it was stopped or drained.
                if let (Some(id), Some("killed")) = (id, why.as_deref()) {
                    state.failed(&myself, id, "it was killed");
                }
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {}
        }
        Ok(())
    }
}

impl VmSupervisorState {
    async fn ensure(&mut self, myself: &ActorRef<VmSupervisorMsg>, id: &VmId) {
        let entry = self.arguments.directory.get(id).unwrap_or_default();
        let known = self.arguments.deps.store.inventory().vms.contains_key(id);
        if known && entry.actor.is_none() && !entry.quarantined {
            self.spawn(myself, id).await;
        }
    }

    async fn respawn(&mut self, myself: &ActorRef<VmSupervisorMsg>, id: &VmId) {
        let directory = &self.arguments.directory;
        if self.arguments.deps.store.inventory().vms.contains_key(id) {
            directory.update(id, |entry| entry.quarantined = false);
            return self.ensure(myself, id).await;
        }
        // Its actor failed when it had erased it: nothing is left to do.
        if directory.get(id).is_some_and(|entry| entry.actor.is_none()) {
            directory.remove(id);
            self.failures.remove(id);
            self.arguments.recovery.resolved(id);
        }
    }

    async fn spawn(&mut self, myself: &ActorRef<VmSupervisorMsg>, id: &VmId) {
        let entry: Entry = self.arguments.directory.update(id, |_| {});
        let arguments = VmArguments {
            deps: self.arguments.deps.clone(),
            id: id.clone(),
            supervisor: myself.clone(),
            gate: entry.gate,
            recovery: self.arguments.recovery.clone(),
        };
        let meter = self.arguments.deps.store.meters().actors.with([KIND]);
        match mailbox::spawn_linked(VmActor, arguments, myself.get_cell(), meter).await {
            Ok(actor) => {
                self.actors.insert(actor.get_id(), id.clone());
                self.arguments
                    .directory
                    .update(id, |entry| entry.actor = Some(actor));
            }
            Err(error) => {
                tracing::error!(vm_id = %id, %error, "cannot start the VM's actor");
                self.failed(myself, id.clone(), &error.to_string());
            }
        }
    }

    /// Restarts a failed actor: at once the first time, then with backoff, and
    /// not at all for a while when the budget is used up.
    fn failed(&mut self, myself: &ActorRef<VmSupervisorMsg>, id: VmId, error: &str) {
        let meters = self.arguments.deps.store.meters();
        meters.actor_restarts.with([KIND]).inc();
        let now = Instant::now();
        let failures = self.failures.entry(id.clone()).or_default();
        failures.retain(|at| now.duration_since(*at) < WINDOW);
        failures.push(now);
        let count = failures.len();
        let over_budget = count > MAX_FAILURES;
        self.arguments.directory.update(&id, |entry| {
            entry.actor = None;
            entry.quarantined = over_budget;
        });
        let delay = if over_budget {
            // Nobody shall wait for this one: that it is left alone is told.
            self.arguments.recovery.resolved(&id);
            tracing::error!(
                event = "vm.actor_quarantined",
                component = "vm",
                vm_id = %id,
                error,
                "the VM's actor failed too often and is left alone for a while; its guest runs on"
            );
            QUARANTINE
        } else {
            tracing::error!(event = "actor.died", component = "vm", vm_id = %id, error, failures = count, "the VM's actor failed, restarting it");
            let doublings = u32::try_from(count.saturating_sub(2)).unwrap_or(0);
            if count == 1 {
                Duration::ZERO
            } else {
                BACKOFF * 2_u32.pow(doublings.min(16))
            }
        };
        myself.send_after(delay, move || VmSupervisorMsg::Respawn(id));
    }

    fn retire(&mut self, id: &VmId, retiring: ActorId) {
        let entry = self.arguments.directory.get(id);
        let actor = entry.and_then(|entry| entry.actor);
        if let Some(actor) = actor.filter(|actor| actor.get_id() == retiring) {
            self.arguments.directory.remove(id);
            self.failures.remove(id);
            // What is in its mailbox is answered with "retired" and sent anew.
            let _ = actor.drain();
        }
    }
}
