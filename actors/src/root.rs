//! Root: starts the tree in order, and restarts what dies together with
//! everything that depends on it.
//!
//! | seat | when it dies |
//! |---|---|
//! | StateStore | it and all after it are restarted: they reload the truth |
//! | DiskRegistry | likewise |
//! | NetworkActor | likewise |
//! | VmSupervisor | it and the Observer; the VmActors adopt their QEMUs again |
//! | PowerActor | it and all after it |
//! | Observer | it and the ManifestKeeper |
//! | ManifestKeeper | alone |
//!
//! Over its budget the root gives up: the process ends non-zero, systemd starts
//! it again, guests keep running.
//! Must not: know what any of them does.

#[cfg(test)]
mod tests;

use crate::{
    disks::{DiskRegistry, DisksArguments, DisksHandle, DisksSlot},
    mailbox::{self, Actor, ActorRef},
    manifests::{ManifestArguments, ManifestKeeper, ManifestSlot},
    meters::ActorMeter,
    network::{NetworkActor, NetworkArguments, NetworkHandle},
    observer::{DriftSettings, Observer, ObserverArguments, ObserverHandle, ObserverSlot},
    ports::{Clock, DiskFiles, Folders, Hypervisor, ImageFiles, ManifestFiles, Network, Storage},
    power::{PowerActor, PowerArguments, PowerHandle, StartTurns},
    slot::Slot,
    store::{StateStore, StoreArguments, StoreHandle, StoreSlot},
    vm::{RecoveryProgress, VmDeps, VmDirectory, VmSupervisor, VmSupervisorArguments, VmsHandle},
};
use ractor::{ActorCell, ActorProcessingErr, SpawnErr, SupervisionEvent};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, oneshot, watch},
    time::Instant,
};
use vman_model::Allowance;

/// The root's budget: more restarts than this within [`WINDOW`] and it gives up.
const MAX_RESTARTS: usize = 3;
const WINDOW: Duration = Duration::from_mins(1);
/// The delay before the second restart in the window; it doubles. What made the
/// first fail may need a moment to pass.
const BACKOFF: Duration = Duration::from_millis(100);

/// Everything the tree acts through.
#[derive(Clone)]
pub struct Ports {
    /// The rows.
    pub storage: Arc<dyn Storage>,
    /// QEMU.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Disk files.
    pub disks: Arc<dyn DiskFiles>,
    /// Image files.
    pub images: Arc<dyn ImageFiles>,
    /// What lies in the folders, for the Observer.
    pub folders: Arc<dyn Folders>,
    /// The network.
    pub network: Arc<dyn Network>,
    /// The files of the manifests.
    pub manifests: Arc<dyn ManifestFiles>,
    /// Time and randomness.
    pub clock: Arc<dyn Clock>,
}

/// What the tree is told to keep to.
#[derive(Clone, Debug)]
pub struct TreeSettings {
    /// The most VMs.
    pub max_vms: usize,
    /// The most QEMUs launching at once.
    pub max_launches: usize,
    /// How much of the host may be promised to VMs.
    pub allowance: Allowance,
    /// Between the Observer's checks.
    pub observer_interval: Duration,
    /// What the Observer does about drift.
    pub drift: DriftSettings,
}

/// How everything outside the tree reaches it.
#[derive(Clone)]
pub struct Handles {
    /// How much of the host may be promised to VMs.
    pub allowance: Allowance,
    /// The store and its inventory.
    pub store: StoreHandle,
    /// VMs.
    pub vms: VmsHandle,
    /// Disks and images.
    pub disks: DisksHandle,
    /// The network.
    pub network: NetworkHandle,
    /// The observer.
    pub observer: ObserverHandle,
    /// What comes up and goes down with the host.
    pub power: PowerHandle,
    /// How far the manifests are.
    pub manifests: Arc<ManifestSlot>,
    /// Their files, for who compares them.
    pub manifest_files: Arc<dyn ManifestFiles>,
    /// Time and randomness.
    pub clock: Arc<dyn Clock>,
    /// QEMU, for probes.
    pub hypervisor: Arc<dyn Hypervisor>,
}

