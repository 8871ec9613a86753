//! The durable record of a VM.

use crate::{
    ids::{
        BootId, DiskId, Incarnation, NetworkName, OperationId, RequestId, Revision, VmId, VmUuid,
    },
    network::{LinkState, Nic},
    operation::OperationKind,
    restart::RestartHistory,
    time::UnixMs,
    vm::{
        phase::{ApiState, Desired, Phase},
        spec::{NetworkKind, VmSpec},
    },
};
use serde::{Deserialize, Serialize};

/// Why a VM is in its state, in one stable word of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reason {
    /// It was made and never started.
    Created,
    /// A user asked for it.
    User,
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest's kernel panicked.
    GuestPanic,
    /// QEMU ended by itself.
    QemuExit,
    /// QEMU was killed by a signal that was not ours.
    QemuSignal,
    /// The kernel killed QEMU for memory.
    Oom,
    /// The host was booted again.
    HostReboot,
    /// A disk answered an I/O error or is full.
    IoError,
    /// The restart budget is used up.
    CrashLoop,
    /// It could not be started.
    StartFailed,
    /// The restart policy started it again.
    RestartPolicy,
    /// QEMU itself met an error it cannot go on from.
    InternalError,
}

impl Reason {
    /// The word the API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Created => "created",
            Reason::User => "user",
            Reason::GuestShutdown => "guest_shutdown",
            Reason::GuestPanic => "guest_panic",
            Reason::QemuExit => "qemu_exit",
            Reason::QemuSignal => "qemu_signal",
            Reason::Oom => "oom",
            Reason::HostReboot => "host_reboot",
            Reason::IoError => "io_error",
            Reason::CrashLoop => "crash_loop",
            Reason::StartFailed => "start_failed",
            Reason::RestartPolicy => "restart_policy",
            Reason::InternalError => "internal_error",
        }
    }

    /// Whether a life that ended for this reason counts as a failure for the
    /// restart policy.
    pub fn is_failure(self) -> bool {
        match self {
            Reason::GuestPanic
            | Reason::QemuExit
            | Reason::QemuSignal
            | Reason::Oom
            | Reason::IoError
            | Reason::CrashLoop
            | Reason::StartFailed
            | Reason::InternalError => true,
            Reason::Created
            | Reason::User
            | Reason::GuestShutdown
            | Reason::HostReboot
            | Reason::RestartPolicy => false,
        }
    }
}

/// Who a VM's QEMU is. A pid alone may be another process by now; with its
/// start time and the boot id it cannot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Its process id.
    pub pid: u32,
    /// Its start time in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_time: u64,
    /// The boot in which both mean something.
    pub boot_id: BootId,
}

/// A network card as QEMU is given it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicClaim {
    /// Which of the VM's cards it is, from 0.
    pub nic: u8,
    /// How it is connected.
    pub kind: NetworkKind,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// The address its guest has, as text; none if it is not known.
    pub address: Option<String>,
}

/// One thing that keeps a QEMU from what is not its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Measure {
    /// A user and group of its own.
    OwnUser,
    /// No capabilities, and none to be had.
    NoCapabilities,
    /// No new privileges by whatever it executes.
    NoNewPrivileges,
    /// QEMU's seccomp filters.
    Seccomp,
    /// Landlock: only the files it needs.
    Landlock,
    /// An IPC namespace of its own.
    IpcNamespace,
    /// Limits on descriptors, threads and core dumps.
    ResourceLimits,
    /// It goes before the daemon when memory is short.
    OomScore,
    /// A control group bounds its memory.
    CgroupMemory,
    /// A control group bounds and weighs its processor time.
    CgroupCpu,
    /// A control group bounds its threads and processes.
    CgroupPids,
    /// A control group weighs its use of disks.
    CgroupIo,
    /// Mounts of its own: only the files it needs are there.
    MountNamespace,
    /// A network of its own, without any link.
    NetworkNamespace,
}

impl Measure {
    /// The word the API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Measure::OwnUser => "own_user",
            Measure::NoCapabilities => "no_capabilities",
            Measure::NoNewPrivileges => "no_new_privileges",
            Measure::Seccomp => "seccomp",
            Measure::Landlock => "landlock",
            Measure::IpcNamespace => "ipc_namespace",
            Measure::ResourceLimits => "resource_limits",
            Measure::OomScore => "oom_score",
            Measure::CgroupMemory => "cgroup_memory",
            Measure::CgroupCpu => "cgroup_cpu",
            Measure::CgroupPids => "cgroup_pids",
            Measure::CgroupIo => "cgroup_io",
            Measure::MountNamespace => "mount_namespace",
            Measure::NetworkNamespace => "network_namespace",
        }
    }
}

/// How a life of a VM's QEMU is confined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// The user and group id that is its alone while it lives.
    pub uid: Option<u32>,
    /// What is in force.
    pub measures: Vec<Measure>,
}

/// What a VM holds on the host while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Its disks, the root disk first.
    pub disks: Vec<DiskId>,
    /// Its network cards.
    pub nics: Vec<NicClaim>,
    /// How its QEMU is confined.
    pub confinement: Confinement,
}

/// Why the present life is ending; set when the end begins and kept until
/// everything is released.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// In one word.
    pub reason: Reason,
    /// In a sentence.
    pub detail: String,
}

/// An operation that this VM has still to bring to an end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenOperation {
    /// Its id.
    pub id: OperationId,
    /// What it asked for.
    pub kind: OperationKind,
    /// When it was accepted.
    pub created_at: UnixMs,
    /// The request that asked for it; none if the daemon itself did.
    pub request_id: Option<RequestId>,
    /// The disk it is about.
    pub disk: Option<DiskId>,
    /// The disk's size before it, in MiB, should it come to nothing.
    pub size_before_mib: Option<u64>,
    /// The network card it is about.
    pub nic: Option<u8>,
}

