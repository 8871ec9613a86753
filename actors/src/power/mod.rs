//! PowerActor: what comes up and goes down with the host.
//!
//! Owns: the host's record (which boot it is, what is still to be started in it,
//! whether it is drained), and the turns in which starts go on after a boot. The
//! record is durable before anything is started or stopped for it, so a daemon
//! that dies in between goes on where it was.
//! Must not: start or stop a VM itself; it gives VMs the commands that a user
//! would. Nor wait in a handler for more than a commit.
//! Look next: the model's `power::plan` (whose turn it is), `handle.rs`, docs/power.md.

mod handle;
mod turns;

pub use handle::{DrainRequest, PowerError, PowerHandle};
pub use turns::StartTurns;

use crate::{
    mailbox::{Actor, ActorRef},
    network::NetworkHandle,
    ports::Clock,
    slot::Slot,
    store::{Committed, Inventory, StoreError, StoreHandle},
    vm::{CommandError, CommandRequest, VmsHandle},
};
use ractor::ActorProcessingErr;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};
use vman_model::{
    Cause, Change, EventDraft, EventKind, Guard, OperationKind, OperationRecord, OperationStatus,
    Origin, Problem, Subject, VmId, Write,
    power::{
        Drain, HostRecord,
        plan::{self, Known, Stops},
    },
    vm::{Command, CommandContext, VmRecord},
};

/// Between two looks while something is to be started or stopped.
const TICK: Duration = Duration::from_millis(200);
/// How long the start of the tree waits for the host's record.
const WRITE_PATIENCE: Duration = Duration::from_secs(2);
/// How long after its deadline a drain waits for QEMUs that were killed.
const KILL_PATIENCE_MS: u64 = 30_000;

/// What the PowerActor is told.
pub enum PowerMsg {
    /// Look what is next.
    Tick,
    /// Stop all VMs, for the host is to go down.
    Drain(
        DrainRequest,
        oneshot::Sender<Result<OperationRecord, PowerError>>,
    ),
    /// The host stays up: start again what was drained.
    Resume(Origin, oneshot::Sender<Result<(), PowerError>>),
    /// What became of a command that was given to a VM.
    Asked(VmId, Result<(), CommandError>),
    /// Whether a VM's guest answers at its address.
    Answers(VmId, bool),
}

/// What the PowerActor needs.
#[derive(Clone)]
pub struct PowerArguments {
    /// The store.
    pub store: StoreHandle,
    /// VMs, to give them commands.
    pub vms: VmsHandle,
    /// The network, to ask whether an address answers.
    pub network: NetworkHandle,
    /// Time and the boot.
    pub clock: Arc<dyn Clock>,
    /// Whose start is held.
    pub turns: Arc<StartTurns>,
    /// Where the actor's present ref is published.
    pub slot: Arc<Slot<PowerMsg>>,
}

/// What the PowerActor holds.
pub struct PowerState {
    arguments: PowerArguments,
    /// As it shall be; written as soon as the store takes it.
    host: HostRecord,
    /// Whether the store has it so.
    written: bool,
    /// Since when it is waited: of this daemon's, for deadlines are monotonic.
    since: Instant,
    /// VMs whose turn has come, and that were commanded or let go.
    gone: BTreeSet<VmId>,
    /// VMs with a command under way.
    asking: BTreeSet<VmId>,
    answering: BTreeSet<VmId>,
    ticking: bool,
}

/// The PowerActor.
pub struct PowerActor;

