//! QEMU on this host: its command line, its process, and finding it again.
//!
//! Owns: the [`Hypervisor`] port. Must not: decide what a VM does next, or end a QEMU unasked.
//!
//! | file | what |
//! |---|---|
//! | `cmdline.rs` | a plan as arguments, pure |
//! | `launch.rs` | what QEMU needs to be there, then the start |
//! | `process.rs` | the process by its pidfd |
//! | `adopt.rs` | finding a QEMU of an earlier daemon |
//! | `machine.rs` | a living QEMU, and what is asked of it |
//! | `link.rs` | the conversation with it |
//! | `devices.rs` | what disks and network cards have in common |
//! | `forwards.rs` | ports on which it listens for its guest |
//! | `hotplug`, `nics.rs` | disks, network cards that come and go while it lives |
//! | `samples.rs` | what guests have read, written and hold |
//! | `console.rs` | logs, and keeping them bounded |
//! | `layout.rs`, `sockets.rs`, `probe.rs` | paths, sockets, what the host has |

pub mod adopt;
#[cfg(test)]
mod adopt_tests;
pub mod cmdline;
mod console;
mod devices;
mod forwards;
mod hotplug;
mod launch;
pub mod layout;
mod link;
mod machine;
mod nics;
mod probe;
pub mod process;
pub mod samples;
pub mod sockets;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::OnceCell;
use vman_actors::ports::{
    AdoptPlan, Adoption, BoxFuture, ConsoleTail, DiskError, FoundProcess, HostError, HostProbe,
    Hypervisor, LaunchError, LaunchPlan, Machine, NewsSink, NicPlan, PortForward,
};
use vman_model::network::LinkState;
use vman_model::vm::{Confinement, ProcessIdentity};
use vman_model::{Incarnation, VmId, VmUuid};

use self::adopt::AttachError;
use self::cmdline::Accel;
use self::layout::Layout;
use self::link::Setting;
use self::machine::QemuMachine;
use self::process::Process;
use super::net::tap::Taps;
use super::qmp::{CommandTimes, Deadlines, Request};
use crate::config::{AccelChoice, JailConfig};
use crate::host::jail::{Jail, Life, ToolJail};

/// All that is to be known about QEMU on this host.
#[derive(Debug, Clone)]
pub struct QemuSettings {
    /// The QEMU binary; a bare name is looked for in the system's usual places.
    pub binary: PathBuf,
    /// The qemu-img binary and what confines it.
    pub qemu_img: Arc<ToolJail>,
    /// Which accelerator is wanted.
    pub accel: AccelChoice,
    /// Where VMs' files are.
    pub layout: Layout,
    /// How QEMUs are confined.
    pub jail: JailConfig,
    /// How long monitors may take.
    pub deadlines: Deadlines,
    /// The TAPs that the network has made for VMs that are to be started.
    pub taps: Arc<Taps>,
}

/// Machines by VM, each with the life it is of.
type Machines = HashMap<VmId, (Incarnation, Weak<QemuMachine>)>;

/// The real [`Hypervisor`].
#[derive(Debug, Clone)]
pub struct QemuHost {
    settings: Arc<QemuSettings>,
    /// The processes watched at present, so that one that is adopted by the daemon that started it
    /// (its actor was restarted) is not watched twice: only the first watcher hears how it ended.
    watched: Arc<Mutex<HashMap<u32, Process>>>,
    /// The machines that somebody holds, for what is done to them and is no command of their VM's.
    machines: Arc<Mutex<Machines>>,
    /// Found out once, by the first who needs it.
    accelerator: Arc<OnceCell<(Accel, String)>>,
    times: Arc<CommandTimes>,
    jail: Arc<Jail>,
}

impl QemuHost {
    /// A host that has nothing running as far as it knows.
    pub fn new(settings: QemuSettings) -> Self {
        let jail = Jail::new(
            settings.jail,
            settings.layout.clone(),
            settings.binary.clone(),
        );
        Self {
            jail: Arc::new(jail),
            settings: Arc::new(settings),
            watched: Arc::default(),
            machines: Arc::default(),
            accelerator: Arc::default(),
            times: Arc::default(),
        }
    }

    /// The same host, counting there how long QMP commands take.
    #[must_use]
    pub fn timed(mut self, times: Arc<CommandTimes>) -> Self {
        self.times = times;
        self
    }

