//! What a VM is told ([`Input`]: a user's [`Command`] or a [`Fact`]), what it
//! then asks of the host ([`Effect`]) and answers ([`Reply`]).
//!
//! Commands are imperative, facts are past tense. Every fact carries the
//! incarnation it is about.

use crate::{
    event::Origin,
    ids::{BootId, DiskId, Incarnation, OperationId},
    network::{LinkState, NewNic},
    power::StartSpec,
    time::UnixMs,
    vm::record::{Claim, ProcessIdentity},
};
use serde::{Deserialize, Serialize};

/// What a user asks of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Start it.
    Start,
    /// Stop it.
    Stop {
        /// At once, without asking the guest.
        force: bool,
        /// How long the guest may take before force is used, in milliseconds.
        timeout_ms: u64,
    },
    /// Stop it and start it again.
    Restart {
        /// At once, without asking the guest.
        force: bool,
        /// How long the guest may take before force is used, in milliseconds.
        timeout_ms: u64,
    },
    /// Let its CPUs stand still.
    Pause,
    /// Let its CPUs go on.
    Resume,
    /// Reset its machine, as the button does.
    Reset,
    /// Say how it comes up and goes down with the host.
    SetStart(StartSpec),
    /// Stop it by force and erase it.
    Delete {
        /// Whether its root disk is kept as a disk of its own.
        keep_root_disk: bool,
    },
    /// Attach a disk that belongs to no VM.
    AttachDisk {
        /// The disk.
        disk: DiskId,
        /// The letter that is wished for, from `b'a'`.
        letter: Option<u8>,
    },
    /// Detach one of its data disks.
    DetachDisk(DiskId),
    /// Give it another network card.
    AttachNic(Box<NewNic>),
    /// Take a network card away.
    DetachNic(u8),
    /// Plug a network card's cable in, or pull it.
    SetLink {
        /// The card's number.
        nic: u8,
        /// The cable.
        link: LinkState,
    },
    /// Grow one of its disks.
    ResizeDisk {
        /// The disk.
        disk: DiskId,
        /// Its size until now, in MiB.
        from_mib: u64,
        /// The new size in MiB.
        size_mib: u64,
    },
}

/// Who asks, and under which operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandContext {
    /// The id of the operation that the command becomes.
    pub operation: OperationId,
    /// Who asks; always [`Origin::Request`] for a client's command.
    pub origin: Origin,
}

/// QEMU's run state, as far as VMAN tells them apart (`query-status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// The CPUs run.
    Running,
    /// Stopped by a command (also `suspended`, `watchdog`, `save-vm`).
    Paused,
    /// Started with its CPUs stopped and never continued.
    Prelaunch,
    /// The guest powered off (`-action shutdown=pause` keeps QEMU).
    Shutdown,
    /// The guest's kernel panicked.
    GuestPanicked,
    /// A disk failed or is full, and the CPUs were stopped for it.
    IoError,
    /// QEMU cannot go on.
    InternalError,
}

/// How a QEMU ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// By the kernel, for memory.
    OomKilled,
    /// It was not our child, so the kernel told nobody of ours.
    Unknown,
    /// It was never started: the launch was given up before the spawn.
    NeverSpawned,
}

/// A command to a machine that answers by a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QmpAction {
    /// `stop`
    Pause,
    /// `cont`
    Resume,
    /// `system_reset`
    Reset,
}

/// A delay that ran out. Each means something in one phase only, so a late one
/// changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Timer {
    /// Launching took too long.
    LaunchDeadline,
    /// Ask the guest to power off once more: it may have been booting.
    PowerdownAgain,
    /// The guest did not power off in time.
    StopDeadline,
    /// QEMU did not end in time: kill it (again).
    KillAgain,
    /// Try the release again.
    ReleaseAgain,
    /// Start again after a failure.
    BackoffDue,
    /// Look whether the storage has space again for a guest that waits for it.
    SpaceAgain,
}