impl Actor for PowerActor {
    type Msg = PowerMsg;
    type State = PowerState;
    type Arguments = PowerArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<PowerMsg>,
        arguments: PowerArguments,
    ) -> Result<PowerState, ActorProcessingErr> {
        let inventory = arguments.store.inventory();
        let previous = inventory.host.as_ref().map(|row| &row.value);
        let boot_id = arguments.clock.boot_id();
        let host = plan::begin(previous, &vms(&inventory), &boot_id);
        let written = previous == Some(&host);
        Slot::set(&arguments.slot, myself.clone());
        let mut state = PowerState {
            arguments,
            host,
            written,
            since: Instant::now(),
            gone: BTreeSet::new(),
            asking: BTreeSet::new(),
            answering: BTreeSet::new(),
            ticking: false,
        };
        state.hold();
        if !state.written {
            // A storage that hangs or is full holds nobody up: it is tried again.
            let begun = state.event_of_boot();
            let writing = state.write(Vec::new(), begun);
            if let Ok(Err(error)) = tokio::time::timeout(WRITE_PATIENCE, writing).await {
                // The store that does not know it ends, and this actor with it:
                // their successors read the truth. The start need not fail for it.
                tracing::warn!(%error, "it is unknown whether the host's record was written");
            }
        }
        state.tick_again(&myself);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<PowerMsg>,
        message: PowerMsg,
        state: &mut PowerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            PowerMsg::Tick => {
                state.ticking = false;
                state.look(&myself).await?;
                state.tick_again(&myself);
            }
            PowerMsg::Drain(request, reply) => {
                let answer = state.drain(request).await;
                let unknown = matches!(&answer, Err(PowerError::Store(StoreError::Unknown(_))));
                let _ = reply.send(answer);
                if unknown {
                    return Err("it is unknown whether the drain was written".into());
                }
                state.tick_again(&myself);
            }
            PowerMsg::Resume(origin, reply) => {
                let answer = state.resume(origin).await;
                let unknown = matches!(&answer, Err(PowerError::Store(StoreError::Unknown(_))));
                let _ = reply.send(answer);
                if unknown {
                    return Err("it is unknown whether the resume was written".into());
                }
                state.tick_again(&myself);
            }
            PowerMsg::Asked(vm, answer) => state.asked(vm, answer),
            PowerMsg::Answers(vm, yes) => {
                if yes {
                    state.answering.insert(vm);
                } else {
                    state.answering.remove(&vm);
                }
            }
        }
        Ok(())
    }
}

fn vms(inventory: &Inventory) -> BTreeMap<&VmId, &VmRecord> {
    let all = inventory.vms.iter();
    all.map(|(id, row)| (id, &row.value)).collect()
}

impl PowerState {
    fn tick_again(&mut self, myself: &ActorRef<PowerMsg>) {
        let busy = self.host.is_busy() || !self.written;
        if busy && !std::mem::replace(&mut self.ticking, true) {
            myself.send_after(TICK, || PowerMsg::Tick);
        }
    }

    fn waited_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Holds those whose turn has not come.
    fn hold(&self) {
        let held = self.host.starting.iter().filter(|one| one.held);
        let held = held.map(|one| one.vm.clone());
        let held = held.filter(|vm| !self.gone.contains(vm));
        self.arguments.turns.hold(held.collect());
    }

    async fn look(&mut self, myself: &ActorRef<PowerMsg>) -> Result<(), StoreError> {
        if !self.written {
            let begun = self.event_of_boot();
            self.write(Vec::new(), begun).await?;
        }
        match self.host.drain.clone() {
            Some(drain) if !drain.done => self.stop_next(myself, &drain).await,
            Some(_) => Ok(()),
            None => self.start_next(myself).await,
        }
    }

    /// A commit that certainly was not done is tried again at the next tick:
    /// starting and stopping go on meanwhile, from memory.
    async fn write(
        &mut self,
        mut writes: Vec<Write>,
        event: Option<EventDraft>,
    ) -> Result<bool, StoreError> {
        writes.push(Write::PutHost(Box::new(self.host.clone())));
        let change = Change {
            writes,
            event,
            ..Change::default()
        };
        match self.commit(change).await {
            Ok(_) => self.written = true,
            Err(error) if error.is_certain() => {
                tracing::debug!(%error, "the host's record cannot be written yet");
                self.written = false;
            }
            Err(error) => return Err(error),
        }
        Ok(self.written)
    }

    async fn commit(&self, change: Change) -> Result<Committed, StoreError> {
        self.arguments.store.commit(change).await
    }