    async fn accelerator(&self) -> &(Accel, String) {
        let find = || probe::accelerator(self.settings.accel, &self.settings.binary);
        self.accelerator.get_or_init(find).await
    }

    fn machines(&self) -> MutexGuard<'_, Machines> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<u32, Process>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep_watched(&self, process: &Process) {
        let pid = process.identity().pid;
        self.watched().insert(pid, process.clone());
        let (host, process) = (self.clone(), process.clone());
        tokio::spawn(async move {
            process.exited().await;
            let mut watched = host.watched();
            if watched
                .get(&pid)
                .is_some_and(|known| known.identity() == process.identity())
            {
                watched.remove(&pid);
            }
        });
    }

    /// The machine of one life, if somebody holds it.
    fn machine_of(&self, vm: &VmId, incarnation: Incarnation) -> Option<Arc<QemuMachine>> {
        let known = self.machines().get(vm).cloned();
        let machine = known.filter(|(of, _)| *of == incarnation);
        machine.and_then(|(_, machine)| machine.upgrade())
    }

    fn attach(&self, identity: &ProcessIdentity) -> Result<Process, AttachError> {
        let known = self.watched().get(&identity.pid).cloned();
        if let Some(process) = known.filter(|process| process.identity() == identity) {
            return if process.is_gone() {
                Err(AttachError::Gone)
            } else {
                Ok(process)
            };
        }
        let process = adopt::attach(identity)?;
        self.keep_watched(&process);
        Ok(process)
    }

    fn look_for(&self, plan: &AdoptPlan) -> Result<Option<Process>, HostError> {
        let identity = match &plan.process {
            Some(identity) => identity.clone(),
            None => match find(plan.uuid, plan.incarnation)? {
                Some(identity) => identity,
                None => return Ok(None),
            },
        };
        match self.attach(&identity) {
            Ok(process) => Ok(Some(process)),
            Err(AttachError::Gone) => Ok(None),
            Err(AttachError::Unclear(error)) => Err(HostError(format!(
                "whether the QEMU of VM {} lives is unclear: {error}",
                plan.vm
            ))),
        }
    }

    /// The life of a QEMU that is not in its control groups: its launch was cut off before that.
    fn loose(&self, plan: &AdoptPlan, process: &Process) -> Option<Life> {
        let life = Life::looked_for(plan)?;
        match self.jail.is_closed_behind(&life, process.identity().pid) {
            Ok(true) => None,
            Ok(false) => Some(life),
            Err(error) => {
                tracing::warn!(vm_id = %plan.vm, %error, "in which control groups a QEMU is, is unknown");
                None
            }
        }
    }

    /// Puts a QEMU into its control groups. One that cannot be put there is taken over all the same:
    /// no guest is ended for that.
    async fn hold(&self, life: Life, pid: u32) {
        let (accel, _) = *self.accelerator().await;
        match Arc::clone(&self.jail).close_again(life, accel, pid).await {
            Ok(()) => tracing::info!(
                pid,
                "a QEMU that was outside of its control groups is in them"
            ),
            Err(error) => tracing::warn!(pid, %error, "a QEMU runs outside of its control groups"),
        }
    }

    fn begin(
        &self,
        vm: &VmId,
        process: Process,
        opening: Opening,
        news: NewsSink,
    ) -> Arc<QemuMachine> {
        let layout = &self.settings.layout;
        let setting = Setting {
            socket: layout.qmp(vm),
            uuid: opening.uuid,
            fresh: opening.fresh,
            first: opening.first,
            log: layout.qemu_log(vm),
            banner: launch::banner(opening.incarnation),
            groups: layout.cgroups(vm),
            deadlines: self.settings.deadlines,
            times: Arc::clone(&self.times),
            disks: layout.storage.join("disks"),
        };
        let machine = QemuMachine::begin(process, setting, news);
        let known = (opening.incarnation, Arc::downgrade(&machine));
        self.machines().insert(vm.clone(), known);
        machine
    }
}

struct Opening {
    uuid: VmUuid,
    incarnation: Incarnation,
    fresh: bool,
    first: Vec<Request>,
}

