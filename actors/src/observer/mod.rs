//! Observer: ticks, looks, reports. It owns nothing.
//!
//! For now a tick keeps consoles and logs within their bounds, asks running
//! machines nothing, and reports what the store has set aside. The drift
//! classes build on this seat.
//! Must not: change anything that another actor owns.

use crate::{
    ports::{Clock, Hypervisor},
    slot::Slot,
    store::StoreHandle,
};
use arc_swap::ArcSwap;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::{sync::Arc, time::Duration};
use tokio::{sync::oneshot, time::Instant};
use vman_model::{UnixMs, VmId};

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
    /// Between checks.
    pub interval: Duration,
    /// Where the actor's present ref and its report are published.
    pub slot: Arc<ObserverSlot>,
}

/// What the Observer holds.
pub struct ObserverState {
    arguments: ObserverArguments,
    checking: bool,
    waiting: Vec<oneshot::Sender<Arc<ObserverReport>>>,
    checks: u64,
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
        tokio::spawn(async move {
            let clock = arguments.clock.clone();
            // A check that panics or hangs must not be the last one.
            let looking = tokio::spawn(async move { look(&arguments).await });
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

async fn look(arguments: &ObserverArguments) -> ObserverReport {
    let began = Instant::now();
    let inventory = arguments.store.inventory();
    let running = inventory
        .vms
        .iter()
        .filter(|(_, vm)| vm.value.phase.may_have_process());
    let running: Vec<VmId> = running.map(|(id, _)| id.clone()).collect();
    let mut findings: Vec<Finding> = inventory
        .quarantined
        .iter()
        .map(|row| Finding {
            issue_type: "record_quarantined".to_owned(),
            resource_id: row.row.clone(),
            details: row.error.clone(),
            action: "reported".to_owned(),
        })
        .collect();
    if let Err(error) = arguments.hypervisor.trim_logs(running).await {
        findings.push(Finding {
            issue_type: "log_not_bounded".to_owned(),
            resource_id: "consoles".to_owned(),
            details: error.to_string(),
            action: "reported".to_owned(),
        });
    }
    ObserverReport {
        last_check_at: Some(arguments.clock.now()),
        last_duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        last_issues: findings,
        checks: 0,
    }
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
