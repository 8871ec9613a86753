//! What a watcher who knows only the commands, the facts and the records holds
//! VMAN to: who asked for what, what was heard of each QEMU, and which
//! operations are open.

use crate::{
    ids::{Incarnation, OperationId},
    operation::{OperationKind, OperationRecord, OperationStatus},
    restart::RestartMode,
    time::UnixMs,
    vm::{
        messages::{Command, Effect, Fact, Input, Reply, RunState},
        phase::{Desired, Phase},
        record::{Reason, VmRecord},
        step::Decision,
    },
};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Run,
    Stop,
    Erase,
}

pub(super) struct Oracle {
    /// What the last accepted command asked for.
    pub(super) wish: Wish,
    /// Every operation ever accepted, and whether it has ended.
    pub(super) operations: BTreeMap<String, bool>,
    /// Arrows between phases that were seen.
    pub(super) arrows: Vec<(Phase, Phase)>,
    /// The clock was set back: a window is no longer a stretch of time.
    pub(super) clock_jumped: bool,
    /// No life after this one may begin until a user asks for it.
    last_life: Option<Incarnation>,
    /// The life that a user wants ended.
    user_ends: Option<Incarnation>,
    /// The life whose guest is known to have run.
    heard: Option<Incarnation>,
    /// The life that was rightly begun to be ended.
    condemned: Option<Incarnation>,
    /// When the policy granted restarts since it last forgave.
    granted: Vec<UnixMs>,
    /// The life that its user has paused, and that nobody has let run since.
    paused: Option<Incarnation>,
}

impl Oracle {
    pub(super) fn new(record: &VmRecord) -> Self {
        Self {
            wish: Wish::Stop,
            operations: BTreeMap::new(),
            arrows: Vec::new(),
            clock_jumped: false,
            last_life: Some(record.incarnation),
            user_ends: None,
            heard: None,
            condemned: None,
            granted: Vec::new(),
            paused: None,
        }
    }

    /// A decision became durable.
    pub(super) fn persisted(
        &mut self,
        before: &VmRecord,
        input: &Input,
        decision: &Decision,
        now: UnixMs,
        qemu: Option<(Incarnation, RunState)>,
    ) {
        let record = &decision.record;
        let grown = record.incarnation.0 - before.incarnation.0;
        assert!(grown <= 1, "a life was skipped");
        if before.phase != record.phase {
            self.arrows.push((before.phase, record.phase));
        }
        self.answered(input, decision);
        self.wished(before, input, decision);
        self.hears(before, input, decision);
        self.pauses(input, decision);
        if record.phase == Phase::Killing && before.phase != Phase::Killing {
            self.condemn(record.incarnation, qemu.map(|(_, state)| state));
        }
        if record.phase == Phase::Backoff && before.phase != Phase::Backoff {
            self.grants(record, now);
        }
        if let Some(life) = self.last_life {
            assert_eq!(record.incarnation, life, "it was started unasked");
        }
        if record.phase == Phase::Stopped {
            self.last_life = Some(record.incarnation);
        }
        Self::says_why(record);
    }

    /// Every command has one reply; operations open once and end once.
    fn answered(&mut self, input: &Input, decision: &Decision) {
        assert_eq!(
            decision.reply.is_some(),
            matches!(input, Input::Command(..))
        );
        if let Some(Reply::Accepted(id)) = &decision.reply {
            let new = self.operations.insert(id.to_string(), false).is_none();
            assert!(new, "{id:?} was accepted twice");
            let told = decision.operations.iter().any(|row| row.id == *id);
            assert!(told, "{id:?} was accepted but not written");
        }
        for row in &decision.operations {
            let ended = self.operations.get_mut(row.id.as_str());
            let ended = ended.unwrap_or_else(|| panic!("nobody asked for {:?}", row.id));
            assert!(!*ended, "{:?} goes on after its end", row.id);
            assert_eq!(row.status.is_end(), row.finished_at.is_some());
            *ended = row.status.is_end();
        }
        let open = |id: &OperationId| decision.record.operations.iter().any(|op| op.id == *id);
        for (id, ended) in &self.operations {
            let id = OperationId::parse(id).expect("it was an id before");
            assert_eq!(open(&id), !ended, "{id:?} is lost or kept");
        }
    }

