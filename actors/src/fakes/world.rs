//! What is on the simulated host, and what must never be there.

use super::{
    disks::{of_path, shown},
    script::Script,
};
use crate::ports::{FoundProcess, LaunchPlan, MachineNews, NewsSink, NicAction, PortForward};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};
use vman_model::{
    BootId, DiskId, ImageName, Incarnation, VmId, VmUuid,
    drift::{Room, SeenFile},
    network::LinkState,
    vm::{ExitStatus, ProcessIdentity, RunState, SeenDisk},
};

/// Violations and signals kept; a test that looks has seen enough by then.
const MAX_TOLD: usize = 256;
/// Bytes kept of a console.
const MAX_CONSOLE: usize = 256 << 10;

/// A QEMU that lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveQemu {
    /// Its VM.
    pub vm: VmId,
    /// The VM's UUID.
    pub uuid: VmUuid,
    /// Its life.
    pub incarnation: Incarnation,
    /// Who it is.
    pub identity: ProcessIdentity,
    /// Its run state.
    pub state: RunState,
    /// Whether it hangs: no QMP, no SIGTERM.
    pub hangs: bool,
}

/// A signal that a machine was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signalled {
    /// Its VM.
    pub vm: VmId,
    /// Its process.
    pub pid: u32,
    /// SIGKILL, otherwise SIGTERM.
    pub kill: bool,
}

pub(super) struct Qemu {
    pub(super) told: LiveQemu,
    pub(super) disks: Vec<SeenDisk>,
    /// Its network cards by slot, with their cables.
    pub(super) nics: BTreeMap<u8, LinkState>,
    /// The ports of the host on which it listens for its guest.
    pub(super) ports: BTreeSet<PortForward>,
    /// The daemon whose child it is: only that one learns its exit status.
    parent: u64,
    /// The one QMP client: its number, its daemon and where its news go.
    client: Option<(u64, u64, NewsSink)>,
    /// The guest was asked to power off while its CPUs stood still.
    pub(super) asked_off: bool,
}

#[derive(Default)]
pub(super) struct Console {
    pub(super) kept: Vec<u8>,
    pub(super) written: u64,
}

#[derive(Default)]
pub(super) struct Things {
    pub(super) qemus: BTreeMap<u32, Qemu>,
    pub(super) consoles: BTreeMap<VmId, Console>,
    pub(super) networks: BTreeMap<VmId, Incarnation>,
    pub(super) disks: BTreeSet<DiskId>,
    /// Ports of the host that another program has.
    pub(super) taken_ports: BTreeSet<u16>,
    pub(super) images: BTreeMap<ImageName, u64>,
    /// Files that no port has made.
    pub(super) strays: BTreeMap<(Room, String), SeenFile>,
    pub(super) trash: Vec<(Room, String)>,
    /// QEMUs of ours that belong to no VM of this daemon.
    pub(super) strangers: Vec<FoundProcess>,
    default_script: Script,
    scripts: BTreeMap<VmId, Script>,
    violations: Vec<String>,
    signals: Vec<Signalled>,
    launched: u64,
    starting: usize,
    most_starting: usize,
    next_pid: u32,
    next_client: u64,
    boot: u64,
}

/// The host.
#[derive(Default)]
pub(super) struct World {
    things: Mutex<Things>,
    /// The number of the daemon that lives; what earlier ones still try comes
    /// to nothing.
    daemon: AtomicU64,
    commit: Mutex<()>,
    /// Commits are made in step with the runtime, by no thread of their own.
    in_step: AtomicBool,
    commit_panics: AtomicU32,
    pub(super) check_panics: AtomicU32,
    pub(super) image_sweeps: AtomicU32,
}

impl World {
    pub(super) fn things(&self) -> MutexGuard<'_, Things> {
        self.things.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new daemon begins, and whatever lived before it is dead.
    pub(super) fn next_daemon(&self) -> u64 {
        let _turn = self.commit_turn();
        self.daemon.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(super) fn is_present(&self, daemon: u64) -> bool {
        self.daemon.load(Ordering::SeqCst) == daemon
    }

    pub(super) fn commit_turn(&self) -> MutexGuard<'_, ()> {
        self.commit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn storage_blocks(&self) -> bool {
        !self.in_step.load(Ordering::SeqCst)
    }

    pub(super) fn keep_in_step(&self) {
        self.in_step.store(true, Ordering::SeqCst);
    }

    pub(super) fn panic_in_commits(&self, times: u32) {
        self.commit_panics.store(times, Ordering::SeqCst);
    }

    pub(super) fn commit_shall_panic(&self) -> bool {
        spend_one(&self.commit_panics)
    }

    /// Waits; a caller of a daemon that is dead waits for ever.
    pub(super) async fn pause(&self, daemon: u64, time: Duration) {
        if time.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(time).await;
        }
        if !self.is_present(daemon) {
            std::future::pending::<()>().await;
        }
    }

