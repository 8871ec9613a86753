//! Observer: ticks, looks, reports, and repairs by policy. It owns nothing.
//!
//! A check: consoles and logs are kept within their bounds, running machines are
//! asked whether they answer, then the records are held against one look at the
//! host (the model's `drift::plan` says what differs and what is to be done).
//! What is new is believed only when a second look a moment later finds it too.
//! Must not: change anything that another actor owns. A VM is asked to look for
//! its QEMU again; nothing is written about it from here.
//! Look next: `look.rs` (what is seen), `act.rs` (what is done and told),
//! docs/observer.md; its tests are beside the VMs' (`vm/tests/observed.rs`).

mod act;
mod look;

use crate::{
    mailbox::{Actor, ActorRef},
    network::NetworkHandle,
    ports::{Clock, Folders, Hypervisor},
    slot::Slot,
    store::StoreHandle,
    vm::VmsHandle,
};
use act::Memory;
use arc_swap::ArcSwap;
use ractor::ActorProcessingErr;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::oneshot, time::Instant};
use vman_model::{
    Subject, UnixMs, VmId,
    drift::{Drift, DriftClass, Repair},
    vm::Phase,
};

/// Between the two looks that a new finding needs: more than an exit, its
/// notice and its commit take.
const SECOND_LOOK: Duration = Duration::from_millis(300);
/// Findings listed in a report.
const MAX_FINDINGS: usize = 1_000;
/// By which journald's readers find all drift (`journalctl MESSAGE_ID=…`).
pub const DRIFT_MESSAGE_ID: &str = "7c1d5e0f2b8a4d3c9e6f1a0b5d4c3e2f";
/// A check takes milliseconds; one that takes this long hangs.
const CHECK_DEADLINE: Duration = Duration::from_mins(1);

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its class (`record_quarantined`).
    pub issue_type: String,
    /// What it is about.
    pub resource_id: String,
    /// What was seen.
    pub details: String,
    /// What was done about it (`reported`).
    pub action: String,
}

/// The last check, as it is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObserverReport {
    /// When it ended; none before the first.
    pub last_check_at: Option<UnixMs>,
    /// How long it took.
    pub last_duration_ms: u64,
    /// What it found.
    pub last_issues: Vec<Finding>,
    /// Checks since the daemon started.
    pub checks: u64,
}

/// What the Observer is told.
pub enum ObserverMsg {
    /// The interval has passed.
    Tick,
    /// Somebody wants a check now.
    Check(oneshot::Sender<Arc<ObserverReport>>),
    /// A check has ended.
    Checked(ObserverReport),
}

/// What is done about drift.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriftSettings {
    /// Whether it is repaired, otherwise only told.
    pub repair: bool,
    /// What no record knows is left alone for so long.
    pub grace: Duration,
    /// What was put away is kept for so long.
    pub retention: Duration,
}

impl Default for DriftSettings {
    fn default() -> Self {
        Self {
            repair: true,
            grace: Duration::from_mins(10),
            retention: Duration::from_hours(7 * 24),
        }
    }
}

/// By what a finding is recognised at the next check.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    class: DriftClass,
    resource: String,
}

impl Key {
    fn is(&self, drift: &Drift) -> bool {
        drift.key() == (self.class, self.resource.as_str())
    }
}

/// The findings that were told and still last, each with what was done about it
/// when it was told.
#[derive(Clone, Debug, Default)]
pub struct Told(BTreeMap<Key, (Subject, String)>);

impl Told {
    fn key(drift: &Drift) -> Key {
        Key {
            class: drift.class,
            resource: drift.resource.clone(),
        }
    }

    fn contains(&self, drift: &Drift) -> bool {
        self.0.contains_key(&Self::key(drift))
    }

    /// Whether it was told that this was done about it.
    fn contains_with(&self, drift: &Drift, action: &str) -> bool {
        let told = self.0.get(&Self::key(drift));
        told.is_some_and(|(_, told)| told == action)
    }

