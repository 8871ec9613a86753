//! A simulated host and the daemon's half that acts on it: it does what `step`
//! asks for, late, in any order, twice, or not at all, and forgets everything
//! in flight when the daemon dies. QEMUs outlive the daemon, not the host.
//!
//! What it promises is what the ports promise: claims, launches, adoptions and
//! releases of one VM are done one after the other; a machine's news keep their
//! order; answers of tasks come in any order.

use super::{
    given::{context, identity, moment},
    machine::Qemu,
    oracle::Oracle,
};
use crate::{
    ids::Incarnation,
    time::UnixMs,
    vm::{
        messages::{Command, Effect, ExitStatus, Fact, Input, RunState, Timer},
        record::{Claim, VmRecord},
        step::step,
    },
};
use std::collections::VecDeque;

/// Something a task of the daemon is at.
pub(super) enum Task {
    /// Wait for QMP of a launched QEMU and let the guest run.
    Boot(Incarnation),
    /// A QMP command.
    Qmp(Incarnation, Effect),
    /// An answer on its way to the actor.
    Tell(Incarnation, Fact),
}

pub(super) struct World {
    pub(super) record: VmRecord,
    pub(super) erased: bool,
    pub(super) now: u64,
    pub(super) boot: u64,
    pub(super) qemu: Option<Qemu>,
    /// Whether disks or an address are held, whatever the record says.
    pub(super) held: bool,
    pub(super) oracle: Oracle,
    /// Whether guests power off when asked to.
    pub(super) polite_guest: bool,
    /// What a guest has come to when its launch is first told of.
    pub(super) comes_up: RunState,
    /// The daemon dies within its next step: 0 before the record is durable,
    /// n after it and after n - 1 of its effects.
    pub(super) fuse: Option<usize>,
    pub(super) worker: VecDeque<(Incarnation, Effect)>,
    pub(super) news: VecDeque<(Incarnation, Fact)>,
    pub(super) tasks: Vec<Task>,
    /// Copies of facts that were told once already.
    late: Vec<(Incarnation, Fact)>,
    pub(super) timers: Vec<(Incarnation, Timer, u64)>,
    names: u32,
}

impl World {
    pub(super) fn new(record: VmRecord) -> Self {
        Self {
            oracle: Oracle::new(&record),
            record,
            erased: false,
            now: 1_000_000,
            boot: 1,
            qemu: None,
            held: false,
            polite_guest: true,
            comes_up: RunState::Running,
            fuse: None,
            worker: VecDeque::new(),
            news: VecDeque::new(),
            tasks: Vec::new(),
            late: Vec::new(),
            timers: Vec::new(),
            names: 0,
        }
    }

    pub(super) fn name(&mut self) -> u32 {
        self.names += 1;
        self.names
    }

    pub(super) fn command(&mut self, command: Command) {
        let context = context(self.name().into());
        self.tell(Input::Command(command, context));
    }

    /// Decide, persist, dispatch.
    pub(super) fn tell(&mut self, input: Input) {
        if self.erased {
            return;
        }
        let moment = moment(self.now, self.boot);
        let before = self.record.clone();
        let decision = step(&before, input.clone(), &moment);
        let fuse = self.fuse.take();
        if fuse == Some(0) {
            return self.crash();
        }
        self.record = decision.record.clone();
        self.erased = decision.erased.is_some();
        let ran = self.qemu.as_ref().map(|q| (q.incarnation, q.state));
        self.oracle
            .persisted(&before, &input, &decision, UnixMs(self.now), ran);
        let survived = fuse.map_or(usize::MAX, |n| n - 1);
        for effect in decision.effects.into_iter().take(survived) {
            self.dispatch(effect);
        }
        if fuse.is_some() {
            return self.crash();
        }
        self.check();
    }