/// What is done to a network card of a living QEMU. Each may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NicWork {
    /// Plug it in.
    Plug,
    /// Ask the guest to let go of it, and take it out.
    Unplug,
    /// Plug its cable in, or pull it.
    Link(LinkState),
}

/// What became of work on a disk or a card of a living QEMU. An outcome that is unknown
/// is not told: QEMU is asked when it answers again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskOutcome {
    /// Done wholly.
    Done,
    /// Refused; it is as it was before.
    Refused(String),
    /// The guest has not let go of it; it is as it was before.
    Held(String),
}

/// A data disk as a living QEMU has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SeenDisk {
    /// The disk, by the names of its device and block node.
    pub disk: DiskId,
    /// Whether the guest has a device of it.
    pub device: bool,
    /// Whether QEMU has its file open.
    pub node: bool,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    /// Disks and network are held.
    Claimed(Claim),
    /// They could not be had.
    ClaimDenied {
        /// Why, in a sentence.
        detail: String,
    },
    /// QEMU was started.
    Spawned(ProcessIdentity),
    /// QEMU could not be started; certainly no process is left.
    LaunchFailed {
        /// Why, in a sentence.
        detail: String,
    },
    /// QMP answers. Told after a launch, an adoption and a reconnect.
    Ready(RunState),
    /// The run state changed.
    RunStateChanged(RunState),
    /// The guest's machine was reset, by itself or by command.
    GuestReset,
    /// QMP does not answer although the process lives.
    Deaf {
        /// What was tried, in a sentence.
        detail: String,
    },
    /// QEMU ended.
    Exited {
        /// How.
        status: ExitStatus,
        /// The end of what it wrote to stderr, or empty.
        stderr: String,
    },
    /// Adoption found the QEMU.
    Found(ProcessIdentity),
    /// Adoption found no QEMU of this incarnation.
    Gone,
    /// A QMP command was answered.
    ActionDone {
        /// The operation it was sent for.
        operation: OperationId,
        /// What was sent.
        action: QmpAction,
        /// Why it failed, if it did.
        error: Option<String>,
    },
    /// The claim is given back.
    Released {
        /// Whether the VM's files are erased too.
        erased: bool,
    },
    /// It could not be given back yet.
    ReleaseFailed {
        /// Why, in a sentence.
        detail: String,
    },
    /// A delay ran out.
    TimerDue(Timer),
    /// Work on a disk came to its end.
    DiskDone {
        /// The operation it was done for.
        operation: OperationId,
        /// The disk.
        disk: DiskId,
        /// What became of it.
        outcome: DiskOutcome,
    },
    /// QEMU was asked which data disks it has.
    DisksSeen(Vec<SeenDisk>),
    /// The guest let go of a disk's device.
    DiskLetGo(DiskId),
    /// A disk failed, and the CPUs were stopped for it.
    DiskFailed {
        /// The disk.
        disk: DiskId,
        /// Whether for want of space.
        no_space: bool,
        /// What QEMU says.
        detail: String,
    },
    /// Work on a network card came to its end.
    NicDone {
        /// The operation it was done for.
        operation: OperationId,
        /// The card's number.
        nic: u8,
        /// What became of it.
        outcome: DiskOutcome,
    },
    /// The storage was looked at.
    SpaceSeen {
        /// Bytes that can be written.
        available: u64,
    },
}

/// When and in which boot of the host something is decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Wall-clock time.
    pub now: UnixMs,
    /// The boot the host is in.
    pub boot_id: BootId,
}

/// Everything a VM can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A user's command.
    Command(Command, CommandContext),
    /// Something that happened in this incarnation.
    Fact(Incarnation, Fact),
    /// The actor (or the daemon) has just started and loaded the record.
    Recover,
}

