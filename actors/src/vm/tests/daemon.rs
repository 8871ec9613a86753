//! A daemon on a simulated host, whose time passes only while a test waits.

use super::{sight::seen, trial::Trial};
use crate::{
    TreeSettings,
    failpoint::watched,
    fakes::FakeHost,
    observer::DriftSettings,
    oracle::{Promised, verdict},
    root::{Handles, Tree},
    templates,
    vm::{CommandError, CommandRequest, NewVm},
};
use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};
use vman_model::{
    IdempotencyRecord, NetworkName, OperationId, OperationRecord, OperationStatus, Origin,
    RequestId, RestartPolicy, TemplateName, TemplateRecord, UnixMs, VmId,
    vm::{Command, CommandContext, Firmware, Phase, VmRecord, VmSize, VmSpec},
};

/// The most virtual time a condition may take, and the most real time.
const PATIENCE: Duration = Duration::from_mins(10);
const REAL_PATIENCE: Duration = Duration::from_mins(1);
/// What follows by itself has come by then: from here on time passes in longer steps.
const SOON: Duration = Duration::from_millis(200);

pub(super) const STOP: Command = Command::Stop {
    force: false,
    timeout_ms: 30_000,
};
pub(super) const STOP_BY_FORCE: Command = Command::Stop {
    force: true,
    timeout_ms: 30_000,
};
pub(super) const RESTART: Command = Command::Restart {
    force: false,
    timeout_ms: 30_000,
};
pub(super) const DELETE: Command = Command::Delete {
    keep_root_disk: false,
};

pub(super) fn vm(id: &str) -> VmId {
    VmId::parse(id).unwrap()
}

pub(super) fn origin() -> Origin {
    Origin::Request {
        request_id: RequestId::parse("r-1").unwrap(),
        principal: "test".to_owned(),
        remote: None,
    }
}

pub(super) fn size() -> VmSize {
    VmSize {
        cpu_count: 1,
        ram_mib: 128,
        image: None,
        boot: None,
        firmware: Firmware::Bios,
        disk_mib: Some(64),
        labels: [].into(),
    }
}

pub(super) fn spec(restart: RestartPolicy) -> VmSpec {
    VmSpec {
        template: TemplateName::parse("small").unwrap(),
        size: size(),
        restart,
        io_error: vman_model::vm::IoErrorPolicy::default(),
        start: vman_model::power::StartSpec::default(),
        resources: vman_model::vm::Resources::default(),
    }
}

/// Runs a test's one case in a runtime, and so on a clock, of its own.
pub(super) fn alone(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(case);
}

/// The same on threads that really run at once.
pub(super) fn on_threads(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(3)
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(case);
}