/// A running tree.
pub struct Tree {
    /// How to reach it.
    pub handles: Handles,
    /// Tells when every VM has been found again.
    pub recovery: RecoveryProgress,
    /// Tells why the root has given up.
    pub gave_up: watch::Receiver<Option<String>>,
    root: ActorRef<RootMsg>,
    task: tokio::task::JoinHandle<()>,
}

/// Asks whether the root answers; for a watchdog.
#[derive(Clone)]
pub struct Pulse(ActorRef<RootMsg>);

impl Pulse {
    /// Waits until the root has answered; false if it is gone.
    pub async fn beat(&self) -> bool {
        let (reply, answer) = oneshot::channel();
        self.0.cast(RootMsg::Ping(reply)).is_ok() && answer.await.is_ok()
    }
}

/// Why the tree was not started.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(String);

impl Tree {
    /// Starts the tree. It answers when every actor is up; recovery goes on.
    pub async fn start(ports: Ports, settings: &TreeSettings) -> Result<Tree, StartError> {
        let (seats, handles, recovery) = seats(ports, settings);
        let (said, gave_up) = watch::channel(None);
        let give_up = GiveUp {
            said,
            stopped: false,
        };
        let meter = handles.store.meters().actors.with(["root"]);
        let arguments = RootArguments { seats, give_up };
        let (root, task) = mailbox::spawn(Root, arguments, meter)
            .await
            .map_err(|error| StartError(told(&error)))?;
        Ok(Tree {
            handles,
            recovery,
            gave_up,
            root,
            task,
        })
    }

    /// How to ask whether the root is well.
    pub fn pulse(&self) -> Pulse {
        Pulse(self.root.clone())
    }

    /// Stops every actor, the last started first. Guests run on.
    pub async fn stop(self) {
        self.root.stop(Some("the daemon is stopping".to_owned()));
        let _ = self.task.await;
    }
}

/// A spawn error says "startup panicked/failed: why"; the why is for people.
fn told(error: &SpawnErr) -> String {
    match error {
        SpawnErr::StartupFailed(inner) => inner.to_string(),
        other => other.to_string(),
    }
}

struct Seats {
    store: StoreArguments,
    disks: DisksArguments,
    network: NetworkArguments,
    vms: VmSupervisorArguments,
    power: PowerArguments,
    observer: ObserverArguments,
    manifests: ManifestArguments,
}

fn seats(ports: Ports, settings: &TreeSettings) -> (Seats, Handles, RecoveryProgress) {
    let store_slot = Arc::new(StoreSlot::default());
    let store = StoreHandle::new(store_slot.clone(), ports.storage.clone());
    let disks_slot = Arc::new(DisksSlot::default());
    let disks = DisksHandle::new(
        disks_slot.clone(),
        ports.disks.clone(),
        ports.images.clone(),
        store.clone(),
    );
    let network_slot = Arc::new(Slot::default());
    let network = NetworkHandle::new(
        network_slot.clone(),
        ports.network.clone(),
        store.clone(),
        ports.clock.clone(),
    );
    let observer_slot = Arc::new(ObserverSlot::default());
    let observer = ObserverHandle::new(observer_slot.clone(), settings.observer_interval);
    let manifests = Arc::new(ManifestSlot::default());
    let manifest_files = ports.manifests.clone();
    let directory = Arc::new(VmDirectory::default());
    let (clock, hypervisor) = (ports.clock.clone(), ports.hypervisor.clone());
    let vms = VmsHandle::new(
        directory.clone(),
        store.clone(),
        clock.clone(),
        hypervisor.clone(),
        ports.network.facts(),
        settings.max_vms,
    );
    let turns = Arc::new(StartTurns::default());
    let power_slot = Arc::new(Slot::default());
    let power = PowerHandle::new(power_slot.clone(), store.clone(), clock.clone());
    let deps = VmDeps {
        store: store.clone(),
        hypervisor: hypervisor.clone(),
        disks: disks.clone(),
        network: network.clone(),
        clock: clock.clone(),
        launches: Arc::new(Semaphore::new(settings.max_launches)),
        turns: turns.clone(),
        allowance: settings.allowance,
    };
    let (vm_arguments, recovery) = VmSupervisorArguments::new(deps, directory);
    let seats = Seats {
        store: StoreArguments {
            storage: ports.storage,
            clock: clock.clone(),
            slot: store_slot,
        },
        disks: DisksArguments {
            disks: ports.disks,
            images: ports.images,
            store: store.clone(),
            slot: disks_slot,
        },
        network: NetworkArguments {
            network: ports.network,
            store: store.clone(),
            clock: clock.clone(),
            hypervisor: hypervisor.clone(),
            slot: network_slot,
        },
        vms: vm_arguments,
        power: PowerArguments {
            store: store.clone(),
            vms: vms.clone(),
            network: network.clone(),
            clock: clock.clone(),
            turns,
            slot: power_slot,
        },
        observer: ObserverArguments {
            store: store.clone(),
            hypervisor: hypervisor.clone(),
            clock: clock.clone(),
            interval: settings.observer_interval,
            drift: settings.drift,
            folders: ports.folders,
            network: network.clone(),
            vms: vms.clone(),
            slot: observer_slot,
        },
        manifests: ManifestArguments {
            store: store.clone(),
            files: ports.manifests,
            slot: manifests.clone(),
        },
    };
    let handles = Handles {
        allowance: settings.allowance,
        store,
        vms,
        disks,
        network,
        power,
        observer,
        manifests,
        manifest_files,
        clock,
        hypervisor,
    };
    (seats, handles, recovery)
}