/// What is under way with a disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttachState {
    /// Nothing: it belongs to the VM, and a living QEMU has it.
    Attached,
    /// It is being plugged into the living QEMU.
    Plugging(OperationId),
    /// The guest was asked to let go of it.
    Unplugging(OperationId),
    /// The guest has let go of it although it belongs to the VM: it comes back
    /// at the next start, or goes at the next detach.
    LetGo,
}

/// A data disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The disk.
    pub disk: DiskId,
    /// Its slot on the pcie-root-ports, kept while it is attached.
    pub slot: u8,
    /// The letter the guest's driver gives it (`b'b'` of `/dev/vdb`).
    pub letter: u8,
    /// What is under way with it.
    pub state: AttachState,
}

/// How a stop that waits for adoption or for the guest shall be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopIntent {
    /// At once, without asking the guest.
    pub force: bool,
    /// How long the guest may take, in milliseconds.
    pub timeout_ms: u64,
}

/// A VM, as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Its id.
    pub id: VmId,
    /// The UUID its QEMU carries.
    pub uuid: VmUuid,
    /// What it is asked to be.
    pub spec: VmSpec,
    /// The MAC address of its first network card, kept for life.
    pub mac: [u8; 6],
    /// Its root disk.
    pub root_disk: Option<DiskId>,
    /// When it was made.
    pub created_at: UnixMs,
    /// What the user wants.
    pub desired: Desired,
    /// Where it is.
    pub phase: Phase,
    /// When it came there.
    pub phase_since: UnixMs,
    /// Why it is there.
    pub reason: Reason,
    /// The same in a sentence.
    pub detail: String,
    /// The present or last life of its QEMU.
    pub incarnation: Incarnation,
    /// The boot in which this life began: in another boot it is over.
    pub boot_id: Option<BootId>,
    /// The present QEMU, as far as it is known.
    pub process: Option<ProcessIdentity>,
    /// Since when the guest of this life runs.
    pub started_at: Option<UnixMs>,
    /// What it holds on the host.
    pub claim: Option<Claim>,
    /// Why the present life is ending.
    pub ending: Option<Ending>,
    /// How the stop under way shall be done.
    pub stop: Option<StopIntent>,
    /// Whether it is to be started again as soon as it is released (`restart`).
    pub restarting: bool,
    /// Whether QMP does not answer although the process lives.
    pub unresponsive: bool,
    /// Restarts by policy.
    pub restarts: RestartHistory,
    /// The delay of the present Backoff, in milliseconds.
    pub backoff_ms: u64,
    /// Operations still to be ended.
    pub operations: Vec<OpenOperation>,
    /// The last event about this VM.
    pub last_event: Option<Revision>,
    /// Its data disks, by slot.
    pub disks: Vec<Attachment>,
    /// The disk for which its CPUs were stopped last.
    pub failed_disk: Option<DiskId>,
    /// Whether that was for want of space.
    pub failed_for_space: bool,
    /// Whether a pause that was asked for was done. Where a disk had failed before it,
    /// QEMU goes on telling of that alone; space that returns must not let it run.
    pub paused_by_user: bool,
    /// The cable of its first network card.
    pub link: LinkState,
    /// Its further network cards, by number.
    pub nics: Vec<Nic>,
    /// The network of its first network card.
    pub network: NetworkName,
}

impl VmRecord {
    /// The network of a network card; none if there is no such card.
    pub fn network_of(&self, nic: u8) -> Option<&NetworkName> {
        if nic == 0 {
            return Some(&self.network);
        }
        let mut further = self.nics.iter();
        further
            .find(|held| held.number == nic)
            .map(|held| &held.network)
    }

    /// Its disks, the root disk first.
    pub fn disk_ids(&self) -> impl Iterator<Item = &DiskId> {
        let further = self.disks.iter().map(|held| &held.disk);
        self.root_disk.iter().chain(further)
    }

    /// The user that its QEMU runs as, as long as its claim holds it.
    pub fn user_id(&self) -> Option<u32> {
        self.claim.as_ref()?.confinement.uid
    }

    /// The MAC addresses of its network cards with their numbers, the first
    /// card's first.
    pub fn macs(&self) -> impl Iterator<Item = (u8, [u8; 6])> {
        let further = self.nics.iter().map(|nic| (nic.number, nic.mac));
        std::iter::once((0, self.mac)).chain(further)
    }

    /// The cables of its network cards, by number.
    pub fn links(&self) -> impl Iterator<Item = (u8, LinkState)> {
        let further = self.nics.iter().map(|nic| (nic.number, nic.link));
        std::iter::once((0, self.link)).chain(further)
    }

    /// The cable of a network card; none if there is no such card.
    pub fn link_of(&self, nic: u8) -> Option<LinkState> {
        let mut links = self.links();
        links
            .find(|(number, _)| *number == nic)
            .map(|(_, link)| link)
    }

    /// The VM's `state` in the API.
    pub fn state(&self) -> ApiState {
        let starting_again = self.restarting || self.desired == Desired::Running;
        match self.phase {
            Phase::Stopped => ApiState::Stopped,
            Phase::Claiming | Phase::Launching | Phase::Backoff => ApiState::Starting,
            Phase::Running => ApiState::Running,
            Phase::Paused => ApiState::Paused,
            Phase::Stopping | Phase::Killing | Phase::Releasing => ApiState::Stopping,
            Phase::Failed => ApiState::Error,
            // Until adoption has told otherwise, the guest is what it was last.
            Phase::Unknown if starting_again => ApiState::Running,
            Phase::Unknown => ApiState::Stopping,
        }
    }
}