    pub(super) fn boot_id(&self) -> BootId {
        boot_id(self.things().boot)
    }

    pub(super) fn script(&self, vm: &VmId) -> Script {
        let things = self.things();
        let of_vm = things.scripts.get(vm);
        of_vm.unwrap_or(&things.default_script).clone()
    }

    pub(super) fn change_script(&self, vm: Option<&VmId>, change: impl FnOnce(&mut Script)) {
        let things = &mut *self.things();
        change(match vm {
            None => &mut things.default_script,
            Some(vm) => {
                let default = &things.default_script;
                let entry = things.scripts.entry(vm.clone());
                entry.or_insert_with(|| default.clone())
            }
        });
    }

    /// Uses up one of the failures that `which` counts, if any is left.
    pub(super) fn spend(&self, vm: &VmId, which: impl FnOnce(&mut Script) -> &mut u32) -> bool {
        let things = &mut *self.things();
        let script = things
            .scripts
            .get_mut(vm)
            .unwrap_or(&mut things.default_script);
        let left = which(script);
        let some = *left > 0;
        *left = left.saturating_sub(1);
        some
    }

    pub(super) fn violation(&self, what: String) {
        violate(&mut self.things(), what);
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.things().violations.clone()
    }

    pub(super) fn signals(&self) -> Vec<Signalled> {
        self.things().signals.clone()
    }

    pub(super) fn launched(&self) -> u64 {
        self.things().launched
    }

    pub(super) fn most_starting(&self) -> usize {
        self.things().most_starting
    }

    pub(super) fn claim_network(&self, vm: &VmId, incarnation: Incarnation) {
        self.things().networks.insert(vm.clone(), incarnation);
    }

    pub(super) fn release_network(&self, vm: &VmId) {
        let things = &mut *self.things();
        if things.lives(vm) {
            violate(
                things,
                format!("the network of {vm} was released under its QEMU"),
            );
        }
        things.networks.remove(vm);
    }

    /// A QEMU comes to life.
    pub(super) fn spawn(&self, plan: &LaunchPlan, daemon: u64, news: NewsSink) -> (u32, u64) {
        let things = &mut *self.things();
        if things.lives(&plan.vm) {
            violate(things, format!("a second QEMU of {} was started", plan.vm));
        }
        things.next_pid += 1;
        things.next_client += 1;
        things.launched += 1;
        things.consoles.entry(plan.vm.clone()).or_default();
        let (pid, client) = (1_000 + things.next_pid, things.next_client);
        let identity = ProcessIdentity {
            pid,
            start_time: u64::from(things.next_pid) * 10,
            boot_id: boot_id(things.boot),
        };
        let told = LiveQemu {
            vm: plan.vm.clone(),
            uuid: plan.uuid,
            incarnation: plan.incarnation,
            identity,
            state: RunState::Prelaunch,
            hangs: false,
        };
        let paths = plan.disks.iter().map(|disk| disk.path.as_path());
        let disks = paths.filter_map(of_path).map(shown);
        let qemu = Qemu {
            told,
            ports: BTreeSet::new(),
            nics: plan.nics.iter().map(|nic| (nic.slot, nic.link)).collect(),
            disks: disks.collect(),
            parent: daemon,
            client: Some((client, daemon, news)),
            asked_off: false,
        };
        let is_there = |held: &SeenDisk| things.disks.contains(&held.disk);
        if !qemu.disks.iter().all(is_there) {
            violate(things, format!("{} was started without its disk", plan.vm));
        }
        things.qemus.insert(pid, qemu);
        (pid, client)
    }

    /// Something is done to a network card of a living QEMU.
    pub(super) fn work_on_nic(&self, pid: u32, action: &NicAction) {
        let things = &mut *self.things();
        let Some(qemu) = things.qemus.get_mut(&pid) else {
            return;
        };
        match action {
            NicAction::Plug(plan, _) => {
                qemu.nics.entry(plan.slot).or_insert(plan.link);
            }
            NicAction::Unplug(slot) => {
                qemu.nics.remove(slot);
            }
            NicAction::Link(slot, link) => {
                qemu.nics.insert(*slot, *link);
            }
        }
    }

