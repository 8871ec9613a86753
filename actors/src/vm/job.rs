//! What one VM does on the host, one job after another: claim, launch, adopt,
//! release. Each reports a fact.
//!
//! Must not: change a record, or know whether its actor still lives (facts of a
//! dead actor's job go nowhere; its successor looks for itself).
//! Look next: `effects.rs` for when a job runs.

use super::{VmDeps, VmMsg, disks, handle::HostGate, msg::Mailbag, nics};
use crate::{
    mailbox::ActorRef,
    ports::{
        AdoptPlan, Adoption, BootFiles, Bounds, LaunchPlan, Machine, NewsSink, NicPlan, NicRequest,
    },
};
use std::{
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use vman_model::{
    DiskFormat, DiskRecord,
    vm::{Claim, Confinement, Effect, ExitStatus, Fact, NetworkKind, VmRecord},
};

/// How long after an adoption that could not look it looks again.
const ADOPT_AGAIN: Duration = Duration::from_millis(500);

/// How a claim or launch under way is told that its QEMU is not wanted any more.
#[derive(Default)]
pub(super) struct Recall {
    wish: AtomicU8,
    told: Notify,
}

pub(super) const WISH_NONE: u8 = 0;
pub(super) const WISH_TERMINATE: u8 = 1;
pub(super) const WISH_KILL: u8 = 2;

impl Recall {
    pub(super) fn wish(&self, wish: u8) {
        self.wish.fetch_max(wish, Ordering::SeqCst);
        self.told.notify_one();
    }

    pub(super) fn wished(&self) -> u8 {
        self.wish.load(Ordering::SeqCst)
    }
}

/// The permit to launch, from the claim that waited for it until the record says that QEMU is up or
/// was not to be: no more VMs are told to be launching than may.
pub(super) type LaunchPermit = Arc<std::sync::Mutex<Option<OwnedSemaphorePermit>>>;

pub(super) fn take(permit: &LaunchPermit) -> Option<OwnedSemaphorePermit> {
    permit.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn given_up() -> Fact {
    Fact::ClaimDenied {
        detail: "the start was given up".to_owned(),
    }
}

/// One effect on the host.
pub(super) struct Job {
    pub(super) deps: VmDeps,
    pub(super) record: VmRecord,
    pub(super) vm: ActorRef<VmMsg>,
    pub(super) recall: Arc<Recall>,
    pub(super) permit: LaunchPermit,
    pub(super) gate: HostGate,
    pub(super) generation: u64,
}

impl Job {
    pub(super) async fn run(&self, effect: Effect) {
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
            | Effect::Plug { .. }
            | Effect::Unplug { .. }
            | Effect::Resize { .. }
            | Effect::LookAtDisks
            | Effect::LookForSpace
            | Effect::Nic { .. }
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
        let mut held = Vec::new();
        if self.recall.wished() != WISH_NONE {
            return given_up();
        }
        for disk in self.disk_records() {
            let file = self.deps.disks.file_of(&disk);
            if let Err(error) = self.deps.disks.ensure(file).await {
                return Fact::ClaimDenied {
                    detail: format!("disk {}: {error}", disk.id),
                };
            }
            held.push(disk.id);
        }
        let (id, incarnation) = (self.record.id.clone(), self.record.incarnation);
        let nics = match self
            .deps
            .network
            .claim(NicRequest {
                vm: id,
                incarnation,
                nics: nics::wishes(&self.record),
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
        let user_network = nics.iter().any(|nic| nic.kind == NetworkKind::User);
        let confinement = match self.confine(user_network).await {
            Ok(confinement) => confinement,
            Err(detail) => return Fact::ClaimDenied { detail },
        };
        // Waited for here and not in the launch, whose deadline runs already.
        let turn = async {
            self.deps.turns.wait(&self.record.id).await;
            self.deps.launches.clone().acquire_owned().await
        };
        let permit = tokio::select! {
            // In this order, and not by chance: a simulated life is the same each time.
            biased;
            permit = turn => permit.ok(),
            () = self.recall.told.notified() => None,
            // The VM's next actor waits for its turn.
            () = self.gate.superseded(self.generation) => None,
        };
        if permit.is_none() {
            return given_up();
        }
        *self.permit.lock().unwrap_or_else(PoisonError::into_inner) = permit;
        Fact::Claimed(Claim {
            disks: held,
            nics,
            confinement,
        })
    }

    /// How this life is confined; no user id that another VM's claim holds.
    async fn confine(&self, user_network: bool) -> Result<Confinement, String> {
        let inventory = self.deps.store.inventory();
        let taken = inventory.user_ids_of_others(&self.record.id).collect();
        let confined = self
            .deps
            .hypervisor
            .confine(&self.record.id, taken, user_network)
            .await;
        confined.map_err(|error| error.to_string())
    }

    /// The VM's disks, the root disk first.
    fn disk_records(&self) -> Vec<DiskRecord> {
        let inventory = self.deps.store.inventory();
        // Those that the record names: to look through all disks makes a start dearer with each VM
        // there is.
        let named = self.record.disk_ids();
        let mine = named
            .filter_map(|id| inventory.disks.get(id))
            .filter(|disk| disk.value.vm_id.as_ref() == Some(&self.record.id));
        let mut mine: Vec<_> = mine.map(|disk| disk.value.clone()).collect();
        mine.sort_by_key(|disk| (!disk.root, disk.id.clone()));
        mine
    }

    async fn launch(&self) {
        let plan = match self.plan().await {
            Ok(plan) => plan,
            Err(detail) => return self.tell(Fact::LaunchFailed { detail }),
        };
        if self.recall.wished() != WISH_NONE {
            let status = ExitStatus::NeverSpawned;
            return self.tell(Fact::Exited {
                status,
                stderr: String::new(),
            });
        }
        let (news, bag) = self.sink();
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
        let mut plans = Vec::new();
        for disk in self.disk_records() {
            let Some(slot) = disks::slot_of(&self.record, &disk) else {
                return Err(format!("disk {} has no slot in this VM", disk.id));
            };
            plans.push(disks::plan(&self.deps, &disk, slot).await?);
        }
        // The root disk is booted from first, then the others by slot.
        plans.sort_by_key(|disk| disk.slot);
        let claim = self.record.claim.clone().unwrap_or_default();
        let nics = claim.nics.iter().map(|nic| {
            let link = self.record.link_of(nic.nic).unwrap_or_default();
            NicPlan::of(&self.record.id, nic.nic, nic.kind, nic.mac, link)
        });
        Ok(LaunchPlan {
            vm: self.record.id.clone(),
            uuid: self.record.uuid,
            incarnation: self.record.incarnation,
            cpu_count: size.cpu_count,
            ram_mib: size.ram_mib,
            resources: self.record.spec.resources,
            firmware: size.firmware,
            boot: size.boot.as_ref().map(|boot| BootFiles {
                kernel: self.deps.disks.image_path(&boot.kernel),
                initrd: boot
                    .initrd
                    .as_ref()
                    .map(|name| self.deps.disks.image_path(name)),
                cmdline: boot.cmdline.clone(),
            }),
            disks: plans,
            nics: nics.collect(),
            confinement: claim.confinement.clone(),
        })
    }

    fn bounds(&self) -> Bounds {
        let size = &self.record.spec.size;
        let claim = self.record.claim.as_ref();
        let measures = claim.map(|claim| claim.confinement.measures.clone());
        Bounds {
            cpu_count: size.cpu_count,
            ram_mib: size.ram_mib,
            resources: self.record.spec.resources,
            measures: measures.unwrap_or_default(),
        }
    }

    async fn adopt(&self) {
        let plan = AdoptPlan {
            vm: self.record.id.clone(),
            uuid: self.record.uuid,
            incarnation: self.record.incarnation,
            process: self.record.process.clone(),
            bounds: Some(self.bounds()),
        };
        loop {
            let (news, bag) = self.sink();
            match self.deps.hypervisor.adopt(plan.clone(), news).await {
                Ok(Adoption::Found(machine)) => return self.found(machine, &bag, Fact::Found),
                Ok(Adoption::Gone) => {
                    let fact = self.gone().await;
                    return self.tell(fact);
                }
                Err(error) => {
                    let vm_id = &self.record.id;
                    tracing::warn!(%vm_id, %error, "cannot look for the VM's QEMU, trying again");
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep(ADOPT_AGAIN) => {}
                        // The VM's next actor looks for itself.
                        () = self.gate.superseded(self.generation) => return,
                    }
                }
            }
        }
    }

    /// It ended while nobody looked; that it was for memory is counted.
    async fn gone(&self) -> Fact {
        let counted = self.deps.hypervisor.oom_kills(&self.record.id).await;
        if !matches!(counted, Ok(Some(1..))) {
            return Fact::Gone;
        }
        Fact::Exited {
            status: ExitStatus::OomKilled,
            stderr: String::new(),
        }
    }

    /// Where a machine's news go: into a bag that is held until the machine is
    /// handed over.
    fn sink(&self) -> (NewsSink, Arc<Mailbag>) {
        let (vm, incarnation) = (self.vm.clone(), self.record.incarnation);
        let held = Arc::new(Mailbag::held());
        let bag = held.clone();
        let sink = NewsSink::new(move |news| {
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