/// The seats, in the order they depend on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Seat {
    Store,
    Disks,
    Network,
    Vms,
    Power,
    Observer,
    Manifests,
}

impl Seat {
    const ALL: [Seat; 7] = [
        Seat::Store,
        Seat::Disks,
        Seat::Network,
        Seat::Vms,
        Seat::Power,
        Seat::Observer,
        Seat::Manifests,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Seat::Store => "store",
            Seat::Disks => "disks",
            Seat::Network => "network",
            Seat::Vms => "vm_supervisor",
            Seat::Power => "power",
            Seat::Observer => "observer",
            Seat::Manifests => "manifests",
        }
    }
}

enum RootMsg {
    /// Start what is missing, from this seat on.
    Restart(Seat),
    /// Answer, to show that the root is well.
    Ping(oneshot::Sender<()>),
}

struct RootArguments {
    seats: Seats,
    give_up: GiveUp,
}

/// How the root says that it has given up; it is said also when the root itself
/// dies, unless it was stopped.
struct GiveUp {
    said: watch::Sender<Option<String>>,
    stopped: bool,
}

impl Drop for GiveUp {
    fn drop(&mut self) {
        if !self.stopped && self.said.borrow().is_none() {
            let why = "the root of the supervision tree has died".to_owned();
            self.said.send_replace(Some(why));
        }
    }
}

struct RootState {
    seats: Seats,
    give_up: GiveUp,
    children: Vec<(Seat, ActorCell)>,
    restarts: Vec<Instant>,
}

struct Root;

impl Actor for Root {
    type Msg = RootMsg;
    type State = RootState;
    type Arguments = RootArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<RootMsg>,
        arguments: RootArguments,
    ) -> Result<RootState, ActorProcessingErr> {
        let RootArguments { seats, give_up } = arguments;
        let mut state = RootState {
            seats,
            give_up,
            children: Vec::new(),
            restarts: Vec::new(),
        };
        state.fill(&myself).await.map_err(|error| told(&error))?;
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<RootMsg>,
        message: RootMsg,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        let seat = match message {
            RootMsg::Restart(seat) => seat,
            RootMsg::Ping(reply) => {
                let _ = reply.send(());
                return Ok(());
            }
        };
        state.empty_from(seat).await;
        if let Err(error) = state.fill(&myself).await {
            tracing::error!(error = told(&error), "an actor could not be restarted");
            state.restart(&myself, seat, &told(&error));
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<RootMsg>,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        state.give_up.stopped = true;
        state.empty_from(Seat::Store).await;
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<RootMsg>,
        event: SupervisionEvent,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        let (actor, why) = match event {
            SupervisionEvent::ActorFailed(actor, error) => (actor, error.to_string()),
            SupervisionEvent::ActorTerminated(actor, _, why) => (actor, why.unwrap_or_default()),
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {
                return Ok(());
            }
        };
        // One that was stopped on purpose is not among the children any more.
        let seat = state
            .children
            .iter()
            .find(|(_, cell)| cell.get_id() == actor.get_id());
        if let Some((seat, _)) = seat.cloned() {
            let component = seat.as_str();
            tracing::error!(
                event = "actor.died",
                component,
                error = why,
                "an actor has died, restarting it"
            );
            state.restart(&myself, seat, &why);
        }
        Ok(())
    }
}