    /// Counts launches that are under way at once.
    pub(super) fn starting(&self, more: bool) {
        let things = &mut *self.things();
        if more {
            things.starting += 1;
            things.most_starting = things.most_starting.max(things.starting);
        } else {
            things.starting = things.starting.saturating_sub(1);
        }
    }

    /// A QMP client takes the place of the one before.
    pub(super) fn attach(&self, pid: u32, daemon: u64, news: NewsSink) -> Option<u64> {
        let things = &mut *self.things();
        things.next_client += 1;
        let client = things.next_client;
        let qemu = things.qemus.get_mut(&pid)?;
        qemu.client = Some((client, daemon, news));
        Some(client)
    }

    pub(super) fn detach(&self, pid: u32, client: u64) {
        let gone = {
            let things = &mut *self.things();
            let qemu = things.qemus.get_mut(&pid);
            qemu.and_then(|qemu| qemu.client.take_if(|(of, _, _)| *of == client))
        };
        // Dropped outside the lock: a sink may hold anything.
        drop(gone);
    }

    pub(super) fn is_attached(&self, pid: u32, client: u64) -> bool {
        let things = self.things();
        let of = things.qemus.get(&pid).and_then(|qemu| qemu.client.as_ref());
        of.is_some_and(|(of, daemon, _)| *of == client && self.is_present(*daemon))
    }

    /// Tells the QMP client, as often as the script says.
    pub(super) fn tell(&self, pid: u32, news: &MachineNews) {
        let (sink, times) = {
            let things = self.things();
            let Some(qemu) = things.qemus.get(&pid) else {
                return;
            };
            let Some((_, daemon, sink)) = &qemu.client else {
                return;
            };
            let script = things.scripts.get(&qemu.told.vm);
            let times = script.unwrap_or(&things.default_script).news_told;
            (self.is_present(*daemon).then(|| sink.clone()), times)
        };
        for _ in 0..times {
            if let Some(sink) = &sink {
                sink.tell(news.clone());
            }
        }
    }

    /// The run state changes, and the client is told.
    pub(super) fn run_state(&self, pid: u32, state: RunState) {
        {
            let things = &mut *self.things();
            let Some(qemu) = things.qemus.get_mut(&pid) else {
                return;
            };
            qemu.told.state = state;
        }
        self.tell(pid, &MachineNews::RunState(state));
    }

    /// The process ends.
    pub(super) fn exit(&self, pid: u32, status: &ExitStatus, stderr: &str) {
        let Some(qemu) = self.things().qemus.remove(&pid) else {
            return;
        };
        let Some((_, daemon, sink)) = qemu.client else {
            return;
        };
        if !self.is_present(daemon) {
            return;
        }
        let status = if daemon == qemu.parent {
            status.clone()
        } else {
            ExitStatus::Unknown
        };
        let stderr = stderr.to_owned();
        sink.tell(MachineNews::Exited { status, stderr });
    }

    /// The process is gone, and nobody is told.
    pub(super) fn vanish(&self, pid: u32) {
        let gone = self.things().qemus.remove(&pid);
        drop(gone);
    }

    pub(super) fn signal(&self, vm: &VmId, pid: u32, kill: bool) {
        let signals = &mut self.things().signals;
        if signals.len() < MAX_TOLD {
            let vm = vm.clone();
            signals.push(Signalled { vm, pid, kill });
        }
    }

    pub(super) fn print(&self, vm: &VmId, bytes: &[u8]) {
        let things = &mut *self.things();
        let console = things.consoles.entry(vm.clone()).or_default();
        console.written += bytes.len() as u64;
        console.kept.extend_from_slice(bytes);
        let over = console.kept.len().saturating_sub(MAX_CONSOLE);
        console.kept.drain(..over);
    }

    /// The host is booted again: no process is left.
    pub(super) fn reboot(&self) {
        let gone = {
            let things = &mut *self.things();
            things.boot += 1;
            things.networks.clear();
            std::mem::take(&mut things.qemus)
        };
        drop(gone);
    }
}

/// Uses up one of what is left, if there is any.
pub(super) fn spend_one(left: &AtomicU32) -> bool {
    let less = |left: u32| left.checked_sub(1);
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
        .is_ok()
}

fn boot_id(boot: u64) -> BootId {
    BootId::parse(&format!("simulated-boot-{boot}")).expect("letters, hyphens and digits are an id")
}

pub(super) fn violate(things: &mut Things, what: String) {
    if things.violations.len() < MAX_TOLD {
        things.violations.push(what);
    }
}

impl Things {
    pub(super) fn lives(&self, vm: &VmId) -> bool {
        self.qemus.values().any(|qemu| qemu.told.vm == *vm)
    }
}
