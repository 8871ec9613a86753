//! NetworkActor: owns what connects VMs to networks.
//!
//! Owns: the Network port, and that the host looks as the leases and forwards
//! in the store say: it settles at start, when they change, when the host was
//! changed behind its back, and before a claim that needs a rule is granted.
//! Must not: wait inside a handler for the kernel, or start where addresses
//! are held that its subnet does not have.
//! Look next: `claims.rs` (who waits for the rules), `leases.rs` (giving addresses), `limits.rs`, `forwards.rs`, `heal.rs` (what
//! is done about damage), `user_forwards.rs` (ports in user mode), `handle.rs`. What is on the host of ours and of
//! others' is told by `NetworkHandle::survey` (`NetworkSurvey`), without this actor.

mod claims;
mod forwards;
mod handle;
mod heal;
pub(crate) mod leases;
mod limits;
mod user_forwards;

pub use forwards::{ForwardError, MAX_FORWARDS, NewForward};
pub use handle::NetworkHandle;
pub use leases::LeaseError;
pub use limits::LimitError;

use crate::{
    mailbox::{Actor, ActorRef},
    ports::{Clock, Hypervisor, Network, NetworkError, NetworkFacts, NicRequest, Settled},
    slot::Slot,
    store::{Inventory, StoreHandle},
};
use claims::{ClaimReply, RulesReply, Waiting};
use futures_util::StreamExt;
use heal::{healed, replace, running, told};
use ractor::ActorProcessingErr;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};
use user_forwards::{Outcome, UserForwards};
use vman_model::{
    Cause, EventDraft, EventKind, LeaseRecord, NetworkName, NetworkPlan, TapName, VmId,
    network::misplaced, vm::NetworkKind,
};

/// How often the host is looked at though nobody told of a change.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long after the host could not be made to look as it shall it is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// How long the host is let be between two looks: what we do ourselves is told
/// as a change as well.
const PAUSE: Duration = Duration::from_millis(20);

/// What the NetworkActor is told.
pub enum NetworkMsg {
    /// The network cards for one life of a VM.
    Claim(NicRequest, ClaimReply),
    /// Tell when the host's rules know the address of a VM's card.
    AwaitRules(VmId, u8, RulesReply),
    /// Give back whatever the VM holds.
    Release(VmId, oneshot::Sender<Result<(), NetworkError>>),
    /// `ok` or what is degraded.
    Health(oneshot::Sender<Result<String, String>>),
    /// The store or the host may have changed; since when that is known.
    Disturbed(Instant),
    /// It is time to look at the host.
    Look,
    /// The host looks as this plan says, or does not.
    Settled(Arc<NetworkPlan>, Result<Settled, NetworkError>),
    /// The replacement of a lost TAP has come to an end, good or bad.
    Replaced(TapName),
    /// A QEMU in user mode was told its ports.
    Forwarded(Outcome),
}

/// What the NetworkActor needs.
#[derive(Clone)]
pub struct NetworkArguments {
    /// The network.
    pub network: Arc<dyn Network>,
    /// Leases, forwards, who runs.
    pub store: StoreHandle,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// QEMU, to be given another TAP.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Where the actor's present ref is published.
    pub slot: Arc<Slot<NetworkMsg>>,
}

/// What the NetworkActor holds.
pub struct NetworkState {
    arguments: NetworkArguments,
    bridged: bool,
    /// A `Disturbed` is in the mailbox: more would say the same.
    disturbed: Arc<AtomicBool>,
    /// A settling is under way, for what was noticed at this time.
    settling: Option<Instant>,
    /// Something was noticed while it settled.
    again: Option<Instant>,
    /// What the host looks like.
    settled: Option<Arc<NetworkPlan>>,
    /// The networks that do not look as they shall, with the reason.
    failing: BTreeMap<NetworkName, NetworkError>,
    /// Those who wait for the host to know an address. At most one for each VM
    /// that starts and each card that is plugged in, and those are bounded by the
    /// VMs' commands.
    waiting: Vec<Waiting>,
    /// Lost TAPs that are being replaced.
    replacing: BTreeSet<TapName>,
    /// Forwarded ports, in user mode.
    user: Option<UserForwards>,
}

/// The NetworkActor.
pub struct NetworkActor;

