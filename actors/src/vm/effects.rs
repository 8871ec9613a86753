//! What a VmActor dispatches once it is durable. Every effect runs in a task
//! and reports facts; the actor waits for none of them.
//!
//! Claim, Launch, Adopt and Release change what is on the host: they run one
//! after another (the lane), also across a restart of the actor (the gate), so
//! that a spawn that is under way is never overtaken by a search for it.
//! Look next: `job.rs` for what each of those four does.

use super::msg::Pace;
use super::{
    VmMsg, VmState,
    handle::HostGate,
    job::{self, Job, LaunchPermit, Recall, WISH_KILL, WISH_NONE, WISH_TERMINATE},
};
use crate::{
    mailbox::ActorRef,
    ports::{Machine, MachineAction},
};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use vman_model::{
    Incarnation,
    vm::{Effect, Fact, QmpAction},
};

/// The order of what one VM does on the host.
pub(super) struct Lane {
    gate: HostGate,
    generation: u64,
    waiting: VecDeque<Effect>,
    busy: bool,
    recall: Arc<Recall>,
    permit: LaunchPermit,
}

impl Lane {
    /// Takes over the VM's lane: what an earlier actor dispatched and has not
    /// begun is dropped, what it has begun is waited for by the first effect.
    pub(super) fn open(gate: HostGate) -> Self {
        // The lock is held by a running effect, possibly for seconds; only its
        // number is taken here.
        let generation = gate.next_generation();
        Self {
            gate,
            generation,
            waiting: VecDeque::new(),
            busy: false,
            recall: Arc::default(),
            permit: LaunchPermit::default(),
        }
    }
}

impl Lane {
    /// Another VM may launch.
    pub(super) fn give_permit_back(&self) {
        drop(job::take(&self.permit));
    }
}

impl VmState {
    /// Whether nothing is being done on the host and nothing waits to be.
    pub(super) fn lane_rests(&self) -> bool {
        !self.lane.busy && self.lane.waiting.is_empty()
    }

    pub(super) fn dispatch(&mut self, myself: &ActorRef<VmMsg>, effects: Vec<Effect>) {
        let Some((_, record)) = self.record.as_ref() else {
            return;
        };
        let incarnation = record.incarnation;
        for effect in effects {
            match effect {
                Effect::Claim => {
                    // Now and not when its turn comes: a stop in between must
                    // reach it.
                    self.lane.recall = Arc::default();
                    self.lane.waiting.push_back(effect);
                }
                Effect::Launch | Effect::Adopt => self.lane.waiting.push_back(effect),
                Effect::Release { .. } => {
                    // A claim that still waits for its permit need not.
                    self.lane.recall.wish(WISH_TERMINATE);
                    self.lane.waiting.push_back(effect);
                }
                Effect::Act(operation, action) => {
                    self.act(myself, incarnation, Some(operation), action);
                }
                Effect::Continue => self.let_run(myself, incarnation),
                Effect::Plug {
                    operation,
                    disk,
                    slot,
                } => self.plug(myself, incarnation, operation, disk, slot),
                Effect::Unplug { operation, disk } => {
                    self.unplug(myself, incarnation, operation, disk);
                }
                Effect::Resize { operation, disk } => {
                    self.resize(myself, incarnation, operation, disk);
                }
                Effect::Nic {
                    operation,
                    nic,
                    work,
                } => self.work_on_nic(myself, incarnation, operation, (nic, work)),
                Effect::LookAtDisks => self.look_at_disks(myself, incarnation),
                Effect::LookForSpace => self.look_for_space(myself, incarnation),
                Effect::Powerdown => self.powerdown(),
                Effect::Terminate => self.end(WISH_TERMINATE),
                Effect::Kill => self.end(WISH_KILL),
                Effect::Arm(timer, after_ms) => {
                    let due = move || VmMsg::Timer(incarnation, timer);
                    myself.send_after(Duration::from_millis(after_ms), due);
                }
            }
        }
        self.run_lane(myself);
    }

    pub(super) fn lane_free(&mut self, myself: &ActorRef<VmMsg>) {
        self.lane.busy = false;
        self.run_lane(myself);
    }