    /// The daemon dies and starts again.
    pub(super) fn crash(&mut self) {
        self.worker.clear();
        self.news.clear();
        self.tasks.clear();
        self.late.clear();
        self.timers.clear();
        if let Some(qemu) = &mut self.qemu {
            qemu.attached = false;
        }
        self.tell(Input::Recover);
    }

    pub(super) fn reboot(&mut self) {
        self.qemu = None;
        self.boot += 1;
        self.crash();
    }

    fn dispatch(&mut self, effect: Effect) {
        let incarnation = self.record.incarnation;
        match effect {
            Effect::Claim | Effect::Adopt => self.worker.push_back((incarnation, effect)),
            Effect::Launch => {
                assert!(self.no_qemu(), "a second QEMU is launched");
                self.worker.push_back((incarnation, effect));
            }
            Effect::Release { .. } => {
                assert!(self.no_qemu(), "what a living QEMU holds is released");
                self.worker.push_back((incarnation, effect));
            }
            // The actor begins no work a second time while it is under way.
            Effect::Nic { .. } if self.is_under_way(&effect) => {}
            Effect::Act(..)
            | Effect::Plug { .. }
            | Effect::Unplug { .. }
            | Effect::Resize { .. }
            | Effect::LookAtDisks
            | Effect::LookForSpace
            | Effect::Nic { .. }
            | Effect::Continue
            | Effect::Powerdown => {
                self.tasks.push(Task::Qmp(incarnation, effect));
            }
            Effect::Terminate => self.signal(false),
            Effect::Kill => self.signal(true),
            Effect::Arm(timer, ms) => {
                self.timers
                    .push((incarnation, timer, self.now.saturating_add(ms)));
            }
        }
    }

    /// No QEMU lives, and none is about to be spawned.
    pub(super) fn no_qemu(&self) -> bool {
        let launching = self.worker.iter().any(|(_, e)| *e == Effect::Launch);
        self.qemu.is_none() && !launching
    }

    fn signal(&mut self, kill: bool) {
        let incarnation = self.record.incarnation;
        if let Some(at) = self.worker.iter().position(|(_, e)| *e == Effect::Launch) {
            // The spawn is under way: given up in time, or not (then the signal
            // is lost and has to come again).
            if self.name().is_multiple_of(2) {
                self.worker.remove(at);
                self.exited(incarnation, ExitStatus::NeverSpawned);
            }
            return;
        }
        let Some(qemu) = &self.qemu else { return };
        assert!(qemu.attached, "a QEMU is signalled that nobody has found");
        self.oracle.may_be_ended(qemu.incarnation, qemu.state);
        if kill {
            self.die(ExitStatus::Signal(9));
        } else if !qemu.deaf {
            self.die(ExitStatus::Code(0));
        }
    }

    /// Does the next piece of the serial work.
    fn work(&mut self, fail: bool) -> bool {
        let Some((incarnation, effect)) = self.worker.pop_front() else {
            return false;
        };
        let detail = "it failed".to_owned();
        let answer = match effect {
            Effect::Claim => {
                // Also a denied claim may have got hold of a part.
                self.held = true;
                if fail {
                    Fact::ClaimDenied { detail }
                } else {
                    Fact::Claimed(Claim::default())
                }
            }
            Effect::Launch if fail => Fact::LaunchFailed { detail },
            Effect::Launch => Fact::Spawned(identity(self.spawn(incarnation))),
            Effect::Adopt if fail => {
                self.worker.push_front((incarnation, Effect::Adopt));
                return true;
            }
            Effect::Adopt => {
                self.adopt(incarnation);
                return true;
            }
            Effect::Release { .. } if fail => Fact::ReleaseFailed { detail },
            Effect::Release { erase, .. } => {
                self.held = false;
                Fact::Released { erased: erase }
            }
            _ => unreachable!("only serial work is queued"),
        };
        self.tasks.push(Task::Tell(incarnation, answer));
        true
    }