    fn add(&mut self, drift: &Drift, action: &str) {
        let told = (drift.subject.clone(), action.to_owned());
        self.0.insert(Self::key(drift), told);
    }

    fn remove(&mut self, key: &Key) {
        self.0.remove(key);
    }

    fn iter(&self) -> impl Iterator<Item = (&Key, &Subject)> {
        self.0.iter().map(|(key, (subject, _))| (key, subject))
    }
}

/// The seat of the Observer and its last report.
#[derive(Default)]
pub struct ObserverSlot {
    actor: Slot<ObserverMsg>,
    report: ArcSwap<ObserverReport>,
}

/// What the Observer needs.
#[derive(Clone)]
pub struct ObserverArguments {
    /// The store.
    pub store: StoreHandle,
    /// Consoles and logs.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What lies in our folders.
    pub folders: Arc<dyn Folders>,
    /// The links of the bridge.
    pub network: NetworkHandle,
    /// VMs, to ask them.
    pub vms: VmsHandle,
    /// Between checks.
    pub interval: Duration,
    /// What is done about drift.
    pub drift: DriftSettings,
    /// Where the actor's present ref and its report are published.
    pub slot: Arc<ObserverSlot>,
}

/// What the Observer holds.
pub struct ObserverState {
    arguments: ObserverArguments,
    checking: bool,
    waiting: Vec<oneshot::Sender<Arc<ObserverReport>>>,
    checks: u64,
    memory: Memory,
}

/// The Observer actor.
pub struct Observer;

