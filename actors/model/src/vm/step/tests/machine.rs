//! The QEMU of the simulated host: what its guest does, what it answers, and
//! what of it the daemon hears.

use super::{
    given::identity,
    host::{Task, World},
};
use crate::{
    ids::{DiskId, Incarnation},
    network::LinkState,
    vm::messages::{DiskOutcome, Effect, ExitStatus, Fact, NicWork, QmpAction, RunState, SeenDisk},
};
use std::collections::{BTreeMap, BTreeSet};

/// A living QEMU.
pub(super) struct Qemu {
    pub(super) incarnation: Incarnation,
    pid: u32,
    pub(super) state: RunState,
    /// The data disks it has.
    pub(super) disks: BTreeSet<DiskId>,
    /// The network cards it has, with their cables.
    pub(super) nics: BTreeMap<u8, LinkState>,
    /// It lives, but answers nothing and takes no SIGTERM.
    pub(super) deaf: bool,
    /// The daemon of now holds its pidfd and hears its news.
    pub(super) attached: bool,
}

impl World {
    /// QEMU ends.
    pub(super) fn die(&mut self, status: ExitStatus) {
        if let Some(qemu) = self.qemu.take()
            && qemu.attached
        {
            self.exited(qemu.incarnation, status);
        }
    }

    pub(super) fn exited(&mut self, incarnation: Incarnation, status: ExitStatus) {
        let stderr = String::new();
        self.news
            .push_back((incarnation, Fact::Exited { status, stderr }));
    }

    /// The run state changes; it is told to a daemon that can hear it.
    pub(super) fn becomes(&mut self, state: RunState) {
        if let Some(qemu) = &mut self.qemu {
            qemu.state = state;
            if qemu.attached && !qemu.deaf {
                let news = (qemu.incarnation, Fact::RunStateChanged(state));
                self.news.push_back(news);
            }
        }
    }

    /// Whether the guest, or an operator at its second monitor, could do that
    /// now. (An operator who undoes a pause before VMAN has heard its answer is
    /// not looked at: the answer and the news come by different ways.)
    pub(super) fn may_become(&self, state: RunState) -> bool {
        let of_operator = matches!(state, RunState::Running | RunState::Paused);
        match self.qemu.as_ref().map(|q| q.state) {
            Some(RunState::Running) => !of_operator || !self.acts(),
            Some(RunState::Paused | RunState::IoError) => {
                state == RunState::Running && !self.acts()
            }
            _ => false,
        }
    }

    pub(super) fn guest_resets(&mut self) {
        if let Some(qemu) = self.qemu.as_ref().filter(|q| q.attached && !q.deaf) {
            self.news.push_back((qemu.incarnation, Fact::GuestReset));
        }
    }

    pub(super) fn deafen(&mut self) {
        if let Some(qemu) = &mut self.qemu {
            qemu.deaf = true;
            if qemu.attached {
                let detail = "no answer".to_owned();
                self.news
                    .push_back((qemu.incarnation, Fact::Deaf { detail }));
            }
        }
    }

    pub(super) fn heal(&mut self) {
        if let Some(qemu) = &mut self.qemu
            && qemu.deaf
        {
            qemu.deaf = false;
            if qemu.attached {
                self.news
                    .push_back((qemu.incarnation, Fact::Ready(qemu.state)));
            }
        }
    }

    pub(super) fn spawn(&mut self, incarnation: Incarnation) -> u32 {
        assert!(self.qemu.is_none(), "a second QEMU is spawned");
        let pid = self.name();
        self.qemu = Some(Qemu {
            incarnation,
            pid,
            state: RunState::Prelaunch,
            disks: self
                .record
                .disks
                .iter()
                .map(|held| held.disk.clone())
                .collect(),
            nics: self.record.links().collect(),
            deaf: false,
            attached: true,
        });
        self.tasks.push(Task::Boot(incarnation));
        pid
    }

    pub(super) fn adopt(&mut self, incarnation: Incarnation) {
        let Some(qemu) = &mut self.qemu else {
            self.news.push_back((incarnation, Fact::Gone));
            return;
        };
        assert_eq!(qemu.incarnation, incarnation, "an earlier QEMU lives on");
        qemu.attached = true;
        self.news
            .push_back((incarnation, Fact::Found(identity(qemu.pid))));
        let detail = "no greeting".to_owned();
        let answer = if qemu.deaf {
            Fact::Deaf { detail }
        } else {
            Fact::Ready(qemu.state)
        };
        self.news.push_back((incarnation, answer));
    }