    fn run_task(&mut self, task: Task, fail: bool) {
        match task {
            Task::Tell(incarnation, fact) => self.tell(Input::Fact(incarnation, fact)),
            Task::Boot(incarnation) => {
                let Some(qemu) = &mut self.qemu else { return };
                if fail {
                    return self.die(ExitStatus::Code(1));
                }
                if qemu.incarnation == incarnation && !qemu.deaf {
                    if qemu.state == RunState::Prelaunch {
                        qemu.state = self.comes_up;
                    }
                    self.news.push_back((incarnation, Fact::Ready(qemu.state)));
                }
            }
            Task::Qmp(incarnation, effect) => self.qmp(incarnation, effect, fail),
        }
    }

    /// From its beginning until its outcome was taken in, or is lost.
    fn is_under_way(&self, effect: &Effect) -> bool {
        let Effect::Nic { operation: of, .. } = effect else {
            return false;
        };
        self.tasks.iter().any(|task| match task {
            Task::Qmp(_, other) => other == effect,
            Task::Tell(_, Fact::NicDone { operation, .. }) => operation == of,
            Task::Tell(..) | Task::Boot(_) => false,
        })
    }

    /// Work on one network card is done one after the other.
    fn first_of_its_card(&self, at: usize) -> usize {
        let card = |task: &Task| match task {
            Task::Qmp(_, Effect::Nic { nic, .. }) => Some(*nic),
            _ => None,
        };
        let of = card(&self.tasks[at]);
        let same = |task| of.is_some() && card(task) == of;
        self.tasks.iter().position(same).unwrap_or(at)
    }

    /// Lets one of the things under way happen; `again` keeps a copy of what is
    /// told for later.
    pub(super) fn progress(&mut self, which: usize, fail: bool, again: bool) {
        let count = 2 + self.tasks.len() + self.late.len();
        match which % count {
            0 => {
                self.work(fail);
            }
            1 => {
                if let Some((incarnation, fact)) = self.news.pop_front() {
                    if again && matches!(fact, Fact::Exited { .. } | Fact::Found(_) | Fact::Gone) {
                        self.late.push((incarnation, fact.clone()));
                    }
                    self.tell(Input::Fact(incarnation, fact));
                }
            }
            n if n - 2 < self.tasks.len() => {
                let task = self.tasks.remove(self.first_of_its_card(n - 2));
                if let (Task::Tell(incarnation, fact), true) = (&task, again) {
                    self.late.push((*incarnation, fact.clone()));
                }
                self.run_task(task, fail);
            }
            n => {
                let (incarnation, fact) = self.late.remove(n - 2 - self.tasks.len());
                self.tell(Input::Fact(incarnation, fact));
            }
        }
    }

    pub(super) fn fire(&mut self, which: usize) {
        if !self.timers.is_empty() {
            let (incarnation, timer, _) = self.timers.remove(which % self.timers.len());
            self.tell(Input::Fact(incarnation, Fact::TimerDue(timer)));
        }
    }

    /// No more faults: everything under way is done, then the timers run out in
    /// their order, until nothing is left to happen.
    pub(super) fn settle(&mut self) {
        self.fuse = None;
        self.comes_up = RunState::Running;
        for _ in 0..5_000 {
            if self.work(false) {
                continue;
            }
            if let Some((incarnation, fact)) = self.news.pop_front() {
                self.tell(Input::Fact(incarnation, fact));
            } else if !self.tasks.is_empty() {
                let task = self.tasks.remove(0);
                self.run_task(task, false);
            } else if let Some((incarnation, fact)) = self.late.pop() {
                self.tell(Input::Fact(incarnation, fact));
            } else if !self.timers.is_empty() {
                self.timers.sort_by_key(|(_, _, due)| *due);
                self.now = self.now.max(self.timers[0].2);
                self.fire(0);
            } else {
                return;
            }
        }
        panic!("it never comes to an end: {:#?}", self.record);
    }
}