impl Actor for NetworkActor {
    type Msg = NetworkMsg;
    type State = NetworkState;
    type Arguments = NetworkArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<NetworkMsg>,
        arguments: NetworkArguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let facts = arguments.network.facts();
        if facts.kind == NetworkKind::Bridge {
            refuse_misplaced(&arguments.store.inventory(), &facts)?;
        }
        let state = NetworkState {
            bridged: facts.kind == NetworkKind::Bridge,
            disturbed: Arc::default(),
            settling: None,
            again: None,
            settled: None,
            failing: BTreeMap::new(),
            waiting: Vec::new(),
            replacing: BTreeSet::new(),
            user: (facts.kind == NetworkKind::User)
                .then(|| UserForwards::new(&arguments.store.inventory())),
            arguments,
        };
        if state.bridged || state.user.is_some() {
            state.watch(&myself);
            myself.cast(NetworkMsg::Look)?;
        }
        state.arguments.slot.set(myself);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<NetworkMsg>,
        message: NetworkMsg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            NetworkMsg::Claim(request, reply) => state.claim(&myself, request, reply),
            NetworkMsg::AwaitRules(vm, nic, reply) => state.await_rules(&myself, vm, nic, reply),
            NetworkMsg::Release(vm, reply) => {
                let release = state.arguments.network.release(vm);
                tokio::spawn(async move { reply.send(release.await) });
            }
            NetworkMsg::Health(reply) => state.health(reply),
            NetworkMsg::Disturbed(noticed) => {
                state.disturbed.store(false, Ordering::SeqCst);
                state.settle(&myself, noticed);
                state.forward(&myself, false);
            }
            NetworkMsg::Look => {
                myself.send_after(LOOK_EVERY, || NetworkMsg::Look);
                state.settle(&myself, Instant::now());
                state.forward(&myself, true);
            }
            NetworkMsg::Settled(plan, result) => state.settled(&myself, plan, result),
            NetworkMsg::Forwarded(outcome) => {
                if let Some(user) = &mut state.user {
                    user.done(&state.arguments, &myself, outcome);
                }
            }
            NetworkMsg::Replaced(tap) => {
                // One that failed is seen again by the next look.
                state.replacing.remove(&tap);
            }
        }
        Ok(())
    }
}

/// Addresses that no configured network has can neither be kept nor taken away.
fn refuse_misplaced(inventory: &Inventory, facts: &NetworkFacts) -> Result<(), String> {
    let leases = || inventory.leases.values().map(|row| &row.value);
    let strays = leases().filter(|lease| facts.bridge(&lease.network).is_none());
    let strays: Vec<_> = strays.collect();
    if let Some(first) = strays.first() {
        return Err(format!(
            "the network {} is not configured, and {} VMs hold addresses of it or another such: {}; \
             configure it again, or delete these VMs under it first",
            first.network,
            strays.len(),
            named(&strays),
        ));
    }
    for bridge in &facts.bridges {
        let pool = &bridge.pool;
        let held = leases().filter(|lease| lease.network == bridge.network);
        let wrong = misplaced(pool, held);
        if !wrong.is_empty() {
            return Err(format!(
                "the subnet {}/{} with the gateway {} does not have the addresses that {} VMs hold: {}; \
                 configure the former subnet again, or delete these VMs under it first",
                pool.network(),
                pool.prefix(),
                pool.gateway(),
                wrong.len(),
                named(&wrong),
            ));
        }
    }
    Ok(())
}

/// The first few of them.
fn named(leases: &[&LeaseRecord]) -> String {
    const MOST: usize = 10;
    let first = leases.iter().take(MOST);
    let mut named: Vec<_> = first
        .map(|lease| format!("{} ({})", lease.vm_id, lease.address))
        .collect();
    if leases.len() > MOST {
        named.push("...".to_owned());
    }
    named.join(", ")
}

impl NetworkState {
    /// Two tasks that tell of changes, of the store and of the host. They end
    /// with the actor.
    fn watch(&self, myself: &ActorRef<NetworkMsg>) {
        let (flag, actor, store) = (
            self.disturbed.clone(),
            myself.clone(),
            self.arguments.store.clone(),
        );
        let bridged = self.bridged;
        tokio::spawn(async move {
            let mut revisions = store.watch();
            let mut seen = store.inventory();
            while revisions.changed().await.is_ok() {
                let now = store.inventory();
                let addresses = now.leases.ptr_eq(&seen.leases);
                // On a bridge the rules follow from leases and forwards alone.
                let lives = bridged || now.vms.ptr_eq(&seen.vms);
                let same = addresses && lives && now.forwards.ptr_eq(&seen.forwards);
                seen = now;
                if !same && !disturb(&flag, &actor) {
                    return;
                }
            }
        });
        let (flag, actor) = (self.disturbed.clone(), myself.clone());
        let mut told = self.arguments.network.disturbances();
        tokio::spawn(async move {
            while told.next().await.is_some() {
                if !disturb(&flag, &actor) {
                    return;
                }
                // Changes come in bursts, and one look sees them all.
                tokio::time::sleep(PAUSE).await;
            }
        });
    }

