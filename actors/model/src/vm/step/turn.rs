//! The vocabulary `step` is written in: one turn collects what changes.

use super::{
    Decision, DiskChange, Erasure, KILL_AGAIN_MS, NicChange, TERMINATE_GRACE_MS, input_word,
};
use crate::{
    event::{Cause, EventDraft, EventKind, Origin, Subject},
    ids::{DiskId, OperationId},
    operation::{OperationKind, OperationRecord, OperationStatus, Problem},
    vm::{
        messages::{CommandContext, Effect, Fact, Input, Moment, Refusal, Reply, Timer},
        phase::{Desired, Phase},
        record::{Ending, OpenOperation, Reason, VmRecord},
    },
};

pub(super) struct Turn<'a> {
    before: &'a VmRecord,
    pub(super) record: VmRecord,
    pub(super) moment: &'a Moment,
    cause: Cause,
    operations: Vec<OperationRecord>,
    effects: Vec<Effect>,
    reply: Option<Reply>,
    erased: Option<Erasure>,
    /// Something happened that is told although the record stays as it was.
    told: Option<(EventKind, String)>,
    disks: Vec<DiskChange>,
    nics: Vec<NicChange>,
}

impl<'a> Turn<'a> {
    pub(super) fn new(before: &'a VmRecord, input: &Input, moment: &'a Moment) -> Self {
        let cause = Cause {
            origin: origin(input),
            input: input_word(input).to_owned(),
            led_by: match input {
                Input::Command(..) => None,
                Input::Fact(..) | Input::Recover => before.last_event,
            },
        };
        Self {
            before,
            record: before.clone(),
            moment,
            cause,
            operations: Vec::new(),
            effects: Vec::new(),
            reply: None,
            erased: None,
            told: None,
            disks: Vec::new(),
            nics: Vec::new(),
        }
    }

    pub(super) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(super) fn arm(&mut self, timer: Timer, after_ms: u64) {
        self.effects.push(Effect::Arm(timer, after_ms));
    }

    /// Goes to `phase`; `detail` is the sentence told in the VM and the event.
    pub(super) fn enter(&mut self, phase: Phase, detail: impl Into<String>) {
        self.record.phase = phase;
        self.record.phase_since = self.moment.now;
        self.record.detail = detail.into();
    }

    /// Tells an event although nothing durable may have changed.
    pub(super) fn tell(&mut self, detail: impl Into<String>) {
        self.told = Some((EventKind::VmUpdated, detail.into()));
    }

    /// The same with a class of its own.
    pub(super) fn tell_as(&mut self, kind: EventKind, detail: impl Into<String>) {
        self.told = Some((kind, detail.into()));
    }

    /// Changes a disk's row in the same commit.
    pub(super) fn disk(&mut self, change: DiskChange) {
        self.disks.push(change);
    }

