//! Events: what changed, from what to what, and why. One committed change is
//! one event; together they answer "why is this VM in this state".

use crate::{
    ids::{
        DiskId, ImageName, Incarnation, OperationId, RequestId, Revision, TemplateName, TokenName,
        VmId,
    },
    time::UnixMs,
    vm::{phase::Phase, record::Reason},
};
use core::net::IpAddr;
use serde::{Deserialize, Serialize};

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// A VM.
    Vm(VmId),
    /// A template.
    Template(TemplateName),
    /// An image.
    Image(ImageName),
    /// A disk.
    Disk(DiskId),
    /// The daemon itself.
    Daemon,
    /// A network, by name.
    Network(String),
    /// A bearer token, by name.
    Token(TokenName),
}

/// The class of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EventKind {
    /// A template was made.
    TemplateCreated,
    /// A template was deleted.
    TemplateDeleted,
    /// An image became usable.
    ImageCreated,
    /// An image was deleted.
    ImageDeleted,
    /// A VM was made.
    VmCreated,
    /// A VM went from one phase to another.
    VmPhaseChanged,
    /// Something about a VM changed within its phase (a command was taken, its
    /// process became known, its guest rebooted).
    VmUpdated,
    /// A VM and what belonged to it was erased.
    VmErased,
    /// The daemon started and recovery is done.
    DaemonReady,
    /// A record could not be read and was set aside.
    RecordQuarantined,
    /// The observer found a difference between the records and the host.
    DriftFound,
    /// A difference that the observer had found is there no more.
    DriftGone,
    /// A disk was made.
    DiskCreated,
    /// A disk was deleted.
    DiskDeleted,
    /// A disk was grown, or its options were changed.
    DiskChanged,
    /// A disk was attached to a VM, or its attaching began.
    DiskAttached,
    /// A disk was detached from a VM, or its detaching began.
    DiskDetached,
    /// A disk failed or its storage is full.
    DiskFailed,
    /// A port of the host leads into a guest.
    ForwardCreated,
    /// It does no longer.
    ForwardDeleted,
    /// A VM made before there was a bridge was given an address.
    LeaseGiven,
    /// A VM was given a network card, or its plugging began.
    NicAttached,
    /// A VM's network card was taken out, or its unplugging began.
    NicDetached,
    /// Something about a VM's network card changed, or stayed although it was to.
    NicChanged,
    /// Something of a network was missing or changed on the host, and was made anew.
    NetworkHealed,
    /// A network does not work.
    NetworkFailed,
    /// A bearer token was made.
    TokenCreated,
    /// A bearer token was made useless.
    TokenRevoked,
    /// The store was made again of manifests and living QEMUs.
    StoreRebuilt,
    /// The host was booted and VMs are started with it.
    HostBooted,
    /// All VMs are stopped because the host is to go down.
    HostDraining,
    /// They are stopped, or could not be.
    HostDrained,
    /// The host stays up: what was drained is started again.
    HostResumed,
    /// A VM is started with the host although one it waits for is not up.
    StartLate,
}

impl EventKind {
    /// The word the API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::TemplateCreated => "template.created",
            EventKind::TemplateDeleted => "template.deleted",
            EventKind::ImageCreated => "image.created",
            EventKind::ImageDeleted => "image.deleted",
            EventKind::VmCreated => "vm.created",
            EventKind::VmPhaseChanged => "vm.phase_changed",
            EventKind::VmUpdated => "vm.updated",
            EventKind::VmErased => "vm.erased",
            EventKind::DaemonReady => "daemon.ready",
            EventKind::RecordQuarantined => "record.quarantined",
            EventKind::DriftFound => "drift.found",
            EventKind::DriftGone => "drift.gone",
            EventKind::DiskCreated => "disk.created",
            EventKind::DiskDeleted => "disk.deleted",
            EventKind::DiskChanged => "disk.changed",
            EventKind::DiskAttached => "disk.attached",
            EventKind::DiskDetached => "disk.detached",
            EventKind::DiskFailed => "disk.failed",
            EventKind::ForwardCreated => "forward.created",
            EventKind::ForwardDeleted => "forward.deleted",
            EventKind::LeaseGiven => "lease.given",
            EventKind::NicAttached => "nic.attached",
            EventKind::NicDetached => "nic.detached",
            EventKind::NicChanged => "nic.changed",
            EventKind::NetworkHealed => "network.healed",
            EventKind::NetworkFailed => "network.failed",
            EventKind::TokenCreated => "token.created",
            EventKind::TokenRevoked => "token.revoked",
            EventKind::StoreRebuilt => "store.rebuilt",
            EventKind::HostBooted => "host.booted",
            EventKind::HostDraining => "host.draining",
            EventKind::HostDrained => "host.drained",
            EventKind::HostResumed => "host.resumed",
            EventKind::StartLate => "vm.start_late",
        }
    }
}