/// Starts an actor of the root's.
async fn sit<A: Actor>(
    actor: A,
    arguments: &A::Arguments,
    root: ActorCell,
    meter: Arc<ActorMeter>,
) -> Result<ActorCell, SpawnErr>
where
    A::Arguments: Clone,
{
    let arguments = arguments.clone();
    let actor = mailbox::spawn_linked(actor, arguments, root, meter).await?;
    Ok(actor.get_cell())
}

impl RootState {
    /// Asks for a restart, within the budget.
    fn restart(&mut self, myself: &ActorRef<RootMsg>, seat: Seat, why: &str) {
        let meters = self.seats.disks.store.meters();
        meters.actor_restarts.with([seat.as_str()]).inc();
        let now = Instant::now();
        self.restarts.retain(|at| now.duration_since(*at) < WINDOW);
        self.restarts.push(now);
        if self.restarts.len() > MAX_RESTARTS {
            let why = format!(
                "more than {MAX_RESTARTS} restarts within {} s, the last of {seat:?}: {why}",
                WINDOW.as_secs()
            );
            tracing::error!(
                event = "daemon.gave_up",
                error = why,
                "the root gives up; guests keep running"
            );
            self.give_up.said.send_replace(Some(why));
            return;
        }
        let delay = match self.restarts.len() {
            0 | 1 => Duration::ZERO,
            // At most the budget: it cannot overflow.
            more => BACKOFF * 2_u32.pow(u32::try_from(more - 2).unwrap_or(0)),
        };
        myself.send_after(delay, move || RootMsg::Restart(seat));
    }

    /// Starts every seat that has no actor, in order.
    async fn fill(&mut self, myself: &ActorRef<RootMsg>) -> Result<(), SpawnErr> {
        for seat in Seat::ALL {
            if self.children.iter().any(|(of, _)| *of == seat) {
                continue;
            }
            let cell = self.spawn(seat, myself.get_cell()).await?;
            self.children.push((seat, cell));
        }
        Ok(())
    }

    async fn spawn(&self, seat: Seat, root: ActorCell) -> Result<ActorCell, SpawnErr> {
        let seats = &self.seats;
        let meter = seats.disks.store.meters().actors.with([seat.as_str()]);
        match seat {
            Seat::Store => sit(StateStore, &seats.store, root, meter).await,
            Seat::Disks => sit(DiskRegistry, &seats.disks, root, meter).await,
            Seat::Network => sit(NetworkActor, &seats.network, root, meter).await,
            Seat::Vms => sit(VmSupervisor, &seats.vms, root, meter).await,
            Seat::Power => sit(PowerActor, &seats.power, root, meter).await,
            Seat::Observer => sit(Observer, &seats.observer, root, meter).await,
            Seat::Manifests => sit(ManifestKeeper, &seats.manifests, root, meter).await,
        }
    }

    /// Stops every actor from `seat` on, the last first, with its children.
    async fn empty_from(&mut self, seat: Seat) {
        let (mut stopping, staying): (Vec<_>, Vec<_>) =
            self.children.drain(..).partition(|(of, _)| *of >= seat);
        self.children = staying;
        stopping.sort_by_key(|(of, _)| std::cmp::Reverse(*of));
        for (_, cell) in stopping {
            // A supervisor's plain stop kills its children in the middle of
            // whatever they await: stop them in order first.
            cell.stop_children_and_wait(None, None).await;
            let _ = cell.stop_and_wait(None, None).await;
        }
    }
}