/// What a VM asks of the host. Effects are idempotent and keyed by the VM and
/// its incarnation, so that recovery may repeat them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Take hold of disks and an address; answers Claimed or ClaimDenied.
    Claim,
    /// Start QEMU; answers Spawned then Ready, or LaunchFailed, or Exited.
    Launch,
    /// Look for the QEMU of this incarnation; answers Found then Ready or Deaf
    /// or Exited, or Gone.
    Adopt,
    /// Send a QMP command; answers ActionDone.
    Act(OperationId, QmpAction),
    /// Let a guest that was never continued run; answers RunStateChanged.
    Continue,
    /// Ask the guest to power off.
    Powerdown,
    /// End QEMU with SIGTERM (it flushes its caches); answers Exited.
    Terminate,
    /// End QEMU with SIGKILL; answers Exited.
    Kill,
    /// Give back what is held; answers Released or ReleaseFailed.
    Release {
        /// Whether the VM's files are erased too.
        erase: bool,
        /// Whether its root disk is spared then.
        keep_root_disk: bool,
    },
    /// Tell TimerDue after this many milliseconds.
    Arm(Timer, u64),
    /// Plug a disk into the living QEMU, at this slot; answers DiskDone.
    Plug {
        /// For this operation.
        operation: OperationId,
        /// The disk.
        disk: DiskId,
        /// Its slot.
        slot: u8,
    },
    /// Take a disk out of the living QEMU; answers DiskDone.
    Unplug {
        /// For this operation; none for a disk that should not be there.
        operation: Option<OperationId>,
        /// The disk.
        disk: DiskId,
    },
    /// Grow a disk of the living QEMU to the size in its row; answers DiskDone.
    Resize {
        /// For this operation.
        operation: OperationId,
        /// The disk.
        disk: DiskId,
    },
    /// Ask QEMU which data disks it has; answers DisksSeen.
    LookAtDisks,
    /// Work on a network card of the living QEMU; answers NicDone.
    Nic {
        /// For this operation.
        operation: OperationId,
        /// The card's number.
        nic: u8,
        /// What is done.
        work: NicWork,
    },
    /// Look whether the storage has space again; answers SpaceSeen.
    LookForSpace,
}

/// Why a command was refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// It runs already, or is on its way.
    AlreadyRunning,
    /// It does not run.
    NotRunning,
    /// It is being stopped.
    BeingStopped,
    /// It is paused already.
    AlreadyPaused,
    /// It is not paused.
    NotPaused,
    /// It is being deleted.
    BeingDeleted,
    /// Another operation has to end first.
    OperationInProgress,
    /// The daemon has just started and does not know the VM's state yet.
    Recovering,
    /// Its slots for data disks are taken.
    NoFreeSlot,
    /// The disk is attached to it already.
    DiskAttached,
    /// The disk is not attached to it.
    DiskNotAttached,
    /// It is its root disk, which cannot be detached.
    RootDisk,
    /// Its slots for network cards are taken.
    NoFreeNicSlot,
    /// It has no such network card.
    NicNotAttached,
    /// It is its first network card, which cannot be detached.
    FirstNic,
}

impl Refusal {
    /// The stable code of the API.
    pub fn code(self) -> &'static str {
        match self {
            Refusal::AlreadyRunning => "vm_already_running",
            Refusal::NotRunning => "vm_not_running",
            Refusal::BeingStopped => "vm_being_stopped",
            Refusal::AlreadyPaused => "vm_already_paused",
            Refusal::NotPaused => "vm_not_paused",
            Refusal::BeingDeleted => "vm_being_deleted",
            Refusal::OperationInProgress => "operation_in_progress",
            Refusal::Recovering => "vm_recovering",
            Refusal::NoFreeSlot => "no_free_disk_slot",
            Refusal::DiskAttached => "disk_attached",
            Refusal::DiskNotAttached => "disk_not_attached",
            Refusal::RootDisk => "disk_is_root",
            Refusal::NoFreeNicSlot => "no_free_nic_slot",
            Refusal::NicNotAttached => "nic_not_attached",
            Refusal::FirstNic => "nic_is_first",
        }
    }
}

/// The one answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Taken; the operation tells the rest.
    Accepted(OperationId),
    /// Not taken.
    Refused(Refusal),
}