    /// Changes a network card's rows in the same commit.
    pub(super) fn nic(&mut self, change: NicChange) {
        self.nics.push(change);
    }

    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.reply = Some(Reply::Refused(refusal));
    }

    /// Takes a command as an operation that stays open until it is finished.
    pub(super) fn accept(&mut self, kind: OperationKind, context: CommandContext) {
        self.open(kind, (None, None), context);
    }

    /// The same for a command that is about one of the VM's disks.
    pub(super) fn accept_about(
        &mut self,
        kind: OperationKind,
        disk: Option<DiskId>,
        context: CommandContext,
    ) {
        self.open(kind, (disk, None), context);
    }

    /// The same for a command that is about one of the VM's network cards.
    pub(super) fn accept_nic(&mut self, kind: OperationKind, nic: u8, context: CommandContext) {
        self.open(kind, (None, Some(nic)), context);
    }

    fn open(
        &mut self,
        kind: OperationKind,
        (disk, nic): (Option<DiskId>, Option<u8>),
        context: CommandContext,
    ) {
        let request_id = match context.origin {
            Origin::Request { request_id, .. } => Some(request_id),
            _ => None,
        };
        self.reply = Some(Reply::Accepted(context.operation.clone()));
        self.record.operations.push(OpenOperation {
            id: context.operation,
            kind,
            created_at: self.moment.now,
            request_id,
            disk,
            size_before_mib: None,
            nic,
        });
    }

    /// Ends every open operation that `which` picks.
    pub(super) fn finish(
        &mut self,
        which: impl Fn(OperationKind) -> bool,
        status: OperationStatus,
        problem: Option<&Problem>,
    ) {
        self.finish_those(|op| which(op.kind), status, problem);
    }

    /// Ends one operation, if it is still open.
    pub(super) fn finish_one(
        &mut self,
        id: &OperationId,
        status: OperationStatus,
        problem: Option<&Problem>,
    ) {
        self.finish_those(|op| op.id == *id, status, problem);
    }

    fn finish_those(
        &mut self,
        which: impl Fn(&OpenOperation) -> bool,
        status: OperationStatus,
        problem: Option<&Problem>,
    ) {
        let (ended, open): (Vec<_>, Vec<_>) =
            self.record.operations.drain(..).partition(|op| which(op));
        self.record.operations = open;
        for op in ended {
            let mut row = self.row(&op);
            row.status = status;
            row.finished_at = Some(self.moment.now);
            row.error = problem.cloned();
            if status == OperationStatus::Succeeded {
                row.progress = 100;
            }
            self.operations.push(row);
        }
    }

    /// A later command asks for something else: what was under way is given up.
    pub(super) fn supersede(&mut self, by: &str, which: impl Fn(OperationKind) -> bool) {
        let problem = Problem::new("superseded", format!("given up for a later {by}"));
        self.finish(which, OperationStatus::Cancelled, Some(&problem));
    }

    /// The guest's life is ending: what was asked of its CPUs cannot be done.
    pub(super) fn fail_actions(&mut self, why: &str) {
        let problem = Problem::new("vm_not_running", why);
        self.finish(is_action, OperationStatus::Failed, Some(&problem));
    }

    /// Notes why this life ends, unless that is known already.
    pub(super) fn ending(&mut self, reason: Reason, detail: impl Into<String>) {
        if self.record.ending.is_none() {
            self.record.ending = Some(Ending {
                reason,
                detail: detail.into(),
            });
        }
    }

    /// Ends QEMU with SIGTERM first, so that it flushes what it caches.
    pub(super) fn terminate(&mut self, detail: impl Into<String>) {
        self.enter_killing(detail);
        self.effect(Effect::Terminate);
        self.arm(Timer::KillAgain, TERMINATE_GRACE_MS);
    }

    /// Ends QEMU with SIGKILL, for one that does not hear.
    pub(super) fn kill(&mut self, detail: impl Into<String>) {
        self.enter_killing(detail);
        self.effect(Effect::Kill);
        self.arm(Timer::KillAgain, KILL_AGAIN_MS);
    }

    fn enter_killing(&mut self, detail: impl Into<String>) {
        self.fail_actions("the VM is being stopped");
        self.enter(Phase::Killing, detail);
        if let Some(stop) = &mut self.record.stop {
            // The guest has had its time: a daemon that comes after this one
            // does not grant it once more.
            stop.force = true;
        }
    }

    /// A new life: a new incarnation, and nothing of the last one.
    pub(super) fn begin_life(&mut self, reason: Reason, detail: impl Into<String>) {
        let record = &mut self.record;
        record.incarnation = record.incarnation.next();
        record.boot_id = Some(self.moment.boot_id.clone());
        record.process = None;
        record.started_at = None;
        record.claim = None;
        record.ending = None;
        record.stop = None;
        record.restarting = false;
        record.unresponsive = false;
        record.failed_disk = None;
        record.failed_for_space = false;
        record.paused_by_user = false;
        super::disks::name_anew(record);
        record.reason = reason;
        self.enter(Phase::Claiming, detail);
        self.effect(Effect::Claim);
    }

    pub(super) fn erase(&mut self, keep_root_disk: bool) {
        self.erased = Some(Erasure { keep_root_disk });
    }

    fn row(&self, op: &OpenOperation) -> OperationRecord {
        OperationRecord {
            id: op.id.clone(),
            kind: op.kind,
            vm_id: Some(self.record.id.clone()),
            disk_id: op.disk.clone(),
            nic: op.nic,
            status: OperationStatus::Running,
            step: self.record.phase.as_str().to_owned(),
            progress: progress(op.kind, self.record.phase),
            created_at: op.created_at,
            finished_at: None,
            error: None,
            request_id: op.request_id.clone(),
        }
    }

    pub(super) fn decide(mut self) -> Decision {
        let moved = self.before.phase != self.record.phase
            || self.before.incarnation != self.record.incarnation;
        let opened = |op: &OpenOperation| !self.before.operations.contains(op);
        let open: Vec<_> = self
            .record
            .operations
            .iter()
            .filter(|op| moved || opened(op))
            .cloned()
            .collect();
        let rows: Vec<_> = open.iter().map(|op| self.row(op)).collect();
        self.operations.extend(rows);
        let changed = self.erased.is_some()
            || !self.operations.is_empty()
            || self.told.is_some()
            || *self.before != self.record;
        let event = changed.then(|| self.event(moved));
        Decision {
            record: self.record,
            erased: self.erased,
            operations: self.operations,
            disks: self.disks,
            nics: self.nics,
            event,
            effects: self.effects,
            reply: self.reply,
        }
    }

    fn event(&self, moved: bool) -> EventDraft {
        let kind = match (self.erased, moved, &self.told) {
            (Some(_), ..) => EventKind::VmErased,
            (None, true, _) => EventKind::VmPhaseChanged,
            (None, false, Some((kind, _))) => *kind,
            (None, false, None) => EventKind::VmUpdated,
        };
        EventDraft {
            at: self.moment.now,
            subject: Subject::Vm(self.record.id.clone()),
            kind,
            from: Some(self.before.phase),
            to: self.erased.is_none().then_some(self.record.phase),
            reason: Some(self.reason()),
            detail: match &self.told {
                Some((_, told)) => told.clone(),
                None => self.record.detail.clone(),
            },
            incarnation: Some(self.record.incarnation),
            operation: self.operations.first().map(|op| op.id.clone()),
            cause: self.cause.clone(),
            previous: self.before.last_event,
        }
    }

    /// While a life ends, what it ends for says more than why it ran.
    fn reason(&self) -> Reason {
        self.record
            .ending
            .as_ref()
            .map_or(self.record.reason, |ending| ending.reason)
    }
}

