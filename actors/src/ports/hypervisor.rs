//! QEMU as the tree sees it: launch, adopt, command, and hear of a machine.

use super::BoxFuture;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use std::{collections::BTreeSet, path::PathBuf, sync::Arc};
use vman_model::{
    DiskFormat, DiskId, DiskLimits, DiskOptions, Incarnation, Protocol, TapName, VmId, VmUuid,
    network::{LinkState, nic::nic_slot},
    vm::{
        Confinement, ExitStatus, Firmware, Measure, NetworkKind, ProcessIdentity, Resources,
        RunState, SeenDisk,
    },
};

/// Files of a direct kernel boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFiles {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM file system.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line; it is a user's text.
    pub cmdline: String,
}

/// A disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPlan {
    /// The name of its block node ([`node_name`]).
    pub node: String,
    /// The name of its device, from the disk's id.
    pub device: String,
    /// Its file.
    pub path: PathBuf,
    /// The file's format; it is never probed.
    pub format: DiskFormat,
    /// The pcie-root-port it sits on, from 0.
    pub slot: u8,
    /// The serial number that the guest reads, at most 20 bytes.
    pub serial: String,
    /// How it behaves; the serial number in it is not looked at.
    pub options: DiskOptions,
}

/// The name of a disk's device. Its length has no limit.
pub fn device_name(disk: &DiskId) -> String {
    format!("dev-disk-{disk}")
}

/// QEMU's limit for the name of a block node, in bytes (`node_name[32]` in
/// block_int-common.h; 7.2).
const MAX_NODE_NAME: usize = 31;

/// The name of a disk's block node. An id that is too long for QEMU becomes a
/// number; the disk's file, which every node tells, says which it is.
pub fn node_name(disk: &DiskId) -> String {
    let plain = format!("disk-{disk}");
    if plain.len() <= MAX_NODE_NAME {
        return plain;
    }
    // FNV-1a. Two disks of one VM would have to meet in it, and QEMU would refuse.
    let hash = disk
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("disk_{hash:016x}")
}

/// Work on a data disk of a living QEMU. Each may be repeated: what is done
/// already is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskAction {
    /// Open its file; the guest sees nothing of that. It may be plugged in as soon as this has begun.
    Open(DiskPlan),
    /// Plug it in: the file is opened unless that was done, then the device is added.
    Plug {
        /// The disk.
        plan: DiskPlan,
        /// Whether its file was opened, or is being opened.
        opened: bool,
    },
    /// Take it out: the guest is asked to let go and waited for, then the file is
    /// closed. One that was only opened is closed.
    Unplug(DiskId),
    /// Let the guest see this size.
    Resize(DiskId, u64),
    /// Let it be this fast.
    Limit(DiskId, DiskLimits),
}

/// Why work on a disk or a network card came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// QEMU refused; it is as it was before.
    #[error("QEMU refused: {0}")]
    Refused(String),
    /// The guest did not let go of it; it is as it was before.
    #[error("{0}")]
    Held(String),
    /// It is unknown what became of it: ask when QEMU answers again.
    #[error("QEMU did not answer: {0}")]
    Unknown(String),
}

/// A network card of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicPlan {
    /// How it is connected.
    pub kind: NetworkKind,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// The pcie-root-port it sits on, from 0.
    pub slot: u8,
    /// Its TAP, if it is on a bridge.
    pub tap: Option<TapName>,
    /// Whether its cable is plugged in.
    pub link: LinkState,
}

impl NicPlan {
    /// The card `nic` of a VM.
    pub fn of(vm: &VmId, nic: u8, kind: NetworkKind, mac: [u8; 6], link: LinkState) -> Self {
        Self {
            kind,
            mac,
            slot: nic_slot(nic),
            tap: (kind == NetworkKind::Bridge).then(|| TapName::of(vm, nic)),
            link,
        }
    }
}

/// Work on a network card of a living QEMU. Each may be repeated: what is done
/// already is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NicAction {
    /// Plug it in: a TAP is opened (not attached to the bridge), the backend is
    /// made, then the device; with as many queues as this many CPUs may use.
    Plug(NicPlan, u32),
    /// Take the card in this slot out: the guest is asked to let go and waited
    /// for, then the backend is taken away.
    Unplug(u8),
    /// Plug the cable of the card in this slot in, or pull it.
    Link(u8, LinkState),
}

/// A port of the host on which a QEMU in user mode listens for its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortForward {
    /// What.
    pub protocol: Protocol,
    /// The port on the host.
    pub host_port: u16,
    /// The port in the guest.
    pub guest_port: u16,
}

/// Everything that a start of QEMU needs. Plain data: from it the command line
/// is made by a pure function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchPlan {
    /// The VM.
    pub vm: VmId,
    /// The UUID its QEMU carries.
    pub uuid: VmUuid,
    /// The life that begins.
    pub incarnation: Incarnation,
    /// Virtual CPUs.
    pub cpu_count: u32,
    /// Memory in MiB.
    pub ram_mib: u64,
    /// How much of the host it has beside that.
    pub resources: Resources,
    /// Firmware.
    pub firmware: Firmware,
    /// Direct kernel boot, if any.
    pub boot: Option<BootFiles>,
    /// Disks, in the order they are booted from.
    pub disks: Vec<DiskPlan>,
    /// Network cards.
    pub nics: Vec<NicPlan>,
    /// How it is confined, as its claim says.
    pub confinement: Confinement,
}