    fn run_lane(&mut self, myself: &ActorRef<VmMsg>) {
        if self.lane.busy {
            return;
        }
        let Some((_, record)) = self.record.as_ref() else {
            return;
        };
        let Some(effect) = self.lane.waiting.pop_front() else {
            return;
        };
        self.lane.busy = true;
        let job = Job {
            deps: self.deps.clone(),
            record: record.clone(),
            vm: myself.clone(),
            recall: self.lane.recall.clone(),
            permit: self.lane.permit.clone(),
            gate: self.lane.gate.clone(),
            generation: self.lane.generation,
        };
        tokio::spawn(async move {
            let mut ended = LaneEnd {
                vm: job.vm.clone(),
                lost: true,
            };
            let turn = job.gate.lock().await;
            if job.gate.is_current(job.generation) {
                job.run(effect).await;
            }
            drop(turn);
            ended.lost = false;
        });
    }

    /// The machine of an incarnation is there. One that comes too late is
    /// dropped: its process lives on and is ended by whoever wants it ended.
    pub(super) fn machine(&mut self, incarnation: Incarnation, machine: Arc<dyn Machine>) {
        let current = self.record.as_ref().is_some_and(|(_, record)| {
            record.incarnation == incarnation && record.phase.may_have_process()
        });
        if current {
            end_machine(machine.as_ref(), self.lane.recall.wished());
            // A new life is listened to at once, however many went before it.
            self.pace = Pace::default();
            self.machine = Some((incarnation, machine));
        }
    }

    fn end(&mut self, wish: u8) {
        match &self.machine {
            Some((_, machine)) => end_machine(machine.as_ref(), wish),
            // Not there yet: the launch under way hears it.
            None => self.lane.recall.wish(wish),
        }
    }

    fn powerdown(&self) {
        if let Some((_, machine)) = &self.machine {
            // Whether the guest heard is told by what it does.
            tokio::spawn(machine.act(MachineAction::Powerdown));
        }
    }

    fn let_run(&self, myself: &ActorRef<VmMsg>, incarnation: Incarnation) {
        let Some((_, machine)) = &self.machine else {
            return;
        };
        let done = machine.act(MachineAction::Resume);
        let vm = myself.clone();
        tokio::spawn(async move {
            // That it runs is told by the machine itself, in the order of its news.
            if let Err(error) = done.await {
                let detail = error.to_string();
                let _ = vm.cast(VmMsg::Fact(incarnation, Fact::Deaf { detail }));
            }
        });
    }

    fn act(
        &self,
        myself: &ActorRef<VmMsg>,
        incarnation: Incarnation,
        operation: Option<vman_model::OperationId>,
        action: QmpAction,
    ) {
        let Some(operation) = operation else { return };
        let vm = myself.clone();
        let done = self.machine.as_ref().map(|(_, machine)| {
            machine.act(match action {
                QmpAction::Pause => MachineAction::Pause,
                QmpAction::Resume => MachineAction::Resume,
                QmpAction::Reset => MachineAction::Reset,
            })
        });
        tokio::spawn(async move {
            let error = match done {
                Some(done) => done.await.err().map(|error| error.to_string()),
                None => Some("no QMP connection".to_owned()),
            };
            let fact = Fact::ActionDone {
                operation,
                action,
                error,
            };
            let _ = vm.cast(VmMsg::Fact(incarnation, fact));
        });
    }
}

fn end_machine(machine: &dyn Machine, wish: u8) {
    match wish {
        WISH_NONE => {}
        WISH_TERMINATE => machine.terminate(),
        _ => machine.kill(),
    }
}

/// Tells the actor that the lane is free, or that the job panicked: then nobody
/// else would ever tell what became of it.
struct LaneEnd {
    vm: ActorRef<VmMsg>,
    lost: bool,
}

impl Drop for LaneEnd {
    fn drop(&mut self) {
        let _ = self.vm.cast(if self.lost {
            VmMsg::EffectLost
        } else {
            VmMsg::LaneFree
        });
    }
}