/// Whether an operation asks something of a running guest's CPUs.
pub(super) fn is_action(kind: OperationKind) -> bool {
    matches!(
        kind,
        OperationKind::VmPause | OperationKind::VmResume | OperationKind::VmReset
    )
}

/// Whether an operation is about a disk: the end of the VM's life brings it to
/// its own end (see `disks.rs`), and no later command gives it up.
pub(super) fn is_disk_work(kind: OperationKind) -> bool {
    matches!(
        kind,
        OperationKind::DiskAttach | OperationKind::DiskDetach | OperationKind::DiskResize
    )
}

/// The same of a network card (see `nics.rs`).
pub(super) fn is_nic_work(kind: OperationKind) -> bool {
    matches!(
        kind,
        OperationKind::NicAttach | OperationKind::NicDetach | OperationKind::NicLink
    )
}

/// Whether an operation is about a device, which no later command gives up.
pub(super) fn is_device_work(kind: OperationKind) -> bool {
    is_disk_work(kind) || is_nic_work(kind)
}

/// Whether an operation is done when the VM runs.
pub(super) fn wants_running(kind: OperationKind) -> bool {
    matches!(kind, OperationKind::VmStart | OperationKind::VmRestart)
}

/// Whether the present life shall end.
pub(super) fn wants_end(record: &VmRecord) -> bool {
    record.desired != Desired::Running || record.restarting || record.ending.is_some()
}

fn origin(input: &Input) -> Origin {
    match input {
        Input::Command(_, context) => context.origin.clone(),
        Input::Recover => Origin::Recovery,
        Input::Fact(_, fact) => match fact {
            Fact::Claimed(_)
            | Fact::ClaimDenied { .. }
            | Fact::LaunchFailed { .. }
            | Fact::ActionDone { .. }
            | Fact::Released { .. }
            | Fact::ReleaseFailed { .. } => Origin::Effect,
            Fact::Spawned(_) | Fact::Exited { .. } => Origin::Process,
            Fact::DiskDone { .. } | Fact::NicDone { .. } | Fact::SpaceSeen { .. } => Origin::Effect,
            Fact::Ready(_)
            | Fact::RunStateChanged(_)
            | Fact::GuestReset
            | Fact::DiskLetGo(_)
            | Fact::DiskFailed { .. }
            | Fact::Deaf { .. } => Origin::Qmp,
            Fact::Found(_) | Fact::Gone | Fact::DisksSeen(_) => Origin::Recovery,
            Fact::TimerDue(Timer::BackoffDue) => Origin::RestartPolicy,
            Fact::TimerDue(_) => Origin::Timer,
        },
    }
}

fn progress(kind: OperationKind, phase: Phase) -> u8 {
    let starting = matches!(kind, OperationKind::VmStart);
    match phase {
        Phase::Claiming if starting => 10,
        Phase::Launching if starting => 40,
        Phase::Stopping => 10,
        Phase::Killing => 40,
        Phase::Releasing => 70,
        Phase::Claiming => 80,
        Phase::Launching => 90,
        Phase::Stopped
        | Phase::Running
        | Phase::Paused
        | Phase::Backoff
        | Phase::Failed
        | Phase::Unknown => 0,
    }
}