/// What a VM's QEMU is held to on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Virtual CPUs.
    pub cpu_count: u32,
    /// Memory in MiB.
    pub ram_mib: u64,
    /// How much of the host it has beside that.
    pub resources: Resources,
    /// By what, as its claim says.
    pub measures: Vec<Measure>,
}

/// Whom to look for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdoptPlan {
    /// The VM.
    pub vm: VmId,
    /// The UUID its QEMU carries.
    pub uuid: VmUuid,
    /// The life it must be.
    pub incarnation: Incarnation,
    /// Who it was, if that was recorded; otherwise it is looked for by UUID and
    /// incarnation among all processes.
    pub process: Option<ProcessIdentity>,
    /// What it is held to: a launch that was cut off may not have come to that.
    /// None for one that is to end.
    pub bounds: Option<Bounds>,
}

/// What a machine tells by itself. Told in order; kinds may be coalesced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineNews {
    /// QMP answers: after a launch (the guest was let run), an adoption or a
    /// reconnect.
    Ready(RunState),
    /// The run state changed.
    RunState(RunState),
    /// The guest's machine was reset.
    GuestReset,
    /// A disk's device has left the machine.
    DiskLetGo(DiskId),
    /// A disk failed and the CPUs were stopped for it. The run state follows.
    DiskFailed {
        /// The disk.
        disk: DiskId,
        /// Whether for want of space.
        no_space: bool,
        /// What QEMU says.
        detail: String,
    },
    /// QMP was lost or does not answer within its deadline while the process
    /// lives. The adapter goes on trying to reconnect; then comes Ready.
    Deaf(String),
    /// The process ended. The last news.
    Exited {
        /// How.
        status: ExitStatus,
        /// The end of what this life wrote to stderr, a few lines at most.
        stderr: String,
    },
}

/// Takes a machine's news. Never blocks and never fails, whatever a QEMU sends
/// and however fast: the receiver bounds and coalesces.
#[derive(Clone)]
pub struct NewsSink(Arc<dyn Fn(MachineNews) + Send + Sync>);

impl NewsSink {
    /// A sink that hands every piece of news to `take`.
    pub fn new(take: impl Fn(MachineNews) + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    /// Tells a piece of news.
    pub fn tell(&self, news: MachineNews) {
        (self.0)(news);
    }
}

impl std::fmt::Debug for NewsSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NewsSink")
    }
}

/// Why QEMU was not started. Certainly no process is left behind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// There is no QEMU where it was looked for.
    #[error("cannot start QEMU: {binary} was not found; install it or set VMAN_QEMU_BINARY")]
    NoBinary {
        /// Where.
        binary: String,
    },
    /// A file that it needs is missing or cannot be opened.
    #[error("cannot start QEMU: {what}: {error}")]
    Preparation {
        /// What was being prepared.
        what: String,
        /// What the system said.
        error: String,
    },
    /// The operating system refused to start the process.
    #[error("cannot start QEMU: spawn failed: {0}")]
    Spawn(String),
}

/// What adoption found. In all but `Gone` the machine can be killed.
pub enum Adoption {
    /// The QEMU of this incarnation lives. Ready, Deaf or Exited follow as news.
    Found(Arc<dyn Machine>),
    /// There is none, for certain.
    Gone,
}

/// A command to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineAction {
    /// QMP `stop`
    Pause,
    /// QMP `cont`
    Resume,
    /// QMP `system_reset`
    Reset,
    /// QMP `system_powerdown`
    Powerdown,
    /// QMP `query-status`; tells Ready as news too. Used to see whether it answers.
    Ping,
}

/// Why a machine's command failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MachineError {
    /// QEMU refused it; it was not done.
    #[error("QEMU refused: {0}")]
    Refused(String),
    /// No answer within the deadline; it may have been done or may yet be.
    #[error("QEMU did not answer within {0} ms")]
    Timeout(u64),
    /// There is no QMP connection; it was not sent, or may have been when the
    /// connection broke.
    #[error("no QMP connection")]
    Disconnected,
}

/// A live QEMU: the process (by pidfd) and its QMP connection. Dropping it
/// closes the connection and ends no process.
pub trait Machine: Send + Sync + 'static {
    /// Who it is.
    fn identity(&self) -> ProcessIdentity;
    /// Sends a command and waits for its answer, with a deadline of its own.
    fn act(&self, action: MachineAction) -> BoxFuture<'static, Result<(), MachineError>>;
    /// Does work on a data disk, with deadlines of its own. Work on one disk is
    /// done one after the other.
    fn disk(&self, action: DiskAction) -> BoxFuture<'static, Result<(), DiskError>>;
    /// Does work on a network card, with deadlines of its own. Work on one card is
    /// done one after the other.
    fn nic(&self, action: NicAction) -> BoxFuture<'static, Result<(), DiskError>>;
    /// Which data disks it has, whatever the records say.
    fn disks(&self) -> BoxFuture<'static, Result<Vec<SeenDisk>, MachineError>>;
    /// SIGTERM through the pidfd; a process that is gone already is no error.
    fn terminate(&self);
    /// SIGKILL through the pidfd; a process that is gone already is no error.
    fn kill(&self);
}

