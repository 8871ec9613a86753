//! The doors: every port with a step before and after what it changes. What only
//! reads passes through.
//!
//! A daemon that has died does nothing any more: what it still tries waits for
//! ever, or is refused where it cannot wait.

use super::{Fate, Side, Step, Watch};
use crate::{
    ports::{
        AdoptPlan, Adoption, BoxFuture, CommitError, ConsoleTail, DiskAction, DiskError, DiskFiles,
        FileError, Folders, FoundManifest, FoundProcess, HostError, HostProbe, Hypervisor,
        ImageFiles, KeptCopy, LaunchError, LaunchPlan, LoadError, Machine, MachineAction,
        MachineError, ManifestChange, ManifestFiles, Network, NetworkError, NetworkFacts,
        NetworkSurvey, NewDiskFile, NewsSink, NicAction, NicPlan, NicRequest, PortForward, Row,
        SeenFile, Settled, StagedImage, Storage, Table, Traffic, Upload, storage::KeyValue,
    },
    root::Ports,
    store::codec::{self, Kind},
};
use bytes::Bytes;
use core::net::Ipv4Addr;
use futures_util::stream::BoxStream;
use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};
use vman_model::{
    DiskFormat, DiskId, ImageKind, ImageName, Incarnation, NetworkPlan, Revision, TapName, UnixMs,
    VmId,
    drift::{Room, SeenFiles},
    vm::{Confinement, NicClaim, Phase, ProcessIdentity, SeenDisk, VmRecord},
};

/// The same ports, every step of them told to `watch`.
pub fn watched(ports: Ports, watch: Arc<dyn Watch>) -> Ports {
    let door = Door(watch);
    Ports {
        storage: Arc::new(Watched::new(ports.storage, &door)),
        hypervisor: Arc::new(Watched::new(ports.hypervisor, &door)),
        disks: Arc::new(Watched::new(ports.disks, &door)),
        images: Arc::new(Watched::new(ports.images, &door)),
        folders: Arc::new(Watched::new(ports.folders, &door)),
        network: Arc::new(Watched::new(ports.network, &door)),
        manifests: Arc::new(Watched::new(ports.manifests, &door)),
        clock: ports.clock,
    }
}

/// One port and its door.
struct Watched<P: ?Sized> {
    inner: Arc<P>,
    door: Door,
}

impl<P: ?Sized> Watched<P> {
    fn new(inner: Arc<P>, door: &Door) -> Self {
        Self {
            inner,
            door: door.clone(),
        }
    }

    /// Both, for a future that outlives the call.
    fn parts(&self) -> (Arc<P>, Door) {
        (self.inner.clone(), self.door.clone())
    }
}

#[derive(Clone)]
struct Door(Arc<dyn Watch>);

impl Door {
    /// For who can wait.
    async fn pass(&self, point: &'static str, side: Side) {
        match self.0.pass(Step { point, side }) {
            Fate::Go => {}
            Fate::Late(time) => {
                tokio::time::sleep(time).await;
                if !self.0.lives() {
                    std::future::pending::<()>().await;
                }
            }
            Fate::Dead => std::future::pending().await,
        }
    }

    /// For who cannot: whether the daemon lives.
    fn lives(&self, point: &'static str, side: Side) -> bool {
        self.0.pass(Step { point, side }) != Fate::Dead
    }

    async fn through<T>(self, point: &'static str, effect: impl AsyncFnOnce() -> T) -> T {
        self.pass(point, Side::Before).await;
        let result = effect().await;
        self.pass(point, Side::After).await;
        result
    }
}

/// What a commit is named after: the most telling of its rows.
fn point_of(batch: &[Row]) -> &'static str {
    let of = |table: Table| batch.iter().find(|row| row.table == table);
    if let Some(row) = of(Table::Vms) {
        return match &row.value {
            None => "store.vm-erased",
            Some(bytes) => match codec::decode::<(Revision, VmRecord)>(Kind::Vm, bytes) {
                Ok((_, vm)) => point_of_phase(vm.phase),
                Err(error) => unreachable!("a row that was just encoded: {error}"),
            },
        };
    }
    let rest = [
        (Table::Disks, "store.disk", "store.disk-erased"),
        (Table::Images, "store.image", "store.image-erased"),
        (Table::Templates, "store.template", "store.template-erased"),
        (Table::Forwards, "store.forward", "store.forward-erased"),
        (Table::Tokens, "store.token", "store.token-erased"),
    ];
    let named = rest.into_iter().find_map(|(table, put, erased)| {
        let row = of(table)?;
        Some(if row.value.is_some() { put } else { erased })
    });
    named.unwrap_or("store.event")
}