/// What its command line cannot say: limits of disks and pulled cables.
fn first_requests(plan: &LaunchPlan) -> Vec<Request> {
    let limited = plan.disks.iter().filter(|disk| disk.options.limits.any());
    let limits = limited.map(|disk| {
        let arguments = hotplug::throttle(&disk.device, &disk.options.limits);
        Request::new("block_set_io_throttle").with(arguments)
    });
    let pulled = plan.nics.iter().filter(|nic| nic.link == LinkState::Down);
    let links =
        pulled.map(|nic| Request::new("set_link").with(nics::link_of(nic.slot, LinkState::Down)));
    limits.chain(links).collect()
}

fn find(uuid: VmUuid, incarnation: Incarnation) -> Result<Option<ProcessIdentity>, HostError> {
    let all = adopt::find_all().map_err(unreadable)?;
    let ours = |found: &FoundProcess| found.uuid == uuid && found.incarnation == incarnation;
    Ok(all.into_iter().find(ours).map(|found| found.identity))
}

fn unreadable(error: io::Error) -> HostError {
    HostError(format!("the host's processes cannot be listed: {error}"))
}

/// Runs what blocks where blocking is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(HostError(format!("the work was broken off: {error}"))),
    }
}

fn about(path: &std::path::Path) -> impl Fn(io::Error) -> HostError {
    move |error| HostError(format!("{}: {error}", path.display()))
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl Hypervisor for QemuHost {
    fn confine(
        &self,
        vm: &VmId,
        taken: BTreeSet<u32>,
        user_network: bool,
    ) -> BoxFuture<'static, Result<Confinement, HostError>> {
        let (host, vm) = (self.clone(), vm.clone());
        Box::pin(async move {
            let (accel, _) = *host.accelerator().await;
            host.jail.confine(&vm, &taken, user_network, accel).await
        })
    }

    fn launch(
        &self,
        plan: LaunchPlan,
        news: NewsSink,
    ) -> BoxFuture<'static, Result<Arc<dyn Machine>, LaunchError>> {
        let host = self.clone();
        Box::pin(async move {
            let opening = Opening {
                uuid: plan.uuid,
                incarnation: plan.incarnation,
                fresh: true,
                first: first_requests(&plan),
            };
            let (settings, vm) = (Arc::clone(&host.settings), plan.vm.clone());
            let (accel, _) = host.accelerator().await.clone();
            let jail = Arc::clone(&host.jail);
            let started = tokio::task::spawn_blocking(move || {
                let (layout, taps) = (&settings.layout, &settings.taps);
                launch::start(&settings.binary, accel, layout, taps, &jail, &plan)
            });
            let process = match started.await {
                Ok(started) => started?,
                Err(error) => return Err(LaunchError::Spawn(error.to_string())),
            };
            host.keep_watched(&process);
            Ok(host.begin(&vm, process, opening, news) as Arc<dyn Machine>)
        })
    }

    fn adopt(
        &self,
        plan: AdoptPlan,
        news: NewsSink,
    ) -> BoxFuture<'static, Result<Adoption, HostError>> {
        let host = self.clone();
        Box::pin(async move {
            let opening = Opening {
                uuid: plan.uuid,
                incarnation: plan.incarnation,
                fresh: false,
                first: Vec::new(),
            };
            let (looking, vm) = (host.clone(), plan.vm.clone());
            let found = blocking(move || {
                let found = looking.look_for(&plan)?;
                Ok(found.map(|process| (looking.loose(&plan, &process), process)))
            });
            let Some((loose, process)) = found.await? else {
                return Ok(Adoption::Gone);
            };
            if let Some(life) = loose {
                host.hold(life, process.identity().pid).await;
            }
            Ok(Adoption::Found(host.begin(&vm, process, opening, news)))
        })
    }

    fn replace_tap(
        &self,
        vm: VmId,
        incarnation: Incarnation,
        nic: NicPlan,
        cpu_count: u32,
    ) -> BoxFuture<'static, Result<bool, HostError>> {
        let machine = self.machine_of(&vm, incarnation);
        Box::pin(async move {
            let Some(machine) = machine else {
                return Ok(false);
            };
            let replaced = machine.cards().replace_tap(nic, cpu_count).await;
            // A QEMU on its way out answers nothing: its TAP goes before its process does.
            let ending = matches!(replaced, Err(DiskError::Unknown(_)));
            if machine.is_gone() || ending {
                return Ok(false);
            }
            let told = |error| HostError(format!("the network card of VM {vm}: {error}"));
            replaced.map(|()| true).map_err(told)
        })
    }

    fn oom_kills(&self, vm: &VmId) -> BoxFuture<'static, Result<Option<u64>, HostError>> {
        let (jail, vm) = (Arc::clone(&self.jail), vm.clone());
        Box::pin(blocking(move || {
            let counted = jail.oom_kills(&vm);
            counted.map_err(|error| HostError(format!("the memory counter of VM {vm}: {error}")))
        }))
    }

    fn forward_ports(
        &self,
        vm: VmId,
        incarnation: Incarnation,
        slot: u8,
        ports: BTreeSet<PortForward>,
    ) -> BoxFuture<'static, Result<bool, HostError>> {
        let machine = self.machine_of(&vm, incarnation);
        Box::pin(async move {
            let Some(machine) = machine else {
                return Ok(false);
            };
            match machine.cards().forward(slot, ports).await {
                Ok(()) => Ok(true),
                // A QEMU that does not answer is asked again.
                Err(DiskError::Unknown(_)) => Ok(false),
                Err(error) => Err(HostError(error.to_string())),
            }
        })
    }

    fn release(&self, vm: &VmId) -> BoxFuture<'static, Result<(), HostError>> {
        let folder = self.settings.layout.sockets(vm);
        self.machines().remove(vm);
        let (jail, vm) = (Arc::clone(&self.jail), vm.clone());
        Box::pin(blocking(move || {
            jail.take_back(&vm)
                .map_err(|error| HostError(format!("taking back what {vm} had: {error}")))?;
            gone_is_fine(std::fs::remove_dir_all(&folder)).map_err(about(&folder))
        }))
    }

    fn erase(&self, vm: &VmId) -> BoxFuture<'static, Result<(), HostError>> {
        let (files, folder) = (
            self.settings.layout.own_files(vm),
            self.settings.layout.files(vm),
        );
        Box::pin(blocking(move || {
            for file in files {
                gone_is_fine(std::fs::remove_file(&file)).map_err(about(&file))?;
            }
            match gone_is_fine(std::fs::remove_dir(&folder)) {
                // Somebody else's files are in it.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                other => other.map_err(about(&folder)),
            }
        }))
    }

    fn survey(&self) -> BoxFuture<'static, Result<Vec<FoundProcess>, HostError>> {
        Box::pin(blocking(|| adopt::find_all().map_err(unreadable)))
    }

    fn console(&self, vm: &VmId, max: usize) -> BoxFuture<'static, Result<ConsoleTail, HostError>> {
        let log = self.settings.layout.console_log(vm);
        Box::pin(blocking(move || {
            console::tail(&log, max).map_err(about(&log))
        }))
    }

    fn follow_console(&self, vm: &VmId, backlog: usize) -> BoxStream<'static, Bytes> {
        console::follow(self.settings.layout.console_log(vm), backlog).boxed()
    }

    fn trim_logs(&self, vms: Vec<VmId>) -> BoxFuture<'static, Result<(), HostError>> {
        let layout = self.settings.layout.clone();
        Box::pin(blocking(move || {
            let mut result = Ok(());
            for log in vms
                .iter()
                .flat_map(|vm| [layout.console_log(vm), layout.qemu_log(vm)])
            {
                // One that cannot be cut is no reason to let the others grow.
                result = console::trim(&log).map_err(about(&log)).and(result);
            }
            result
        }))
    }

    fn probe(&self) -> BoxFuture<'static, HostProbe> {
        let (host, settings) = (self.clone(), Arc::clone(&self.settings));
        Box::pin(async move {
            let install = "install it or set VMAN_QEMU_BINARY";
            let qemu = probe::version(&settings.binary, "-version", install);
            let install = "install it or set VMAN_QEMU_IMG";
            let qemu_img = probe::version(settings.qemu_img.binary(), "--version", install);
            let (qemu, qemu_img) = tokio::join!(qemu, qemu_img);
            let (accel, accelerator) = host.accelerator().await.clone();
            let (jail, tool_jail) =
                tokio::join!(host.jail.describe(accel), settings.qemu_img.describe());
            HostProbe {
                qemu,
                qemu_img,
                accelerator,
                jail,
                tool_jail,
            }
        })
    }
}