/// The end of a VM's serial console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleTail {
    /// The last bytes, at most as many as asked for.
    pub bytes: Vec<u8>,
    /// All bytes written since the VM was made, kept or not.
    pub file_size: u64,
}

/// A QEMU of ours found among the host's processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundProcess {
    /// The VM's UUID on its command line.
    pub uuid: VmUuid,
    /// The incarnation on its command line.
    pub incarnation: Incarnation,
    /// Who it is.
    pub identity: ProcessIdentity,
}

/// What the host can do, probed at start for health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostProbe {
    /// QEMU's version, or the sentence why it cannot be used.
    pub qemu: Result<String, String>,
    /// qemu-img's version, or the sentence why it cannot be used.
    pub qemu_img: Result<String, String>,
    /// The accelerator in use (`kvm`, `tcg`) and why, in a sentence.
    pub accelerator: String,
    /// How QEMUs are confined, and what lacks and why, in a sentence.
    pub jail: String,
    /// How qemu-img is confined, and what lacks and why, in a sentence.
    pub tool_jail: String,
}

/// Why something on the host failed, in a sentence with the object named.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HostError(pub String);

/// Starts, finds and cleans up after QEMUs.
pub trait Hypervisor: Send + Sync + 'static {
    /// How the VM's next QEMU will be confined. `taken` are the user ids that
    /// other VMs' claims hold; `user_network` is whether one of its cards is on
    /// QEMU's own network. `Err` where less can be had than is required.
    fn confine(
        &self,
        vm: &VmId,
        taken: BTreeSet<u32>,
        user_network: bool,
    ) -> BoxFuture<'static, Result<Confinement, HostError>>;

    /// Starts QEMU and answers as soon as the process is there. `Ready` or
    /// `Exited` follow as news: the guest is let run (`cont`) by the adapter as
    /// soon as QMP takes it.
    fn launch(
        &self,
        plan: LaunchPlan,
        news: NewsSink,
    ) -> BoxFuture<'static, Result<Arc<dyn Machine>, LaunchError>>;

    /// Looks for a living QEMU. `Err` means that it is not known whether there
    /// is one (no descriptor free, /proc unreadable): ask again.
    fn adopt(
        &self,
        plan: AdoptPlan,
        news: NewsSink,
    ) -> BoxFuture<'static, Result<Adoption, HostError>>;

    /// Gives a running VM another TAP for the one that somebody deleted, and
    /// plugs its network card anew. `false`: there was no QEMU of this life to
    /// give it to.
    fn replace_tap(
        &self,
        vm: VmId,
        incarnation: Incarnation,
        nic: NicPlan,
        cpu_count: u32,
    ) -> BoxFuture<'static, Result<bool, HostError>>;

    /// How many of the VM's processes the kernel has ended for memory in its
    /// present life, until it is released. `None`: that is not counted here.
    fn oom_kills(&self, vm: &VmId) -> BoxFuture<'static, Result<Option<u64>, HostError>>;

    /// Lets the running VM's card in `slot`, which is in user mode, forward these
    /// ports and no others. `false`: there was no QEMU of this life to be told.
    fn forward_ports(
        &self,
        vm: VmId,
        incarnation: Incarnation,
        slot: u8,
        ports: BTreeSet<PortForward>,
    ) -> BoxFuture<'static, Result<bool, HostError>>;

    /// Removes the VM's run-time files (sockets). Idempotent. Only called when
    /// no QEMU of the VM lives.
    fn release(&self, vm: &VmId) -> BoxFuture<'static, Result<(), HostError>>;

    /// Removes the VM's own files (console, logs, firmware variables).
    /// Idempotent. Disks are not among them.
    fn erase(&self, vm: &VmId) -> BoxFuture<'static, Result<(), HostError>>;

    /// All QEMUs of ours on the host, in one scan.
    fn survey(&self) -> BoxFuture<'static, Result<Vec<FoundProcess>, HostError>>;

    /// The end of the console, at most `max` bytes; empty if there is none yet.
    fn console(&self, vm: &VmId, max: usize) -> BoxFuture<'static, Result<ConsoleTail, HostError>>;

    /// The console from its last `backlog` bytes on, and then as it is written.
    /// Ends only when it is dropped.
    fn follow_console(&self, vm: &VmId, backlog: usize) -> BoxStream<'static, Bytes>;

    /// Keeps the consoles and logs of these VMs within their bounds; no byte
    /// that QEMU writes meanwhile is lost.
    fn trim_logs(&self, vms: Vec<VmId>) -> BoxFuture<'static, Result<(), HostError>>;

    /// Looks at what the host has.
    fn probe(&self) -> BoxFuture<'static, HostProbe>;
}