fn point_of_phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Stopped => "store.vm-stopped",
        Phase::Claiming => "store.vm-claiming",
        Phase::Launching => "store.vm-launching",
        Phase::Running => "store.vm-running",
        Phase::Paused => "store.vm-paused",
        Phase::Stopping => "store.vm-stopping",
        Phase::Killing => "store.vm-killing",
        Phase::Releasing => "store.vm-releasing",
        Phase::Backoff => "store.vm-backoff",
        Phase::Failed => "store.vm-failed",
        Phase::Unknown => "store.vm-unknown",
    }
}

impl Storage for Watched<dyn Storage> {
    fn open(&self) -> Result<(), LoadError> {
        self.inner.open()
    }

    fn load(&self, table: Table) -> Result<Vec<KeyValue>, LoadError> {
        self.inner.load(table)
    }

    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<KeyValue>, LoadError> {
        self.inner.range(table, from, limit)
    }

    fn moment(&self, tables: &[Table]) -> Result<Vec<(Table, KeyValue)>, LoadError> {
        self.inner.moment(tables)
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, LoadError> {
        self.inner.get(table, key)
    }

    fn commit(&self, batch: &[Row]) -> Result<(), CommitError> {
        let point = point_of(batch);
        let died = || CommitError::Refused("this daemon was killed".to_owned());
        if !self.door.lives(point, Side::Before) {
            return Err(died());
        }
        let result = self.inner.commit(batch);
        if !self.door.lives(point, Side::After) {
            return Err(died());
        }
        result
    }

    /// At an upgrade, before anything is changed: it has tests of its own.
    fn backup(&self, suffix: &str) -> Result<String, CommitError> {
        self.inner.backup(suffix)
    }

    /// A file that nothing is read from: what a kill leaves of it is the next start's to remove.
    fn keep_copy(&self, at: UnixMs, keep: usize) -> Result<KeptCopy, CommitError> {
        self.inner.keep_copy(at, keep)
    }

    fn blocks(&self) -> bool {
        self.inner.blocks()
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }
}

impl Hypervisor for Watched<dyn Hypervisor> {
    fn confine(
        &self,
        vm: &VmId,
        taken: BTreeSet<u32>,
        user_network: bool,
    ) -> BoxFuture<'static, Result<Confinement, HostError>> {
        let ((inner, door), vm) = (self.parts(), vm.clone());
        let effect = async move || inner.confine(&vm, taken, user_network).await;
        Box::pin(door.through("hypervisor.confine", effect))
    }

    fn launch(
        &self,
        plan: LaunchPlan,
        news: NewsSink,
    ) -> BoxFuture<'static, Result<Arc<dyn Machine>, LaunchError>> {
        let (inner, door) = self.parts();
        let machines = door.clone();
        let effect = async move || {
            let machine = inner.launch(plan, news).await?;
            Ok(Arc::new(Watched::new(machine, &machines)) as Arc<dyn Machine>)
        };
        Box::pin(door.through("hypervisor.launch", effect))
    }

    fn adopt(
        &self,
        plan: AdoptPlan,
        news: NewsSink,
    ) -> BoxFuture<'static, Result<Adoption, HostError>> {
        let (inner, door) = self.parts();
        let machines = door.clone();
        let effect = async move || {
            Ok(match inner.adopt(plan, news).await? {
                Adoption::Found(machine) => {
                    Adoption::Found(Arc::new(Watched::new(machine, &machines)))
                }
                Adoption::Gone => Adoption::Gone,
            })
        };
        Box::pin(door.through("hypervisor.adopt", effect))
    }

    fn replace_tap(
        &self,
        vm: VmId,
        incarnation: Incarnation,
        nic: NicPlan,
        cpu_count: u32,
    ) -> BoxFuture<'static, Result<bool, HostError>> {
        let (inner, door) = self.parts();
        let effect = async move || inner.replace_tap(vm, incarnation, nic, cpu_count).await;
        Box::pin(door.through("hypervisor.replace-tap", effect))
    }

    fn forward_ports(
        &self,
        vm: VmId,
        incarnation: Incarnation,
        slot: u8,
        ports: BTreeSet<PortForward>,
    ) -> BoxFuture<'static, Result<bool, HostError>> {
        let (inner, door) = self.parts();
        let effect = async move || inner.forward_ports(vm, incarnation, slot, ports).await;
        Box::pin(door.through("hypervisor.forward-ports", effect))
    }

    fn release(&self, vm: &VmId) -> BoxFuture<'static, Result<(), HostError>> {
        let ((inner, door), vm) = (self.parts(), vm.clone());
        let effect = async move || inner.release(&vm).await;
        Box::pin(door.through("hypervisor.release", effect))
    }

    fn erase(&self, vm: &VmId) -> BoxFuture<'static, Result<(), HostError>> {
        let ((inner, door), vm) = (self.parts(), vm.clone());
        let effect = async move || inner.erase(&vm).await;
        Box::pin(door.through("hypervisor.erase", effect))
    }

    fn survey(&self) -> BoxFuture<'static, Result<Vec<FoundProcess>, HostError>> {
        self.inner.survey()
    }

    fn console(&self, vm: &VmId, max: usize) -> BoxFuture<'static, Result<ConsoleTail, HostError>> {
        self.inner.console(vm, max)
    }

    fn follow_console(&self, vm: &VmId, backlog: usize) -> BoxStream<'static, Bytes> {
        self.inner.follow_console(vm, backlog)
    }

    fn trim_logs(&self, vms: Vec<VmId>) -> BoxFuture<'static, Result<(), HostError>> {
        let (inner, door) = self.parts();
        let effect = async move || inner.trim_logs(vms).await;
        Box::pin(door.through("hypervisor.trim-logs", effect))
    }

    fn oom_kills(&self, vm: &VmId) -> BoxFuture<'static, Result<Option<u64>, HostError>> {
        self.inner.oom_kills(vm)
    }

    fn probe(&self) -> BoxFuture<'static, HostProbe> {
        self.inner.probe()
    }
}