    /// In user mode QEMUs listen for their guests.
    fn forward(&mut self, myself: &ActorRef<NetworkMsg>, again: bool) {
        if let Some(user) = &mut self.user {
            user.settle(&self.arguments, myself, again);
        }
    }

    fn health(&self, reply: oneshot::Sender<Result<String, String>>) {
        if !self.failing.is_empty() {
            let problems: BTreeSet<_> = self.failing.values().map(ToString::to_string).collect();
            let problems: Vec<_> = problems.into_iter().collect();
            let _ = reply.send(Err(problems.join("; ")));
            return;
        }
        let health = self.arguments.network.health();
        let forwards = self.user.as_ref().and_then(UserForwards::problem);
        tokio::spawn(async move {
            let health = health.await;
            reply.send(match (health, forwards) {
                (health, None) => health,
                (Ok(_), Some(problem)) => Err(problem),
                (Err(why), Some(problem)) => Err(format!("{why}; {problem}")),
            })
        });
    }

    /// Makes the host look as the store says, unless that is under way: then
    /// once more when it is done.
    fn settle(&mut self, myself: &ActorRef<NetworkMsg>, noticed: Instant) {
        if !self.bridged {
            return;
        }
        if self.settling.is_some() {
            self.again.get_or_insert(noticed);
            return;
        }
        self.settling = Some(noticed);
        let inventory = self.arguments.store.inventory();
        let plan = Arc::new(NetworkPlan::of(
            inventory.leases.values().map(|row| &row.value),
            inventory.forwards.values().map(|row| &row.value),
        ));
        let running = running(&inventory).into_keys().collect();
        let settling = self.arguments.network.settle(plan.clone(), running);
        let actor = myself.clone();
        tokio::spawn(async move {
            // A settling that panics must not be the last one.
            let result = tokio::spawn(settling).await.unwrap_or_else(|error| {
                Err(NetworkError(format!(
                    "the network's set-up failed: {error}"
                )))
            });
            let _ = actor.cast(NetworkMsg::Settled(plan, result));
        });
    }

    fn settled(
        &mut self,
        myself: &ActorRef<NetworkMsg>,
        plan: Arc<NetworkPlan>,
        result: Result<Settled, NetworkError>,
    ) {
        let noticed = self.settling.take().unwrap_or_else(Instant::now);
        let settled = result.unwrap_or_else(|error| self.nothing_settled(&error));
        self.note_failures(settled.failed, noticed);
        self.settled = Some(plan);
        for repair in &settled.repairs {
            self.tell(EventKind::NetworkHealed, &healed(repair, noticed));
        }
        self.replace(myself, settled.lost, noticed);
        self.resume_waiting(myself);
        if !self.failing.is_empty() {
            myself.send_after(TRY_AGAIN, move || NetworkMsg::Disturbed(noticed));
        }
        if let Some(noticed) = self.again.take() {
            myself.send_after(PAUSE, move || NetworkMsg::Disturbed(noticed));
        }
    }

    /// Gives running VMs other TAPs for those that were deleted under them.
    fn replace(&mut self, myself: &ActorRef<NetworkMsg>, lost: Vec<TapName>, noticed: Instant) {
        if lost.is_empty() {
            return;
        }
        let running = running(&self.arguments.store.inventory());
        for tap in lost {
            let Some(owner) = running.get(&tap).cloned() else {
                continue;
            };
            if self.replacing.insert(tap.clone()) {
                let (arguments, actor) = (self.arguments.clone(), myself.clone());
                tokio::spawn(async move {
                    let replacing = tokio::spawn(replace(arguments, tap.clone(), owner, noticed));
                    let _ = replacing.await;
                    let _ = actor.cast(NetworkMsg::Replaced(tap));
                });
            }
        }
    }

    fn tell(&self, kind: EventKind, detail: &str) {
        let (arguments, detail) = (self.arguments.clone(), detail.to_owned());
        tokio::spawn(async move { told(&arguments, kind, detail).await });
    }
}

fn disturb(flag: &AtomicBool, actor: &ActorRef<NetworkMsg>) -> bool {
    let message = || NetworkMsg::Disturbed(Instant::now());
    flag.swap(true, Ordering::SeqCst) || actor.cast(message()).is_ok()
}

fn event(clock: &dyn Clock, kind: EventKind, detail: String, cause: Cause) -> EventDraft {
    EventDraft::new(clock.now(), forwards::subject(), kind, detail, cause)
}
