//! What must hold between any two steps in the simulated host: nothing lives or
//! is held where nothing may, and something is always under way.

use super::host::{Task, World};
use crate::vm::{
    messages::{Effect, Fact, RunState, Timer},
    phase::Phase,
};

impl World {
    /// What must hold between any two steps.
    pub(super) fn check(&self) {
        let record = &self.record;
        if self.erased {
            assert!(self.no_qemu() && !self.held, "erased, but not gone");
            return;
        }
        let rests = matches!(
            record.phase,
            Phase::Stopped | Phase::Failed | Phase::Backoff
        );
        if rests {
            assert!(!self.held, "{:?} holds something", record.phase);
        }
        if rests || matches!(record.phase, Phase::Claiming | Phase::Releasing) {
            assert!(self.no_qemu(), "a QEMU lives in {:?}", record.phase);
        }
        self.check_truth();
        assert!(self.goes_on(), "a dead end: {record:#?}");
    }

    /// Once everything that is on its way has been heard, the record says of the
    /// guest what is so.
    fn check_truth(&self) {
        let quiet = self.news.is_empty() && self.tasks.is_empty();
        let Some(qemu) = self
            .qemu
            .as_ref()
            .filter(|q| quiet && q.attached && !q.deaf)
        else {
            return;
        };
        let runs = qemu.state == RunState::Running;
        match self.record.phase {
            Phase::Running => assert!(runs, "it runs, they say: {:?}", qemu.state),
            Phase::Paused => assert!(!runs, "it stands still, they say"),
            _ => {}
        }
    }

    fn armed(&self, timer: Timer) -> bool {
        let now = self.record.incarnation;
        self.timers.iter().any(|(i, t, _)| *i == now && *t == timer)
    }

    /// Whether an answer that `which` picks is still to come in this life.
    fn awaits(&self, which: fn(&Fact) -> bool) -> bool {
        let now = self.record.incarnation;
        let told = self.tasks.iter().filter_map(|task| match task {
            Task::Tell(incarnation, fact) => Some((*incarnation, fact)),
            Task::Boot(_) | Task::Qmp(..) => None,
        });
        let news = self.news.iter().map(|(i, fact)| (*i, fact));
        told.chain(news).any(|(i, fact)| i == now && which(fact))
    }

    /// Whether a command to QEMU is under way.
    pub(super) fn acts(&self) -> bool {
        self.tasks
            .iter()
            .any(|task| matches!(task, Task::Qmp(..) | Task::Tell(_, Fact::ActionDone { .. })))
    }

    fn works_at(&self, which: fn(&Effect) -> bool) -> bool {
        let now = self.record.incarnation;
        self.worker.iter().any(|(i, e)| *i == now && which(e))
    }

    /// Whether something is under way that will lead out of the phase.
    fn goes_on(&self) -> bool {
        let exits = self.awaits(|f| matches!(f, Fact::Exited { .. } | Fact::LaunchFailed { .. }));
        match self.record.phase {
            Phase::Stopped | Phase::Failed => true,
            Phase::Claiming => {
                self.works_at(|e| *e == Effect::Claim)
                    || self.awaits(|f| matches!(f, Fact::Claimed(_) | Fact::ClaimDenied { .. }))
            }
            Phase::Launching => self.armed(Timer::LaunchDeadline),
            Phase::Running | Phase::Paused => self.qemu.is_some() || exits,
            Phase::Stopping => self.armed(Timer::StopDeadline),
            Phase::Killing => self.armed(Timer::KillAgain) || exits,
            Phase::Releasing => {
                self.works_at(|e| matches!(e, Effect::Release { .. }))
                    || self
                        .awaits(|f| matches!(f, Fact::Released { .. } | Fact::ReleaseFailed { .. }))
                    || self.armed(Timer::ReleaseAgain)
            }
            Phase::Backoff => self.armed(Timer::BackoffDue),
            Phase::Unknown => {
                let deaf = self.record.unresponsive && self.qemu.is_some();
                let given_time =
                    self.record.started_at.is_some() || self.armed(Timer::LaunchDeadline);
                self.works_at(|e| *e == Effect::Adopt)
                    || exits
                    || (deaf && given_time)
                    || self.awaits(|f| matches!(f, Fact::Gone | Fact::Ready(_) | Fact::Deaf { .. }))
            }
        }
    }
}