/// Where a change came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// A client's request.
    Request {
        /// The request.
        request_id: RequestId,
        /// Who called (`local:0`, `token:ci`, `anonymous`).
        principal: String,
        /// From where, over TCP.
        remote: Option<IpAddr>,
    },
    /// QEMU told it over QMP.
    Qmp,
    /// QEMU's process did it (it was spawned, it exited).
    Process,
    /// An effect that VMAN itself started came to its end.
    Effect,
    /// A deadline or a delay ran out.
    Timer,
    /// The restart policy.
    RestartPolicy,
    /// The daemon, or the VM's actor, started again and resolved what it found.
    Recovery,
    /// The observer found it.
    Observer,
    /// The daemon's own housekeeping.
    Daemon,
}

impl Origin {
    /// The word the API uses.
    pub fn as_str(&self) -> &'static str {
        match self {
            Origin::Request { .. } => "request",
            Origin::Qmp => "qmp",
            Origin::Process => "process",
            Origin::Effect => "effect",
            Origin::Timer => "timer",
            Origin::RestartPolicy => "restart_policy",
            Origin::Recovery => "recovery",
            Origin::Observer => "observer",
            Origin::Daemon => "daemon",
        }
    }
}

/// Why something changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Where it came from.
    pub origin: Origin,
    /// The input in one stable word (`start`, `exited`, `stop_deadline`).
    pub input: String,
    /// The earlier change that led to it, where there is one.
    pub led_by: Option<Revision>,
}

impl Cause {
    /// Of this input; nothing earlier led to it.
    pub fn new(origin: Origin, input: &str) -> Self {
        Self {
            origin,
            input: input.to_owned(),
            led_by: None,
        }
    }
}

/// An event that has not been committed yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventDraft {
    /// When.
    pub at: UnixMs,
    /// About what.
    pub subject: Subject,
    /// Its class.
    pub kind: EventKind,
    /// The phase left.
    pub from: Option<Phase>,
    /// The phase entered.
    pub to: Option<Phase>,
    /// The VM's reason after the change.
    pub reason: Option<Reason>,
    /// A sentence for people.
    pub detail: String,
    /// The life of the VM's QEMU it belongs to.
    pub incarnation: Option<Incarnation>,
    /// The operation it belongs to.
    pub operation: Option<OperationId>,
    /// Why.
    pub cause: Cause,
    /// The previous event about the same VM, so that a VM's history can be
    /// walked without an index.
    pub previous: Option<Revision>,
}

impl EventDraft {
    /// That this happened to the subject, in a sentence. It is of no VM's life and moves none: who tells such a thing
    /// says so beside this.
    pub fn new(
        at: UnixMs,
        subject: Subject,
        kind: EventKind,
        detail: impl Into<String>,
        cause: Cause,
    ) -> Self {
        Self {
            at,
            subject,
            kind,
            from: None,
            to: None,
            reason: None,
            detail: detail.into(),
            incarnation: None,
            operation: None,
            cause,
            previous: None,
        }
    }
}

/// A committed event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The revision of the change it tells.
    pub revision: Revision,
    /// What happened.
    pub what: EventDraft,
}