/// Holds tokio's paused clock: it would jump to the next timer whenever the
/// runtime idles, also while the store's thread still writes.
struct HeldTime(#[expect(dead_code, reason = "its drop ends the hold")] mpsc::Sender<()>);

impl HeldTime {
    fn hold() -> Self {
        tokio::time::pause();
        let (end, ended) = mpsc::channel();
        tokio::task::spawn_blocking(move || {
            let _ = ended.recv();
        });
        Self(end)
    }
}

/// How time passes.
enum Time {
    /// Only while a test waits.
    Held(#[expect(dead_code, reason = "its drop ends the hold")] HeldTime),
    /// By itself.
    Real,
    /// It jumps to the next timer whenever nothing else is to be done. The store
    /// writes in step, so nothing else is to be waited for.
    InStep,
}

pub(super) struct Daemon {
    pub(super) host: FakeHost,
    pub(super) settings: TreeSettings,
    /// Who is told of the steps of the next life.
    pub(super) trial: Option<Arc<Trial>>,
    /// And of the present one.
    living: Option<Arc<Trial>>,
    tree: Option<Tree>,
    time: Time,
}

impl Daemon {
    /// A daemon on a fresh host, with the template `small`.
    pub(super) async fn start() -> Self {
        Self::start_on(FakeHost::new()).await
    }

    pub(super) async fn start_on(host: FakeHost) -> Self {
        Self::start_in(host, Time::Held(HeldTime::hold())).await
    }

    /// In one thread, where a seed tells everything that happens.
    pub(super) async fn start_in_step(host: FakeHost) -> Self {
        tokio::time::pause();
        Self::start_in(host, Time::InStep).await
    }

    /// On threads that really run at once, in real time.
    pub(super) async fn start_in_real_time(host: FakeHost) -> Self {
        Self::start_in(host, Time::Real).await
    }

    async fn start_in(host: FakeHost, time: Time) -> Self {
        let settings = TreeSettings {
            max_vms: 100,
            max_launches: 4,
            allowance: vman_model::Allowance::default(),
            observer_interval: Duration::from_secs(5),
            drift: DriftSettings::default(),
        };
        let mut daemon = Self {
            host,
            settings,
            trial: None,
            living: None,
            tree: None,
            time,
        };
        assert!(daemon.boot().await, "nothing fails yet");
        let template = TemplateRecord {
            name: TemplateName::parse("small").unwrap(),
            size: size(),
            created_at: UnixMs(0),
        };
        templates::create(&daemon.on().store, template, origin(), None)
            .await
            .unwrap();
        daemon
    }

    /// Starts the tree. False if the daemon died of its trial meanwhile.
    pub(super) async fn boot(&mut self) -> bool {
        self.late_effects_end();
        self.living.clone_from(&self.trial);
        let mut ports = self.host.ports();
        if let Some(trial) = &self.trial {
            ports = watched(ports, trial.clone());
        }
        let settings = self.settings.clone();
        let starting = tokio::spawn(async move { Tree::start(ports, &settings).await });
        let dead = || self.trial.as_ref().is_some_and(|trial| trial.is_dead());
        self.until("the tree is up", || starting.is_finished() || dead())
            .await;
        if !starting.is_finished() {
            starting.abort();
            return false;
        }
        self.tree = Some(starting.await.unwrap().unwrap());
        true
    }

    /// Why the tree does not start.
    pub(super) async fn refusal(&self) -> String {
        match Tree::start(self.host.ports(), &self.settings).await {
            Ok(_) => panic!("it started"),
            Err(error) => error.to_string(),
        }
    }

    /// What the last life was late with does not come any more.
    fn late_effects_end(&self) {
        if let Some(trial) = &self.living {
            trial.kill();
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.tree.is_some()
    }

    pub(super) fn on(&self) -> &Handles {
        &self.tree.as_ref().unwrap().handles
    }

    pub(super) fn tree(&self) -> &Tree {
        self.tree.as_ref().unwrap()
    }

    /// SIGKILL, and a new start.
    pub(super) async fn kill_and_start(&mut self) {
        self.host.kill_daemon();
        self.late_effects_end();
        if self.is_up() {
            self.end().await;
        }
        self.boot().await;
    }

    /// SIGTERM, and a new start.
    pub(super) async fn stop_and_start(&mut self) {
        self.end().await;
        self.boot().await;
    }

    /// The tree is stopped in order. It must come to its end.
    pub(super) async fn end(&mut self) {
        let tree = self.tree.take().unwrap();
        let stopping = tokio::spawn(tree.stop());
        self.until("the tree has stopped", || stopping.is_finished())
            .await;
    }

    pub(super) async fn create(&self, id: &str) -> VmId {
        self.create_with(id, RestartPolicy::default()).await
    }

    pub(super) async fn create_with(&self, id: &str, restart: RestartPolicy) -> VmId {
        let new = NewVm {
            id: Some(vm(id)),
            spec: spec(restart),
            network: NetworkName::default(),
            address: None,
            limits: vman_model::network::NicLimits::default(),
            origin: origin(),
            idempotency: None,
        };
        self.on().vms.create(new).await.unwrap()
    }

    /// A VM that runs.
    pub(super) async fn running(&self, id: &str) -> VmId {
        let id = self.create(id).await;
        self.done(&id, Command::Start).await;
        id
    }

    pub(super) fn request(&self, command: Command) -> CommandRequest {
        let context = CommandContext {
            operation: self.on().vms.new_operation_id(),
            origin: origin(),
        };
        CommandRequest {
            command,
            context,
            if_revision: None,
            idempotency: None,
        }
    }

    pub(super) async fn ask(
        &self,
        id: &VmId,
        command: Command,
    ) -> Result<OperationRecord, CommandError> {
        self.ask_with(id, command, None).await
    }

    pub(super) async fn ask_with(
        &self,
        id: &VmId,
        command: Command,
        idempotency: Option<IdempotencyRecord>,
    ) -> Result<OperationRecord, CommandError> {
        let mut request = self.request(command);
        request.idempotency = idempotency;
        self.on().vms.command(id, request).await
    }

    /// Asks, and waits until it is done as asked.
    pub(super) async fn done(&self, id: &VmId, command: Command) {
        let operation = self.ask(id, command.clone()).await.unwrap();
        let ended = self.ended(&operation.id).await;
        let (status, error) = (ended.status, ended.error);
        assert_eq!(status, OperationStatus::Succeeded, "{command:?}: {error:?}");
    }

    /// Waits until an operation has an end.
    pub(super) async fn ended(&self, id: &OperationId) -> OperationRecord {
        let find = || self.on().store.inventory().operations.get(id).cloned();
        let ended = || find().is_some_and(|op| op.value.status.is_end());
        self.until(&format!("operation {id} ends"), ended).await;
        find().unwrap().value.clone()
    }

    pub(super) fn record(&self, id: &VmId) -> Option<VmRecord> {
        let inventory = self.on().store.inventory();
        inventory.vms.get(id).map(|vm| vm.value.clone())
    }

    pub(super) fn phase(&self, id: &VmId) -> Option<Phase> {
        self.record(id).map(|record| record.phase)
    }

    pub(super) async fn until_phase(&self, id: &VmId, phase: Phase) {
        let there = || self.phase(id) == Some(phase);
        self.until(&format!("{id} is {}", phase.as_str()), there)
            .await;
    }

    /// Waits, and lets time pass meanwhile: slowly at first, so that nothing
    /// that follows by itself is overtaken by a timer.
    pub(super) async fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let (began, really_began) = (tokio::time::Instant::now(), Instant::now());
        loop {
            if !matches!(self.time, Time::InStep) {
                settle().await;
            }
            if holds() {
                return;
            }
            let passed = began.elapsed();
            let patient = passed < PATIENCE && really_began.elapsed() < REAL_PATIENCE;
            assert!(patient, "waited in vain: {what}\n{}", self.told());
            let step = Duration::from_millis(if passed < SOON { 1 } else { 25 });
            match self.time {
                Time::Held(_) => {
                    // A busy host may be late with the store's thread: its deadlines shall not pass meanwhile.
                    if passed > SOON {
                        std::thread::sleep(step / 125);
                    }
                    tokio::time::advance(step).await;
                }
                // Nothing is overtaken: it sleeps only when all others do.
                Time::InStep => tokio::time::sleep(step * 5).await,
                Time::Real => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// Lets this much time pass.
    pub(super) async fn pass(&self, time: Duration) {
        let until = tokio::time::Instant::now() + time;
        self.until("time passes", || tokio::time::Instant::now() >= until)
            .await;
    }

    /// Does what makes the tree restart its VMs, and waits until it has.
    pub(super) async fn restarted_by(&self, deed: impl AsyncFnOnce()) {
        let seat = || self.on().vms.directory.supervisor.get();
        let before = seat().unwrap().get_id();
        deed().await;
        let replaced = || seat().is_some_and(|now| now.get_id() != before);
        self.until("the tree was restarted", replaced).await;
    }

    pub(super) fn told(&self) -> String {
        let Some(tree) = self.tree.as_ref() else {
            return String::new();
        };
        let inventory = tree.handles.store.inventory();
        let vms = inventory.vms.values().map(|vm| {
            let vm = &vm.value;
            let (id, phase, why) = (&vm.id, vm.phase, &vm.detail);
            format!("{id}: {phase:?} wanted {:?}: {why}", vm.desired)
        });
        let vms: Vec<_> = vms.collect();
        format!("{vms:#?}\nlive: {:#?}", self.host.live())
    }

    /// Whether nothing is under way.
    pub(super) fn rests(&self) -> bool {
        let inventory = self.on().store.inventory();
        let rests = |vm: &VmRecord| match vm.phase {
            Phase::Running | Phase::Paused => true,
            // A delay that is longer than anybody waits.
            Phase::Backoff => u128::from(vm.backoff_ms) > PATIENCE.as_millis(),
            phase => phase.is_rest(),
        };
        let mut vms = inventory.vms.values();
        let recovered = self.tree().recovery.left() == 0;
        recovered && vms.all(|vm| rests(&vm.value) && vm.value.operations.is_empty())
    }

    /// Waits until nothing is under way, then says what must hold whatever has
    /// happened: see `oracle.rs`.
    pub(super) async fn oracle(&self) {
        self.oracle_on(&Promised::default()).await;
    }

    pub(super) async fn oracle_on(&self, promised: &Promised) {
        self.until("everything comes to rest", || self.rests())
            .await;
        let broken = verdict(&seen(self), promised);
        assert!(broken.is_empty(), "{broken:#?}\n{}", self.told());
    }
}

/// Lets tasks and the store's thread run while no time passes.
pub(super) async fn settle() {
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
    let rest = || std::thread::sleep(Duration::from_micros(60));
    let _ = tokio::task::spawn_blocking(rest).await;
}