    async fn start_next(&mut self, myself: &ActorRef<PowerMsg>) -> Result<(), StoreError> {
        let inventory = self.arguments.store.inventory();
        let vms = vms(&inventory);
        for vm in plan::asked_for_addresses(&self.host, &vms) {
            self.ask_address(myself, vm.clone());
        }
        let known = Known {
            gone: &self.gone,
            answering: &self.answering,
            waited_ms: self.waited_ms(),
        };
        let plan = plan::starts(&self.host, &vms, known);
        for (vm, other) in &plan.late {
            tracing::warn!(%vm, %other, "a VM is started with the host although one it waits for is not up");
            let event = self.event(
                EventKind::StartLate,
                Subject::Vm(vm.clone()),
                format!("VM {vm} is started with the host although {other}, which it waits for, is not up"),
                Origin::Daemon,
            );
            // What is told twice after an unwritten one is no harm.
            let _ = self.commit(tell(event)).await;
        }
        for vm in plan.go {
            let held = self
                .host
                .starting
                .iter()
                .any(|one| one.vm == vm && one.held);
            if held {
                self.gone.insert(vm);
            } else {
                self.ask(myself, vm, Command::Start, Origin::Daemon);
            }
        }
        self.hold();
        if !plan.settled.is_empty() {
            self.host
                .starting
                .retain(|one| !plan.settled.contains(&one.vm));
            self.write(Vec::new(), None).await?;
        }
        Ok(())
    }

    async fn stop_next(
        &mut self,
        myself: &ActorRef<PowerMsg>,
        drain: &Drain,
    ) -> Result<(), StoreError> {
        let inventory = self.arguments.store.inventory();
        let waited = self.waited_ms();
        let overdue = waited > drain.timeout_ms.saturating_add(KILL_PATIENCE_MS);
        match plan::stops(drain, &vms(&inventory), waited) {
            Stops::Done => self.drained(drain, &[]).await,
            Stops::Wait(left) if overdue => self.drained(drain, &left).await,
            Stops::Wait(_) => Ok(()),
            Stops::Stop(next) => {
                for (vm, timeout_ms) in next {
                    let force = timeout_ms == 0;
                    let stop = Command::Stop { force, timeout_ms };
                    self.ask(myself, vm, stop, drain.origin.clone());
                }
                Ok(())
            }
        }
    }

    /// The drain has come to its end; `left` could not be stopped.
    async fn drained(&mut self, drain: &Drain, left: &[VmId]) -> Result<(), StoreError> {
        let mut operation = operation(drain);
        operation.finished_at = Some(self.arguments.clock.now());
        "drained".clone_into(&mut operation.step);
        let detail = if left.is_empty() {
            (operation.status, operation.progress) = (OperationStatus::Succeeded, 100);
            let count = drain.vms.len();
            format!(
                "the host is drained: {count} VMs are started again by its next boot, or when it is resumed"
            )
        } else {
            let names: Vec<_> = left.iter().map(VmId::as_str).collect();
            let detail = format!("these VMs could not be stopped: {}", names.join(", "));
            operation.status = OperationStatus::Failed;
            operation.error = Some(Problem::new("drain_incomplete", detail.clone()));
            detail
        };
        self.host.drain = Some(Drain {
            done: true,
            ..drain.clone()
        });
        let event = self.event(
            EventKind::HostDrained,
            Subject::Daemon,
            detail,
            drain.origin.clone(),
        );
        let written = self
            .write(vec![Write::PutOperation(operation)], Some(event))
            .await?;
        if !written {
            // The operation and the record end together, or the drain goes on.
            self.host.drain = Some(drain.clone());
        }
        Ok(())
    }

    async fn drain(&mut self, request: DrainRequest) -> Result<OperationRecord, PowerError> {
        let inventory = self.arguments.store.inventory();
        if let Some(drain) = &self.host.drain {
            // Draining twice is draining once.
            let known = inventory.operations.get(&drain.operation);
            return Ok(known.map_or_else(|| operation(drain), |row| row.value.clone()));
        }
        let drain = Drain {
            since: self.arguments.clock.now(),
            timeout_ms: request.timeout_ms,
            operation: request.context.operation,
            origin: request.context.origin,
            vms: plan::drained(&self.host, &vms(&inventory)),
            done: false,
        };
        let before = self.host.clone();
        let operation = operation(&drain);
        let detail = format!(
            "the host is being drained: {} VMs are stopped",
            drain.vms.len()
        );
        let event = self.event(
            EventKind::HostDraining,
            Subject::Daemon,
            detail,
            drain.origin.clone(),
        );
        self.host.starting.clear();
        self.host.drain = Some(drain);
        self.begin_anew();
        let key = request.idempotency;
        let guards = key.iter().map(|row| Guard::KeyUnused(row.key.clone()));
        let guards = guards.collect();
        let mut writes = vec![
            Write::PutOperation(operation.clone()),
            Write::PutHost(Box::new(self.host.clone())),
        ];
        writes.extend(key.map(Write::PutIdempotency));
        let change = Change {
            guards,
            writes,
            event: Some(event),
        };
        match self.commit(change).await {
            Ok(_) => {
                self.written = true;
                Ok(operation)
            }
            Err(error) => {
                self.host = before;
                self.hold();
                Err(error.into())
            }
        }
    }

