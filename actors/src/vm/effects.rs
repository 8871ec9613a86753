//! What a VmActor dispatches once it is durable. Every effect runs in a task
//! and reports facts; the actor waits for none of them.
//!
//! Claim, Launch, Adopt and Release change what is on the host: they run one
//! after another (the lane), also across a restart of the actor (the gate), so
//! that a spawn that is under way is never overtaken by a search for it.

use super::{VmDeps, VmMsg, VmState, handle::HostGate, msg::Mailbag};
use crate::ports::{
    AdoptPlan, Adoption, BootFiles, DiskPlan, LaunchPlan, Machine, MachineAction, NewDiskFile,
    NewsSink, NicPlan, NicRequest,
};
use ractor::ActorRef;
use std::{
    collections::VecDeque,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use vman_model::{
    DiskFormat, DiskRecord, Incarnation, TapName,
    vm::{Claim, Effect, ExitStatus, Fact, NetworkKind, QmpAction, VmRecord},
};

/// The root disk's slot on the pcie-root-ports; the first network card's is next.
const ROOT_DISK_SLOT: u8 = 0;
const FIRST_NIC_SLOT: u8 = 1;
/// How long after an adoption that could not look it looks again.
const ADOPT_AGAIN: Duration = Duration::from_millis(500);

/// How a claim or launch under way is told that its QEMU is not wanted any more.
#[derive(Default)]
struct Recall {
    wish: AtomicU8,
    told: Notify,
}

const WISH_NONE: u8 = 0;
const WISH_TERMINATE: u8 = 1;
const WISH_KILL: u8 = 2;

impl Recall {
    fn wish(&self, wish: u8) {
        self.wish.fetch_max(wish, Ordering::SeqCst);
        self.told.notify_one();
    }

    fn wished(&self) -> u8 {
        self.wish.load(Ordering::SeqCst)
    }
}

/// The order of what one VM does on the host.
pub(super) struct Lane {
    gate: HostGate,
    generation: u64,
    waiting: VecDeque<Effect>,
    busy: bool,
    recall: Arc<Recall>,
    permit: LaunchPermit,
}

/// The permit to launch, from the claim that waited for it to the launch.
type LaunchPermit = Arc<std::sync::Mutex<Option<OwnedSemaphorePermit>>>;

fn take(permit: &LaunchPermit) -> Option<OwnedSemaphorePermit> {
    permit.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl Lane {
    /// Takes over the VM's lane: what an earlier actor dispatched and has not
    /// begun is dropped, what it has begun is waited for by the first effect.
    pub(super) fn open(gate: HostGate) -> Self {
        // The lock is held by a running effect, possibly for seconds; only its
        // number is taken here.
        let generation = gate.next_generation();
        Self {
            gate,
            generation,
            waiting: VecDeque::new(),
            busy: false,
            recall: Arc::default(),
            permit: LaunchPermit::default(),
        }
    }
}

impl VmState {
    pub(super) fn dispatch(&mut self, myself: &ActorRef<VmMsg>, effects: Vec<Effect>) {
        let Some((_, record)) = self.record.as_ref() else {
            return;
        };
        let incarnation = record.incarnation;
        for effect in effects {
            match effect {
                Effect::Claim => {
                    // Now and not when its turn comes: a stop in between must
                    // reach it.
                    self.lane.recall = Arc::default();
                    self.lane.waiting.push_back(effect);
                }
                Effect::Launch | Effect::Adopt => self.lane.waiting.push_back(effect),
                Effect::Release { .. } => {
                    // A claim that still waits for its permit need not.
                    self.lane.recall.wish(WISH_TERMINATE);
                    self.lane.waiting.push_back(effect);
                }
                Effect::Act(operation, action) => {
                    self.act(myself, incarnation, Some(operation), action);
                }
                Effect::Continue => self.let_run(myself, incarnation),
                Effect::Powerdown => self.powerdown(),
                Effect::Terminate => self.end(WISH_TERMINATE),
                Effect::Kill => self.end(WISH_KILL),
                Effect::Arm(timer, after_ms) => {
                    let due = move || VmMsg::Timer(incarnation, timer);
                    myself.send_after(Duration::from_millis(after_ms), due);
                }
            }
        }
        self.run_lane(myself);
    }

    pub(super) fn lane_free(&mut self, myself: &ActorRef<VmMsg>) {
        self.lane.busy = false;
        self.run_lane(myself);
    }

    fn run_lane(&mut self, myself: &ActorRef<VmMsg>) {
        if self.lane.busy {
            return;
        }
        let Some((_, record)) = self.record.as_ref() else {
            return;
        };
        let Some(effect) = self.lane.waiting.pop_front() else {
            return;
        };
        self.lane.busy = true;
        let job = Job {
            deps: self.deps.clone(),
            record: record.clone(),
            vm: myself.clone(),
            recall: self.lane.recall.clone(),
            permit: self.lane.permit.clone(),
            gate: self.lane.gate.clone(),
            generation: self.lane.generation,
        };
        tokio::spawn(async move {
            let mut ended = LaneEnd {
                vm: job.vm.clone(),
                lost: true,
            };
            let turn = job.gate.lock().await;
            if job.gate.is_current(job.generation) {
                job.run(effect).await;
            }
            drop(turn);
            ended.lost = false;
        });
    }

    /// The machine of an incarnation is there. One that comes too late is
    /// dropped: its process lives on and is ended by whoever wants it ended.
    pub(super) fn machine(&mut self, incarnation: Incarnation, machine: Arc<dyn Machine>) {
        let current = self.record.as_ref().is_some_and(|(_, record)| {
            record.incarnation == incarnation && record.phase.may_have_process()
        });
        if current {
            end_machine(machine.as_ref(), self.lane.recall.wished());
            self.machine = Some((incarnation, machine));
        }
    }

    fn end(&mut self, wish: u8) {
        match &self.machine {
            Some((_, machine)) => end_machine(machine.as_ref(), wish),
            // Not there yet: the launch under way hears it.
            None => self.lane.recall.wish(wish),
        }
    }

    fn powerdown(&self) {
        if let Some((_, machine)) = &self.machine {
            // Whether the guest heard is told by what it does.
            tokio::spawn(machine.act(MachineAction::Powerdown));
        }
    }

    fn let_run(&self, myself: &ActorRef<VmMsg>, incarnation: Incarnation) {
        let Some((_, machine)) = &self.machine else {
            return;
        };
        let done = machine.act(MachineAction::Resume);
        let vm = myself.clone();
        tokio::spawn(async move {
            // That it runs is told by the machine itself, in the order of its news.
            if let Err(error) = done.await {
                let detail = error.to_string();
                let _ = vm.cast(VmMsg::Fact(incarnation, Fact::Deaf { detail }));
            }
        });
    }

    fn act(
        &self,
        myself: &ActorRef<VmMsg>,
        incarnation: Incarnation,
        operation: Option<vman_model::OperationId>,
        action: QmpAction,
    ) {
        let Some(operation) = operation else { return };
        let vm = myself.clone();
        let done = self.machine.as_ref().map(|(_, machine)| {
            machine.act(match action {
                QmpAction::Pause => MachineAction::Pause,
                QmpAction::Resume => MachineAction::Resume,
                QmpAction::Reset => MachineAction::Reset,
            })
        });
        tokio::spawn(async move {
            let error = match done {
                Some(done) => done.await.err().map(|error| error.to_string()),
                None => Some("no QMP connection".to_owned()),
            };
            let fact = Fact::ActionDone {
                operation,
                action,
                error,
            };
            let _ = vm.cast(VmMsg::Fact(incarnation, fact));
        });
    }
}

fn given_up() -> Fact {
    Fact::ClaimDenied {
        detail: "the start was given up".to_owned(),
    }
}

fn end_machine(machine: &dyn Machine, wish: u8) {
    match wish {
        WISH_NONE => {}
        WISH_TERMINATE => machine.terminate(),
        _ => machine.kill(),
    }
}

/// Tells the actor that the lane is free, or that the job panicked: then nobody
/// else would ever tell what became of it.
struct LaneEnd {
    vm: ActorRef<VmMsg>,
    lost: bool,
}

impl Drop for LaneEnd {
    fn drop(&mut self) {
        let _ = self.vm.cast(if self.lost {
            VmMsg::EffectLost
        } else {
            VmMsg::LaneFree
        });
    }
}

/// One effect on the host.
struct Job {
    deps: VmDeps,
    record: VmRecord,
    vm: ActorRef<VmMsg>,
    recall: Arc<Recall>,
    permit: LaunchPermit,
    gate: HostGate,
    generation: u64,
}

impl Job {
    async fn run(&self, effect: Effect) {
        match effect {
            Effect::Claim => {
                let fact = self.claim().await;
                self.tell(fact);
            }
            Effect::Launch => self.launch().await,
            Effect::Adopt => self.adopt().await,
            Effect::Release {
                erase,
                keep_root_disk,
            } => {
                let fact = match self.release(erase, keep_root_disk).await {
                    Ok(()) => Fact::Released { erased: erase },
                    Err(detail) => Fact::ReleaseFailed { detail },
                };
                self.tell(fact);
            }
            Effect::Act(..)
            | Effect::Continue
            | Effect::Powerdown
            | Effect::Terminate
            | Effect::Kill
            | Effect::Arm(..) => {}
        }
    }

    fn tell(&self, fact: Fact) {
        let _ = self.vm.cast(VmMsg::Fact(self.record.incarnation, fact));
    }

    async fn claim(&self) -> Fact {
        let mut disks = Vec::new();
        if self.recall.wished() != WISH_NONE {
            return given_up();
        }
        for disk in self.disk_records() {
            if let Err(error) = self.deps.disks.ensure(self.new_file(&disk)).await {
                return Fact::ClaimDenied {
                    detail: format!("disk {}: {error}", disk.id),
                };
            }
            disks.push(disk.id);
        }
        let (id, incarnation) = (self.record.id.clone(), self.record.incarnation);
        let nics = match self
            .deps
            .network
            .claim(NicRequest {
                vm: id,
                incarnation,
                mac: self.record.mac,
                address: None,
                cpu_count: self.record.spec.size.cpu_count,
            })
            .await
        {
            Ok(nics) => nics,
            Err(error) => {
                return Fact::ClaimDenied {
                    detail: error.to_string(),
                };
            }
        };
        // Waited for here and not in the launch, whose deadline runs already.
        let permit = tokio::select! {
            permit = self.deps.launches.clone().acquire_owned() => permit.ok(),
            () = self.recall.told.notified() => None,
            // The VM's next actor waits for its turn.
            () = self.gate.superseded(self.generation) => None,
        };
        if permit.is_none() {
            return given_up();
        }
        *self.permit.lock().unwrap_or_else(PoisonError::into_inner) = permit;
        Fact::Claimed(Claim { disks, nics })
    }

    /// The VM's disks, the root disk first.
    fn disk_records(&self) -> Vec<DiskRecord> {
        let inventory = self.deps.store.inventory();
        let mine = inventory
            .disks
            .values()
            .filter(|d| d.value.vm_id.as_ref() == Some(&self.record.id));
        let mut mine: Vec<_> = mine.map(|disk| disk.value.clone()).collect();
        mine.sort_by_key(|disk| (!disk.root, disk.id.clone()));
        mine
    }

    fn new_file(&self, disk: &DiskRecord) -> NewDiskFile {
        let inventory = self.deps.store.inventory();
        let image = disk
            .image
            .as_ref()
            .and_then(|name| inventory.images.get(name));
        NewDiskFile {
            id: disk.id.clone(),
            format: disk.format,
            size_mib: disk.size_mib,
            image: image.map(|image| (image.value.name.clone(), image.value.format)),
        }
    }

    async fn launch(&self) {
        let plan = match self.plan().await {
            Ok(plan) => plan,
            Err(detail) => return self.tell(Fact::LaunchFailed { detail }),
        };
        let permit = take(&self.permit);
        if self.recall.wished() != WISH_NONE {
            let status = ExitStatus::NeverSpawned;
            return self.tell(Fact::Exited {
                status,
                stderr: String::new(),
            });
        }
        // The permit is given back when QMP answers, or QEMU ends.
        let (news, bag) = self.sink(permit);
        match self.deps.hypervisor.launch(plan, news).await {
            Ok(machine) => self.found(machine, &bag, Fact::Spawned),
            Err(error) => self.tell(Fact::LaunchFailed {
                detail: error.to_string(),
            }),
        }
    }

    /// The machine first, then who it is, then its news: what follows from the
    /// news may be something for the machine to do.
    fn found(
        &self,
        machine: Arc<dyn Machine>,
        bag: &Arc<Mailbag>,
        fact: impl Fn(vman_model::vm::ProcessIdentity) -> Fact,
    ) {
        let identity = machine.identity();
        let _ = self
            .vm
            .cast(VmMsg::Machine(self.record.incarnation, machine));
        self.tell(fact(identity));
        if bag.open() {
            let news = VmMsg::News(self.record.incarnation, bag.clone());
            let _ = self.vm.cast(news);
        }
    }

    async fn plan(&self) -> Result<LaunchPlan, String> {
        let size = &self.record.spec.size;
        let mut disks = Vec::new();
        for (slot, disk) in self.disk_records().into_iter().enumerate() {
            let path = self
                .deps
                .disks
                .ensure(self.new_file(&disk))
                .await
                .map_err(|error| format!("disk {}: {error}", disk.id))?;
            disks.push(DiskPlan {
                node: format!("disk-{}", disk.id),
                path,
                format: disk.format,
                slot: ROOT_DISK_SLOT + u8::try_from(slot).unwrap_or(u8::MAX),
                serial: disk.id.as_str().chars().take(20).collect(),
            });
        }
        let claim = self.record.claim.clone().unwrap_or_default();
        let nics = claim.nics.iter().enumerate().map(|(n, nic)| NicPlan {
            kind: nic.kind,
            mac: nic.mac,
            slot: FIRST_NIC_SLOT + u8::try_from(n).unwrap_or(u8::MAX),
            tap: (nic.kind == NetworkKind::Bridge)
                .then(|| TapName::of(&self.record.id, u8::try_from(n).unwrap_or(u8::MAX))),
        });
        Ok(LaunchPlan {
            vm: self.record.id.clone(),
            uuid: self.record.uuid,
            incarnation: self.record.incarnation,
            cpu_count: size.cpu_count,
            ram_mib: size.ram_mib,
            firmware: size.firmware,
            boot: size.boot.as_ref().map(|boot| BootFiles {
                kernel: self.deps.disks.image_path(&boot.kernel),
                initrd: boot
                    .initrd
                    .as_ref()
                    .map(|name| self.deps.disks.image_path(name)),
                cmdline: boot.cmdline.clone(),
            }),
            disks,
            nics: nics.collect(),
        })
    }

    async fn adopt(&self) {
        let plan = AdoptPlan {
            vm: self.record.id.clone(),
            uuid: self.record.uuid,
            incarnation: self.record.incarnation,
            process: self.record.process.clone(),
        };
        loop {
            let (news, bag) = self.sink(None);
            match self.deps.hypervisor.adopt(plan.clone(), news).await {
                Ok(Adoption::Found(machine)) => return self.found(machine, &bag, Fact::Found),
                Ok(Adoption::Gone) => return self.tell(Fact::Gone),
                Err(error) => {
                    let vm_id = &self.record.id;
                    tracing::warn!(%vm_id, %error, "cannot look for the VM's QEMU, trying again");
                    tokio::select! {
                        () = tokio::time::sleep(ADOPT_AGAIN) => {}
                        // The VM's next actor looks for itself.
                        () = self.gate.superseded(self.generation) => return,
                    }
                }
            }
        }
    }

    /// Where a machine's news go: into a bag that is held until the machine is
    /// handed over. `permit` is held until it is up or has ended.
    fn sink(&self, permit: Option<OwnedSemaphorePermit>) -> (NewsSink, Arc<Mailbag>) {
        let (vm, incarnation) = (self.vm.clone(), self.record.incarnation);
        let held = Arc::new(Mailbag::held());
        let bag = held.clone();
        let permit = std::sync::Mutex::new(permit);
        let sink = NewsSink::new(move |news| {
            if let Ok(mut permit) = permit.lock() {
                permit.take();
            }
            if bag.put(news) {
                let _ = vm.cast(VmMsg::News(incarnation, bag.clone()));
            }
        });
        (sink, held)
    }

    async fn release(&self, erase: bool, keep_root_disk: bool) -> Result<(), String> {
        drop(take(&self.permit));
        let id = &self.record.id;
        let hypervisor = &self.deps.hypervisor;
        self.deps
            .network
            .release(id.clone())
            .await
            .map_err(|error| error.to_string())?;
        hypervisor
            .release(id)
            .await
            .map_err(|error| error.to_string())?;
        if !erase {
            return Ok(());
        }
        hypervisor
            .erase(id)
            .await
            .map_err(|error| error.to_string())?;
        if keep_root_disk {
            return Ok(());
        }
        for disk in self.disk_records().into_iter().filter(|disk| disk.root) {
            let format: DiskFormat = disk.format;
            self.deps
                .disks
                .remove(disk.id.clone(), format)
                .await
                .map_err(|error| format!("disk {}: {error}", disk.id))?;
        }
        Ok(())
    }
}
