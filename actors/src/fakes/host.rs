//! The simulated host as a test, or a person, sees it.

use super::{
    clock::FakeClock,
    fence::FencedStorage,
    files::{FakeDisks, FakeImages},
    folders::FakeFolders,
    hypervisor::FakeHypervisor,
    manifests::{FakeManifests, MemoryManifests},
    network::{Bridge, FakeNetwork},
    script::Script,
    storage::MemoryStorage,
    world::{LiveQemu, Signalled, World},
};
use crate::{
    ports::{
        BridgeFacts, FoundProcess, Hypervisor, MachineNews, NetworkError, NetworkSurvey, Storage,
    },
    root::Ports,
};
use std::sync::{Arc, atomic::Ordering};
use vman_model::{
    DiskId, ImageName, NetworkName, NetworkPlan, TapName, VmId,
    drift::{Room, SeenFile},
    network::LinkState,
    vm::{ExitStatus, RunState},
};

/// One simulated host with everything on it. Clones are the same host.
///
/// [`FakeHost::ports`] gives the whole daemon what it acts through. A second
/// call is a second start of the daemon: what the first one still tries comes to
/// nothing, as if it had been killed at that moment, while its QEMUs run on.
#[derive(Clone)]
pub struct FakeHost {
    world: Arc<World>,
    storage: MemoryStorage,
    clock: FakeClock,
    /// Whether its files outlive the process; those of a dry run do not.
    lasting: bool,
    bridge: Arc<Bridge>,
    manifests: MemoryManifests,
}

impl Default for FakeHost {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeHost {
    /// A host where everything works within a few milliseconds, the same in
    /// every run.
    pub fn new() -> Self {
        Self::seeded(1)
    }

    /// The same; commits are made in step with the runtime, so that in one
    /// thread a seed tells everything that happens.
    pub fn in_step(seed: u64) -> Self {
        let host = Self::seeded(seed);
        host.world.keep_in_step();
        host
    }

    /// The same, with another row of random numbers.
    pub fn seeded(seed: u64) -> Self {
        let world = Arc::<World>::default();
        let clock = FakeClock::new(world.clone(), seed);
        Self {
            world,
            storage: MemoryStorage::new(),
            clock,
            lasting: true,
            bridge: Arc::default(),
            manifests: MemoryManifests::default(),
        }
    }

    /// A host that takes its time as a real one does, for people who try the
    /// daemon out (`VMAN_OPERATOR_DRY_RUN=1`). Its ids grow from `seed`, which
    /// must be another one at each start.
    pub fn simulated(seed: u64) -> Self {
        let mut host = Self::seeded(seed);
        host.lasting = false;
        host.script(|script| *script = Script::lifelike());
        host.clock.follow_real_time();
        host
    }

    /// What a daemon that starts now acts through.
    pub fn ports(&self) -> Ports {
        let (world, daemon) = (self.world.clone(), self.world.next_daemon());
        let storage = FencedStorage {
            inner: self.storage.clone(),
            world: world.clone(),
            daemon,
        };
        let w = || world.clone();
        Ports {
            storage: Arc::new(storage) as Arc<dyn Storage>,
            hypervisor: Arc::new(FakeHypervisor { world: w(), daemon }) as Arc<dyn Hypervisor>,
            disks: Arc::new(FakeDisks { world: w(), daemon }),
            images: Arc::new(FakeImages { world: w(), daemon }),
            folders: Arc::new(FakeFolders {
                world: w(),
                daemon,
                lasting: self.lasting,
            }),
            network: Arc::new(FakeNetwork {
                world: w(),
                bridge: self.bridge.clone(),
                daemon,
            }),
            manifests: Arc::new(FakeManifests {
                world: w(),
                daemon,
                files: self.manifests.clone(),
            }),
            clock: Arc::new(self.clock.clone()),
        }
    }

    /// Kills the daemon: whatever its tasks and threads still try comes to
    /// nothing. Its QEMUs run on.
    pub fn kill_daemon(&self) {
        self.world.next_daemon();
    }

    /// Says how every VM behaves that has no script of its own.
    pub fn script(&self, change: impl FnOnce(&mut Script)) {
        self.world.change_script(None, change);
    }

    /// Says how one VM behaves. The first word about it begins with what holds
    /// for all.
    pub fn script_vm(&self, vm: &VmId, change: impl FnOnce(&mut Script)) {
        self.world.change_script(Some(vm), change);
    }