    async fn resume(&mut self, origin: Origin) -> Result<(), PowerError> {
        if self.host.drain.is_none() {
            return Err(PowerError::NotDrained);
        }
        if self.host.is_busy() {
            return Err(PowerError::Draining);
        }
        let inventory = self.arguments.store.inventory();
        let next = plan::resume(&self.host, &vms(&inventory));
        let detail = format!(
            "the host is resumed: {} VMs are to be started again",
            next.starting.len()
        );
        let event = self.event(EventKind::HostResumed, Subject::Daemon, detail, origin);
        let change = Change {
            writes: vec![Write::PutHost(Box::new(next.clone()))],
            event: Some(event),
            ..Change::default()
        };
        self.commit(change).await?;
        self.written = true;
        self.host = next;
        self.begin_anew();
        Ok(())
    }

    fn begin_anew(&mut self) {
        self.since = Instant::now();
        self.gone.clear();
        self.hold();
    }

    /// Gives a VM a command, one at a time.
    fn ask(&mut self, myself: &ActorRef<PowerMsg>, vm: VmId, command: Command, origin: Origin) {
        if !self.asking.insert(vm.clone()) {
            return;
        }
        let (vms, power) = (self.arguments.vms.clone(), myself.clone());
        let context = CommandContext {
            operation: vms.new_operation_id(),
            origin,
        };
        let request = CommandRequest {
            command,
            context,
            if_revision: None,
            idempotency: None,
        };
        tokio::spawn(async move {
            let answer = vms.command(&vm, request).await.map(|_| ());
            let _ = power.cast(PowerMsg::Asked(vm, answer));
        });
    }

    fn asked(&mut self, vm: VmId, answer: Result<(), CommandError>) {
        self.asking.remove(&vm);
        match answer {
            // What cannot be written or is being restarted is asked again at the next look.
            Err(
                CommandError::Unavailable
                | CommandError::Unknown
                | CommandError::TooMany
                | CommandError::Store(_),
            ) => {}
            Ok(()) => {
                self.gone.insert(vm);
            }
            Err(error) => {
                tracing::debug!(%vm, %error, "a VM did not take what its host's boot or drain asked");
                self.gone.insert(vm);
            }
        }
    }

    fn ask_address(&mut self, myself: &ActorRef<PowerMsg>, vm: VmId) {
        if self.answering.contains(&vm) {
            return;
        }
        let (network, power) = (self.arguments.network.clone(), myself.clone());
        tokio::spawn(async move {
            let yes = network.answers(&vm).await;
            let _ = power.cast(PowerMsg::Answers(vm, yes));
        });
    }

    /// What is told once of a boot that has VMs to start.
    fn event_of_boot(&self) -> Option<EventDraft> {
        let count = self.host.starting.len();
        (count > 0).then(|| {
            let detail = format!("the host was booted: {count} VMs are started with it");
            self.event(
                EventKind::HostBooted,
                Subject::Daemon,
                detail,
                Origin::Daemon,
            )
        })
    }

    fn event(
        &self,
        kind: EventKind,
        subject: Subject,
        detail: String,
        origin: Origin,
    ) -> EventDraft {
        EventDraft::new(
            self.arguments.clock.now(),
            subject,
            kind,
            detail,
            Cause::new(origin, kind.as_str()),
        )
    }
}

fn tell(event: EventDraft) -> Change {
    Change {
        event: Some(event),
        ..Change::default()
    }
}

/// A drain's operation as it is while it goes on.
fn operation(drain: &Drain) -> OperationRecord {
    let request_id = match &drain.origin {
        Origin::Request { request_id, .. } => Some(request_id.clone()),
        _ => None,
    };
    OperationRecord {
        id: drain.operation.clone(),
        kind: OperationKind::HostDrain,
        vm_id: None,
        disk_id: None,
        nic: None,
        status: OperationStatus::Running,
        step: "stopping".to_owned(),
        progress: 0,
        created_at: drain.since,
        finished_at: None,
        error: None,
        request_id,
    }
}