    fn wished(&mut self, before: &VmRecord, input: &Input, decision: &Decision) {
        let (Input::Command(command, _), Some(Reply::Accepted(_))) = (input, &decision.reply)
        else {
            return;
        };
        match command {
            Command::Start | Command::Restart { .. } => {
                self.wish = Wish::Run;
                self.last_life = None;
            }
            Command::Stop { .. } => {
                self.wish = Wish::Stop;
                self.last_life = Some(before.incarnation);
            }
            Command::Delete { .. } => {
                self.wish = Wish::Erase;
                self.last_life = Some(before.incarnation);
            }
            Command::Pause
            | Command::Resume
            | Command::Reset
            | Command::SetStart(_)
            | Command::AttachDisk { .. }
            | Command::DetachDisk(_)
            | Command::ResizeDisk { .. }
            | Command::AttachNic(_)
            | Command::DetachNic(_)
            | Command::SetLink { .. } => return,
        }
        if !matches!(command, Command::Delete { .. }) {
            self.granted.clear();
        }
        if *command != Command::Start {
            self.user_ends = Some(before.incarnation);
        }
    }

    fn hears(&mut self, before: &VmRecord, input: &Input, decision: &Decision) {
        let Input::Fact(life, Fact::Ready(state) | Fact::RunStateChanged(state)) = input else {
            return;
        };
        if *life != before.incarnation {
            return;
        }
        let record = &decision.record;
        match state {
            RunState::Running | RunState::Paused | RunState::IoError => {
                self.heard = Some(*life);
            }
            // A guest that powered itself off is not started again, unless its
            // policy says so.
            RunState::Shutdown => {
                let by_itself = self.wish == Wish::Run
                    && self.user_ends != Some(*life)
                    && before.ending.is_none()
                    && before.phase != Phase::Killing
                    && record.phase == Phase::Killing;
                if by_itself && record.spec.restart.mode != RestartMode::Always {
                    self.last_life = Some(*life);
                }
            }
            RunState::Prelaunch | RunState::GuestPanicked | RunState::InternalError => {}
        }
    }

    /// Who was paused by a user is let run by a user, or to be ended.
    fn pauses(&mut self, input: &Input, decision: &Decision) {
        let life = decision.record.incarnation;
        let continues = decision.effects.contains(&Effect::Continue);
        if continues && decision.record.phase == Phase::Paused {
            assert_ne!(self.paused, Some(life), "its user has paused it");
        }
        let done = |row: &OperationRecord| {
            (row.kind, row.status) == (OperationKind::VmPause, OperationStatus::Succeeded)
        };
        if decision.operations.iter().any(done) {
            self.paused = Some(life);
        }
        let runs = matches!(
            input,
            Input::Fact(
                _,
                Fact::Ready(RunState::Running) | Fact::RunStateChanged(RunState::Running)
            )
        );
        if runs || matches!(input, Input::Command(Command::Resume, _)) {
            self.paused = None;
        }
    }

    /// A life begins to be ended: there has to be a cause for it. `state` is that
    /// of the living QEMU.
    fn condemn(&mut self, life: Incarnation, state: Option<RunState>) {
        let over = matches!(
            state,
            None | Some(RunState::Shutdown | RunState::GuestPanicked | RunState::InternalError)
        );
        let cause = over
            || self.user_ends == Some(life)
            || self.heard != Some(life)
            || self.condemned == Some(life);
        assert!(cause, "a QEMU that nobody wants ended is ended");
        self.condemned = Some(life);
    }

    /// A living QEMU gets a signal.
    pub(super) fn may_be_ended(&self, life: Incarnation, state: RunState) {
        assert_eq!(self.condemned, Some(life), "a signal in {state:?} unasked");
    }

    fn grants(&mut self, record: &VmRecord, now: UnixMs) {
        self.granted.push(now);
        let budget = record.spec.restart.budget;
        let window = u64::from(budget.window_s) * 1_000;
        let within = self.granted.iter().filter(|at| now.since(**at) < window);
        if !self.clock_jumped {
            assert!(
                within.count() <= budget.max_restarts as usize,
                "more restarts than the budget has"
            );
        }
    }

    /// The reason fits the phase.
    fn says_why(record: &VmRecord) {
        match record.phase {
            Phase::Running => assert!(
                matches!(
                    record.reason,
                    Reason::User | Reason::RestartPolicy | Reason::HostReboot
                ),
                "it runs because of {:?}",
                record.reason
            ),
            Phase::Paused => {
                assert!(!record.reason.is_failure() || record.reason == Reason::IoError);
            }
            Phase::Failed => assert!(record.reason.is_failure(), "failed by {:?}", record.reason),
            Phase::Killing | Phase::Releasing | Phase::Stopping => {
                assert!(record.ending.is_some(), "it ends and nobody knows why");
            }
            Phase::Stopped
            | Phase::Claiming
            | Phase::Launching
            | Phase::Backoff
            | Phase::Unknown => {}
        }
        let runs_on = record.desired == Desired::Running;
        assert!(runs_on || !record.restarting, "it stops, and starts again");
        if record.phase.is_rest() {
            let clean = record.claim.is_none()
                && record.process.is_none()
                && record.ending.is_none()
                && record.stop.is_none()
                && record.operations.is_empty()
                && !record.restarting;
            assert!(clean, "something is left: {record:#?}");
        }
    }
}