impl Watched<dyn Machine> {
    fn signal(&self, point: &'static str, send: impl FnOnce(&dyn Machine)) {
        if self.door.lives(point, Side::Before) {
            send(self.inner.as_ref());
            self.door.lives(point, Side::After);
        }
    }
}

impl Machine for Watched<dyn Machine> {
    fn identity(&self) -> ProcessIdentity {
        self.inner.identity()
    }

    fn act(&self, action: MachineAction) -> BoxFuture<'static, Result<(), MachineError>> {
        let point = match action {
            MachineAction::Pause => "machine.pause",
            MachineAction::Resume => "machine.resume",
            MachineAction::Reset => "machine.reset",
            MachineAction::Powerdown => "machine.powerdown",
            MachineAction::Ping => return self.inner.act(action),
        };
        // Made now, awaited later: what waits must not hold the machine.
        let effect = self.inner.act(action);
        Box::pin(self.door.clone().through(point, async move || effect.await))
    }

    fn disk(&self, action: DiskAction) -> BoxFuture<'static, Result<(), DiskError>> {
        let point = match action {
            DiskAction::Open(_) => "machine.open",
            DiskAction::Plug { .. } => "machine.plug",
            DiskAction::Unplug(_) => "machine.unplug",
            DiskAction::Resize(..) => "machine.resize",
            DiskAction::Limit(..) => "machine.limit",
        };
        let effect = self.inner.disk(action);
        Box::pin(self.door.clone().through(point, async move || effect.await))
    }

    fn nic(&self, action: NicAction) -> BoxFuture<'static, Result<(), DiskError>> {
        let point = match action {
            NicAction::Plug(..) => "machine.plug-nic",
            NicAction::Unplug(_) => "machine.unplug-nic",
            NicAction::Link(..) => "machine.link-nic",
        };
        let effect = self.inner.nic(action);
        Box::pin(self.door.clone().through(point, async move || effect.await))
    }

    fn disks(&self) -> BoxFuture<'static, Result<Vec<SeenDisk>, MachineError>> {
        self.inner.disks()
    }

    fn terminate(&self) {
        self.signal("machine.terminate", <dyn Machine>::terminate);
    }

    fn kill(&self) {
        self.signal("machine.kill", <dyn Machine>::kill);
    }
}

impl DiskFiles for Watched<dyn DiskFiles> {
    fn ensure(&self, disk: NewDiskFile) -> BoxFuture<'static, Result<PathBuf, FileError>> {
        let (inner, door) = self.parts();
        let effect = async move || inner.ensure(disk).await;
        Box::pin(door.through("disks.ensure", effect))
    }

    fn remove(&self, id: DiskId, format: DiskFormat) -> BoxFuture<'static, Result<(), FileError>> {
        let (inner, door) = self.parts();
        let effect = async move || inner.remove(id, format).await;
        Box::pin(door.through("disks.remove", effect))
    }

    fn look(
        &self,
        disks: Vec<(DiskId, DiskFormat)>,
    ) -> BoxFuture<'static, Result<Vec<Option<SeenFile>>, FileError>> {
        self.inner.look(disks)
    }

    fn space(&self) -> BoxFuture<'static, Result<u64, FileError>> {
        self.inner.space()
    }
}