    /// The rows of the store, and what becomes of its commits.
    pub fn storage(&self) -> &MemoryStorage {
        &self.storage
    }

    /// The manifests, and whether they can be written.
    pub fn manifests(&self) -> &MemoryManifests {
        &self.manifests
    }

    /// The wall clock.
    pub fn clock(&self) -> &FakeClock {
        &self.clock
    }

    /// From the next start of the daemon on, VMs are connected to a bridge.
    pub fn bridge(&self, facts: BridgeFacts) {
        self.networks(vec![facts]);
    }

    /// From the next start of the daemon on, there are these networks.
    pub fn networks(&self, facts: Vec<BridgeFacts>) {
        self.bridge.things().facts = facts;
    }

    /// The kernel cannot hold what guests receive to a limit.
    pub fn lack_limits(&self, why: &str) {
        self.bridge.things().unlimited.inbound = Some(why.to_owned());
    }

    /// What the bridge was told last, and how often it was told something.
    pub fn bridge_plan(&self) -> (Arc<NetworkPlan>, u64) {
        let things = self.bridge.things();
        (things.plan.clone(), things.settlings)
    }

    /// Whether the guest at an address answers; it does if nothing is said.
    pub fn set_silent(&self, address: core::net::Ipv4Addr, silent: bool) {
        let all = &mut self.bridge.things().silent;
        if silent {
            all.insert(address);
        } else {
            all.remove(&address);
        }
    }

    /// So many settlings of the bridge fail.
    pub fn fail_settlings(&self, times: u32) {
        self.bridge.things().errors = times;
        self.bridge.disturb();
    }

    /// Settlings of one network fail for this reason, until it is none.
    pub fn fail_network(&self, network: NetworkName, why: Option<&str>) {
        let mut things = self.bridge.things();
        match why {
            Some(why) => drop(things.failing.insert(network, NetworkError(why.to_owned()))),
            None => drop(things.failing.remove(&network)),
        }
        drop(things);
        self.bridge.disturb();
    }

    /// What a survey of the network tells from now on; none: what is there.
    pub fn network_seen(&self, seen: Option<NetworkSurvey>) {
        self.bridge.things().seen = seen;
    }

    /// Somebody meddles with the bridge: the next settling repairs this and
    /// finds these TAPs gone.
    pub fn meddle(&self, repair: &str, lost: Vec<TapName>) {
        let mut things = self.bridge.things();
        things.repairs.push(repair.to_owned());
        things.lost.extend(lost);
        drop(things);
        self.bridge.disturb();
    }

    /// So many commits panic in the writer's thread.
    pub fn panic_in_commits(&self, times: u32) {
        self.world.panic_in_commits(times);
    }

    /// So many of the observer's checks panic.
    pub fn panic_in_checks(&self, times: u32) {
        self.world.check_panics.store(times, Ordering::SeqCst);
    }

    /// How often the images folder was swept.
    pub fn image_sweeps(&self) -> u32 {
        self.world.image_sweeps.load(Ordering::SeqCst)
    }

    /// The QEMUs that live, by pid.
    pub fn live(&self) -> Vec<LiveQemu> {
        let things = self.world.things();
        things
            .qemus
            .values()
            .map(|qemu| qemu.told.clone())
            .collect()
    }

    /// The QEMU of a VM.
    pub fn qemu(&self, vm: &VmId) -> Option<LiveQemu> {
        self.live().into_iter().find(|qemu| qemu.vm == *vm)
    }

    /// The disk files there are.
    pub fn disk_files(&self) -> Vec<DiskId> {
        self.world.things().disks.iter().cloned().collect()
    }

    /// The ports of the host on which a VM's living QEMU listens, by host and guest.
    pub fn ports_of(&self, vm: &VmId) -> Vec<(u16, u16)> {
        let things = self.world.things();
        let mut qemus = things.qemus.values();
        let qemu = qemus.find(|qemu| qemu.told.vm == *vm);
        let ports = qemu.iter().flat_map(|qemu| &qemu.ports);
        ports
            .map(|port| (port.host_port, port.guest_port))
            .collect()
    }

    /// Another program has this port of the host, or gives it back.
    pub fn take_port(&self, port: u16, taken: bool) {
        let things = &mut *self.world.things();
        if taken {
            things.taken_ports.insert(port);
        } else {
            things.taken_ports.remove(&port);
        }
    }

    /// The image files there are.
    pub fn image_files(&self) -> Vec<ImageName> {
        self.world.things().images.keys().cloned().collect()
    }