    pub(super) fn qmp(&mut self, incarnation: Incarnation, effect: Effect, fail: bool) {
        let state = self
            .qemu
            .as_ref()
            .filter(|q| q.incarnation == incarnation && !q.deaf && !fail)
            .map(|q| q.state);
        let stands = matches!(
            state,
            Some(RunState::Prelaunch | RunState::Paused | RunState::IoError)
        );
        let runs = state == Some(RunState::Running);
        match effect {
            Effect::Continue if stands => self.becomes(RunState::Running),
            Effect::Powerdown if runs && self.polite_guest => self.becomes(RunState::Shutdown),
            Effect::Act(operation, action) => {
                match action {
                    QmpAction::Pause if runs => self.becomes(RunState::Paused),
                    QmpAction::Resume if stands => self.becomes(RunState::Running),
                    QmpAction::Reset if state.is_some() => self.guest_resets(),
                    _ => {}
                }
                let error = state.is_none().then(|| "no answer".to_owned());
                let done = Fact::ActionDone {
                    operation,
                    action,
                    error,
                };
                self.tasks.push(Task::Tell(incarnation, done));
            }
            Effect::LookForSpace => {
                let available = if fail { 0 } else { u64::MAX };
                let seen = Fact::SpaceSeen { available };
                self.tasks.push(Task::Tell(incarnation, seen));
            }
            Effect::Nic {
                operation,
                nic,
                work,
            } => {
                let Some(outcome) = self.nic_work(incarnation, nic, work, fail) else {
                    return;
                };
                let done = Fact::NicDone {
                    operation,
                    nic,
                    outcome,
                };
                self.tasks.push(Task::Tell(incarnation, done));
            }
            other => self.disk_work(incarnation, other, fail),
        }
    }

    /// Work on the network cards of a QEMU that answers; one that does not says nothing.
    fn nic_work(
        &mut self,
        incarnation: Incarnation,
        nic: u8,
        work: NicWork,
        fail: bool,
    ) -> Option<DiskOutcome> {
        let qemu = self
            .qemu
            .as_mut()
            .filter(|q| q.incarnation == incarnation && !q.deaf)?;
        match work {
            // What is done already is not refused.
            NicWork::Unplug if fail && qemu.nics.contains_key(&nic) => {
                return Some(DiskOutcome::Held("it holds".to_owned()));
            }
            NicWork::Plug | NicWork::Link(_) if fail && !qemu.nics.contains_key(&nic) => {
                return Some(DiskOutcome::Refused("no".to_owned()));
            }
            NicWork::Plug => {
                qemu.nics.entry(nic).or_insert(LinkState::Up);
            }
            NicWork::Unplug => {
                qemu.nics.remove(&nic);
            }
            NicWork::Link(link) => {
                qemu.nics.insert(nic, link);
            }
        }
        Some(DiskOutcome::Done)
    }

    /// Work on the disks of a QEMU that answers; one that does not says nothing.
    fn disk_work(&mut self, incarnation: Incarnation, effect: Effect, fail: bool) {
        let living = self
            .qemu
            .as_mut()
            .filter(|q| q.incarnation == incarnation && !q.deaf);
        let Some(qemu) = living else { return };
        let outcome = |why: DiskOutcome| if fail { why } else { DiskOutcome::Done };
        let (operation, disk, outcome) = match effect {
            Effect::Plug {
                operation, disk, ..
            } => {
                if !fail {
                    qemu.disks.insert(disk.clone());
                }
                (
                    operation,
                    disk,
                    outcome(DiskOutcome::Refused("no".to_owned())),
                )
            }
            Effect::Unplug { operation, disk } => {
                if !fail {
                    qemu.disks.remove(&disk);
                }
                let Some(operation) = operation else { return };
                (
                    operation,
                    disk,
                    outcome(DiskOutcome::Held("it holds".to_owned())),
                )
            }
            Effect::Resize { operation, disk } => (
                operation,
                disk,
                outcome(DiskOutcome::Refused("no".to_owned())),
            ),
            Effect::LookAtDisks => {
                let seen = qemu.disks.iter().map(|disk| SeenDisk {
                    disk: disk.clone(),
                    device: true,
                    node: true,
                });
                let seen = Fact::DisksSeen(seen.collect());
                return self.tasks.push(Task::Tell(incarnation, seen));
            }
            _ => return,
        };
        let done = Fact::DiskDone {
            operation,
            disk,
            outcome,
        };
        self.tasks.push(Task::Tell(incarnation, done));
    }
}