impl ImageFiles for Watched<dyn ImageFiles> {
    fn begin(&self, name: &ImageName) -> BoxFuture<'static, Result<Box<dyn Upload>, FileError>> {
        let ((inner, door), name) = (self.parts(), name.clone());
        let uploads = door.clone();
        let effect = async move || {
            let inner = inner.begin(&name).await?;
            Ok(Box::new(WatchedUpload {
                inner,
                door: uploads,
            }) as Box<dyn Upload>)
        };
        Box::pin(door.through("images.begin", effect))
    }

    fn publish(
        &self,
        name: &ImageName,
        staged: StagedImage,
    ) -> BoxFuture<'static, Result<(), FileError>> {
        let ((inner, door), name) = (self.parts(), name.clone());
        let effect = async move || inner.publish(&name, staged).await;
        Box::pin(door.through("images.publish", effect))
    }

    fn remove(&self, name: &ImageName) -> BoxFuture<'static, Result<(), FileError>> {
        let ((inner, door), name) = (self.parts(), name.clone());
        let effect = async move || inner.remove(&name).await;
        Box::pin(door.through("images.remove", effect))
    }

    fn path(&self, name: &ImageName) -> PathBuf {
        self.inner.path(name)
    }

    fn sweep(&self, known: Vec<ImageName>) -> BoxFuture<'static, Result<(), FileError>> {
        let (inner, door) = self.parts();
        let effect = async move || inner.sweep(known).await;
        Box::pin(door.through("images.sweep", effect))
    }
}

struct WatchedUpload {
    inner: Box<dyn Upload>,
    door: Door,
}

impl Upload for WatchedUpload {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), FileError>> {
        let (inner, door) = (&mut self.inner, self.door.clone());
        let effect = async move || inner.write(bytes).await;
        Box::pin(door.through("images.write", effect))
    }

    fn finish(
        self: Box<Self>,
        kind: ImageKind,
        sha256: Option<String>,
    ) -> BoxFuture<'static, Result<StagedImage, FileError>> {
        let (inner, door) = (self.inner, self.door);
        let effect = async move || inner.finish(kind, sha256).await;
        Box::pin(door.through("images.finish", effect))
    }
}

impl Folders for Watched<dyn Folders> {
    fn look(&self) -> BoxFuture<'static, Result<Option<SeenFiles>, HostError>> {
        self.inner.look()
    }

    fn holds_ours(&self, process: ProcessIdentity) -> BoxFuture<'static, Result<bool, HostError>> {
        self.inner.holds_ours(process)
    }

    fn put_away(
        &self,
        room: Room,
        name: String,
        grace: Duration,
    ) -> BoxFuture<'static, Result<bool, HostError>> {
        let (inner, door) = self.parts();
        let effect = async move || inner.put_away(room, name, grace).await;
        Box::pin(door.through("folders.put-away", effect))
    }

    fn empty_trash(&self, retention: Duration) -> BoxFuture<'static, Result<usize, HostError>> {
        let (inner, door) = self.parts();
        let effect = async move || inner.empty_trash(retention).await;
        Box::pin(door.through("folders.empty-trash", effect))
    }
}

impl ManifestFiles for Watched<dyn ManifestFiles> {
    fn list(&self) -> BoxFuture<'static, Result<Vec<FoundManifest>, FileError>> {
        self.inner.list()
    }

    fn change(&self, changes: Vec<ManifestChange>) -> BoxFuture<'static, Result<(), FileError>> {
        let (inner, door) = self.parts();
        let effect = async move || inner.change(changes).await;
        Box::pin(door.through("manifests.change", effect))
    }
}

impl Network for Watched<dyn Network> {
    fn facts(&self) -> NetworkFacts {
        self.inner.facts()
    }

    fn settle(
        &self,
        plan: Arc<NetworkPlan>,
        running: Vec<TapName>,
    ) -> BoxFuture<'static, Result<Settled, NetworkError>> {
        let (inner, door) = self.parts();
        let effect = async move || inner.settle(plan, running).await;
        Box::pin(door.through("network.settle", effect))
    }

    fn disturbances(&self) -> BoxStream<'static, ()> {
        self.inner.disturbances()
    }

    fn claim(
        &self,
        request: NicRequest,
    ) -> BoxFuture<'static, Result<Vec<NicClaim>, NetworkError>> {
        let (inner, door) = self.parts();
        let effect = async move || inner.claim(request).await;
        Box::pin(door.through("network.claim", effect))
    }

    fn release(&self, vm: VmId) -> BoxFuture<'static, Result<(), NetworkError>> {
        let (inner, door) = self.parts();
        let effect = async move || inner.release(vm).await;
        Box::pin(door.through("network.release", effect))
    }

    fn answers(&self, address: Ipv4Addr, mac: [u8; 6]) -> BoxFuture<'static, bool> {
        self.inner.answers(address, mac)
    }

    fn survey(&self) -> BoxFuture<'static, Result<NetworkSurvey, NetworkError>> {
        self.inner.survey()
    }

    fn traffic(&self, vm: VmId, nic: u8) -> BoxFuture<'static, Option<Traffic>> {
        self.inner.traffic(vm, nic)
    }

    fn health(&self) -> BoxFuture<'static, Result<String, String>> {
        self.inner.health()
    }
}