    /// The disks that a living QEMU has.
    pub fn disks_of(&self, pid: u32) -> Vec<DiskId> {
        let seen = self.world.seen_disks(pid).unwrap_or_default();
        seen.into_iter().map(|held| held.disk).collect()
    }

    /// The network cards of a VM's living QEMU by slot, with their cables.
    pub fn nics_of(&self, vm: &VmId) -> Vec<(u8, LinkState)> {
        let things = self.world.things();
        let mut qemus = things.qemus.values();
        let qemu = qemus.find(|qemu| qemu.told.vm == *vm);
        let nics = qemu.iter().flat_map(|qemu| &qemu.nics);
        nics.map(|(slot, link)| (*slot, *link)).collect()
    }

    /// The VMs that hold something of the network.
    pub fn networks_held(&self) -> Vec<VmId> {
        self.world.things().networks.keys().cloned().collect()
    }

    /// What happened that must never happen: a second QEMU of a VM, something
    /// taken away under a QEMU.
    pub fn violations(&self) -> Vec<String> {
        self.world.violations()
    }

    /// The signals sent so far.
    pub fn signals(&self) -> Vec<Signalled> {
        self.world.signals()
    }

    /// How many QEMUs were ever started.
    pub fn launched(&self) -> u64 {
        self.world.launched()
    }

    /// The most QEMUs that were being started at the same time.
    pub fn most_starting(&self) -> usize {
        self.world.most_starting()
    }

    /// A VM's QEMU ends by itself.
    pub fn die(&self, vm: &VmId, status: ExitStatus, stderr: &str) {
        if let Some(qemu) = self.qemu(vm) {
            self.world.exit(qemu.identity.pid, &status, stderr);
        }
    }

    /// A VM's QEMU is gone, and nobody hears of it.
    pub fn vanish(&self, vm: &VmId) {
        if let Some(qemu) = self.qemu(vm) {
            self.world.vanish(qemu.identity.pid);
        }
    }

    /// A QEMU with our marks runs that this daemon has not started.
    pub fn stranger(&self, process: FoundProcess) {
        self.world.things().strangers.push(process);
    }

    /// A file lies in one of our folders that VMAN has not put there; one with
    /// the name of a file that is there stands in its place.
    pub fn stray(&self, room: Room, file: SeenFile) {
        let key = (room, file.name.clone());
        self.world.things().strays.insert(key, file);
    }

    /// Somebody removes the file of a disk.
    pub fn lose_disk(&self, disk: &DiskId) {
        self.world.things().disks.remove(disk);
    }

    /// Somebody removes the file of an image.
    pub fn lose_image(&self, image: &ImageName) {
        self.world.things().images.remove(image);
    }

    /// What was put away.
    pub fn trash(&self) -> Vec<(Room, String)> {
        self.world.things().trash.clone()
    }

    /// The guest powers off, panics, or meets an I/O error.
    pub fn guest(&self, vm: &VmId, state: RunState) {
        if let Some(qemu) = self.qemu(vm) {
            self.world.run_state(qemu.identity.pid, state);
        }
    }

    /// The guest resets its machine.
    pub fn guest_resets(&self, vm: &VmId) {
        if let Some(qemu) = self.qemu(vm) {
            self.world.tell(qemu.identity.pid, &MachineNews::GuestReset);
        }
    }

    /// A VM's QEMU stops answering (as with SIGSTOP), or answers again.
    pub fn hang(&self, vm: &VmId, hangs: bool) {
        let Some(qemu) = self.qemu(vm) else { return };
        let pid = qemu.identity.pid;
        if let Some(qemu) = self.world.things().qemus.get_mut(&pid) {
            qemu.told.hangs = hangs;
        }
        let news = if hangs {
            MachineNews::Deaf("it hangs, as scripted".to_owned())
        } else {
            MachineNews::Ready(qemu.state)
        };
        self.world.tell(pid, &news);
    }

    /// A VM's QEMU has a disk no more, and nobody hears of it.
    pub fn pull_disk(&self, vm: &VmId, disk: &DiskId) {
        if let Some(qemu) = self.qemu(vm) {
            self.world.unplug(qemu.identity.pid, disk);
        }
    }

    /// The guest writes to its console.
    pub fn print(&self, vm: &VmId, bytes: &[u8]) {
        self.world.print(vm, bytes);
    }

    /// The host is booted again: no process is left, and the daemon's neither.
    pub fn reboot(&self) {
        self.kill_daemon();
        self.world.reboot();
    }
}