impl Actor for Observer {
    type Msg = ObserverMsg;
    type State = ObserverState;
    type Arguments = ObserverArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<ObserverMsg>,
        arguments: ObserverArguments,
    ) -> Result<ObserverState, ActorProcessingErr> {
        myself.send_after(arguments.interval, || ObserverMsg::Tick);
        arguments.slot.actor.set(myself);
        Ok(ObserverState {
            arguments,
            checking: false,
            waiting: Vec::new(),
            checks: 0,
            memory: Memory::default(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<ObserverMsg>,
        message: ObserverMsg,
        state: &mut ObserverState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ObserverMsg::Tick => {
                // Armed again first: a check that is slow or fails stops no tick.
                myself.send_after(state.arguments.interval, || ObserverMsg::Tick);
                state.check(&myself);
            }
            ObserverMsg::Check(reply) => {
                state.waiting.retain(|waiting| !waiting.is_closed());
                state.waiting.push(reply);
                state.check(&myself);
            }
            ObserverMsg::Checked(mut report) => {
                state.checking = false;
                state.checks += 1;
                report.checks = state.checks;
                let report = Arc::new(report);
                state.arguments.slot.report.store(report.clone());
                for reply in state.waiting.drain(..) {
                    let _ = reply.send(report.clone());
                }
            }
        }
        Ok(())
    }
}

impl ObserverState {
    /// Starts a check unless one is under way.
    fn check(&mut self, myself: &ActorRef<ObserverMsg>) {
        if std::mem::replace(&mut self.checking, true) {
            return;
        }
        let (arguments, observer) = (self.arguments.clone(), myself.clone());
        let memory = self.memory.clone();
        tokio::spawn(async move {
            let clock = arguments.clock.clone();
            // A check that panics or hangs must not be the last one.
            let looking = tokio::spawn(async move { check(&arguments, &memory).await });
            let stop = looking.abort_handle();
            let report = match tokio::time::timeout(CHECK_DEADLINE, looking).await {
                Ok(Ok(report)) => report,
                Ok(Err(error)) => failed(clock.as_ref(), &error.to_string()),
                Err(_) => {
                    stop.abort();
                    failed(clock.as_ref(), "it did not end in time")
                }
            };
            let _ = observer.cast(ObserverMsg::Checked(report));
        });
    }
}

/// The report of a check that came to nothing.
fn failed(clock: &dyn Clock, why: &str) -> ObserverReport {
    tracing::warn!(error = why, "a check of the observer has failed");
    ObserverReport {
        last_check_at: Some(clock.now()),
        last_issues: vec![Finding {
            issue_type: "check_failed".to_owned(),
            resource_id: "observer".to_owned(),
            details: why.to_owned(),
            action: "reported".to_owned(),
        }],
        ..ObserverReport::default()
    }
}

async fn check(arguments: &ObserverArguments, memory: &Memory) -> ObserverReport {
    let began = Instant::now();
    let mut told = memory.lock().await;
    let inventory = arguments.store.inventory();
    let running = inventory
        .vms
        .iter()
        .filter(|(_, vm)| vm.value.phase.may_have_process());
    let running: Vec<VmId> = running.map(|(id, _)| id.clone()).collect();
    let asked = inventory
        .vms
        .iter()
        .filter(|(_, vm)| matches!(vm.value.phase, Phase::Running | Phase::Paused));
    for (id, _) in asked {
        arguments.vms.ping(id);
    }
    let trimmed = arguments.hypervisor.trim_logs(running).await;
    let (mut drifts, inventory) = believed(arguments, &told).await;
    if let Err(error) = trimmed {
        let class = DriftClass::LogNotBounded;
        drifts.push(Drift::reported(
            class,
            "consoles",
            Subject::Daemon,
            error.to_string(),
        ));
    }
    let mut findings = Vec::with_capacity(drifts.len().min(MAX_FINDINGS));
    for drift in drifts.into_iter().take(MAX_FINDINGS) {
        let again = told.contains(&drift);
        let action = act::act(arguments, &drift, again).await;
        let finding = act::finding(&drift, action);
        findings.push((drift, finding));
    }
    act::tell(arguments, &inventory, &findings, &mut told).await;
    act::empty_trash(arguments).await;
    ObserverReport {
        last_check_at: Some(arguments.clock.now()),
        last_duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        last_issues: findings.into_iter().map(|(_, finding)| finding).collect(),
        checks: 0,
    }
}

/// What differs for more than a moment: records and host are not read at the
/// same instant, so what is new, or is to be repaired, is looked at twice.
async fn believed(
    arguments: &ObserverArguments,
    told: &Told,
) -> (Vec<Drift>, Arc<crate::store::Inventory>) {
    let first = look::look(arguments).await;
    let settled = |drift: &Drift| told.contains(drift) && drift.repair == Repair::Report;
    if first.drifts.iter().all(settled) {
        return (first.drifts, first.inventory);
    }
    tokio::time::sleep(SECOND_LOOK).await;
    let second = look::look(arguments).await;
    let keys: std::collections::BTreeSet<_> = first.drifts.iter().map(Drift::key).collect();
    let mut drifts = second.drifts;
    drifts.retain(|drift| keys.contains(&drift.key()));
    (drifts, second.inventory)
}

/// The Observer, as others see it.
#[derive(Clone)]
pub struct ObserverHandle {
    slot: Arc<ObserverSlot>,
    interval: Duration,
}

impl ObserverHandle {
    /// A handle that stays good across restarts of the actor.
    pub fn new(slot: Arc<ObserverSlot>, interval: Duration) -> Self {
        Self { slot, interval }
    }

    /// Between checks.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Whether the actor lives.
    pub fn is_running(&self) -> bool {
        self.slot.actor.get().is_some()
    }

    /// The last check.
    pub fn report(&self) -> Arc<ObserverReport> {
        self.slot.report.load_full()
    }

    /// Runs a check now and answers it; none if the actor is being restarted.
    pub async fn check(&self) -> Option<Arc<ObserverReport>> {
        let actor = self.slot.actor.get()?;
        let (reply, answer) = oneshot::channel();
        actor.cast(ObserverMsg::Check(reply)).ok()?;
        answer.await.ok()
    }
}
