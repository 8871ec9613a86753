//! VmActor: one VM, its QEMU and its QMP connection.
//!
//! Owns: the VM's record (every change of it is committed from here) and the
//! [`Machine`] of its present incarnation.
//! Must not: decide (the model's `step` does), await anything longer than a
//! commit (effects run in tasks and report facts), or end a guest because it
//! ends itself.
//! A handler reads: decide, persist, dispatch. Dies when it is unknown whether
//! a commit was written; its successor reads the truth and adopts its QEMU.
//! Look next: `turn.rs` (one decision), `effects.rs` and `job.rs` (what is
//! dispatched), `supervisor.rs` (who restarts it), `handle.rs` (how others
//! reach it).

mod create;
mod disks;
mod early;
mod effects;
mod handle;
mod job;
mod msg;
mod nics;
mod observed;
mod opening;
mod supervisor;
mod turn;

#[cfg(test)]
mod tests;

pub use create::{CreateError, NewVm};
pub use handle::{CommandError, CommandRequest, VmDirectory, VmsHandle};
pub use nics::{NicError, WantedNic};
pub use supervisor::{RecoveryProgress, VmSupervisor, VmSupervisorArguments, VmSupervisorMsg};

use crate::{
    disks::DisksHandle,
    mailbox::{Actor, ActorRef},
    network::NetworkHandle,
    ports::{Clock, Hypervisor, Machine, MachineNews},
    power::StartTurns,
    store::{StoreError, StoreHandle},
};
use effects::Lane;
use msg::{Mailbag, Pace, VmMsg};
use ractor::ActorProcessingErr;
use std::{collections::VecDeque, sync::Arc, time::Duration};
use supervisor::Recovering;
use tokio::{
    sync::{Semaphore, oneshot},
    time::Instant,
};
use turn::Turned;
use vman_model::{
    Allowance, Guard, Incarnation, OperationRecord, Revision, VmId, Write,
    vm::{self as model, Fact, Input, Reply, VmRecord},
};

/// How long after a refused commit a fact is tried again: the disk is full or
/// read-only, and guests run on meanwhile.
const RETRY_FACT: Duration = Duration::from_millis(500);
/// Facts that may wait for that. A guest that makes more meanwhile loses its
/// actor: the next one asks for its state instead of its history.
const MAX_UNWRITTEN: usize = 256;

/// What every VmActor needs.
#[derive(Clone)]
pub struct VmDeps {
    /// The store.
    pub store: StoreHandle,
    /// QEMU.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Disk and image files.
    pub disks: DisksHandle,
    /// The network.
    pub network: NetworkHandle,
    /// Time and randomness.
    pub clock: Arc<dyn Clock>,
    /// A permit for each QEMU that may be launching at once.
    pub launches: Arc<Semaphore>,
    /// Whose start is held back after the host was booted.
    pub turns: Arc<StartTurns>,
    /// How much of the host may be promised to VMs.
    pub allowance: Allowance,
}

/// One VM's actor.
pub struct VmActor;

/// What a VmActor is started with.
pub struct VmArguments {
    deps: VmDeps,
    id: VmId,
    supervisor: ActorRef<VmSupervisorMsg>,
    gate: handle::HostGate,
    recovery: Recovering,
}

/// What a VmActor holds.
pub struct VmState {
    deps: VmDeps,
    id: VmId,
    supervisor: ActorRef<VmSupervisorMsg>,
    /// The record and the revision it was committed at; none once it is erased.
    record: Option<(Revision, VmRecord)>,
    machine: Option<(Incarnation, Arc<dyn Machine>)>,
    lane: Lane,
    /// Work on network cards.
    nics: nics::UnderWay,
    pace: Pace,
    recovery: Recovering,
    recovered: Recovered,
    /// What could not be recorded yet, in the order it happened.
    unwritten: VecDeque<Unwritten>,
    retry_armed: bool,
    /// Its QEMU is looked for although the recovery could not be recorded.
    adopting_early: bool,
    /// The disk of the attachment that is being committed.
    opening: Option<opening::Opening>,
}

/// How far the recovery of this VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recovered {
    /// Its beginning is not recorded yet.
    NotBegun,
    /// It is on its way.
    Begun,
    /// It was known once what became of the QEMU, and that was told.
    Told,
}

/// What happened and is to be recorded.
#[derive(Clone)]
enum Unwritten {
    Recover,
    Fact(Incarnation, Fact),
}

impl Actor for VmActor {
    type Msg = VmMsg;
    type State = VmState;
    type Arguments = VmArguments;

    async fn pre_start(
        &self,
        _: ActorRef<VmMsg>,
        arguments: VmArguments,
    ) -> Result<VmState, ActorProcessingErr> {
        let VmArguments {
            deps,
            id,
            supervisor,
            gate,
            recovery,
        } = arguments;
        let lane = Lane::open(gate);
        let record = deps
            .store
            .inventory()
            .vms
            .get(&id)
            .map(|vm| (vm.revision, vm.value.clone()));
        Ok(VmState {
            deps,
            id,
            supervisor,
            record,
            machine: None,
            lane,
            nics: nics::UnderWay::default(),
            pace: Pace::default(),
            recovery,
            recovered: Recovered::NotBegun,
            unwritten: VecDeque::new(),
            retry_armed: false,
            adopting_early: false,
            opening: None,
        })
    }

    async fn post_start(
        &self,
        myself: ActorRef<VmMsg>,
        state: &mut VmState,
    ) -> Result<(), ActorProcessingErr> {
        state.take(&myself, Unwritten::Recover).await?;
        state.note_recovery();
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<VmMsg>,
        message: VmMsg,
        state: &mut VmState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            VmMsg::Command(request, reply) => state.command(&myself, *request, reply).await?,
            VmMsg::Fact(incarnation, fact) => {
                state
                    .take(&myself, Unwritten::Fact(incarnation, fact))
                    .await?;
            }
            VmMsg::Timer(incarnation, timer) => {
                let due = Unwritten::Fact(incarnation, Fact::TimerDue(timer));
                state.take(&myself, due).await?;
            }
            VmMsg::News(incarnation, bag) => {
                state.news(&myself, incarnation, &bag).await?;
            }
            VmMsg::Machine(incarnation, machine) => state.machine(incarnation, machine),
            VmMsg::Ping(permit) => state.ping(&myself, permit),
            VmMsg::DisksLooked(revision, incarnation, seen) => {
                let record = state.record.as_ref();
                if record.is_some_and(|(now, _)| *now == revision) {
                    let fact = Fact::DisksSeen(seen);
                    state
                        .take(&myself, Unwritten::Fact(incarnation, fact))
                        .await?;
                }
            }
            VmMsg::LookAgain(revision, permit) => {
                state.look_again(&myself, revision).await?;
                drop(permit);
            }
            VmMsg::LimitDisk(disk) => state.limit(&disk),
            VmMsg::LaneFree => state.lane_free(&myself),
            VmMsg::EffectLost => return Err("an effect on the host panicked".into()),
            VmMsg::Retry => {
                state.retry_armed = false;
                state.write_down(&myself).await?;
            }
        }
        state.note_recovery();
        Ok(())
    }
}

fn fact_of(news: MachineNews) -> Fact {
    match news {
        MachineNews::Ready(state) => Fact::Ready(state),
        MachineNews::RunState(state) => Fact::RunStateChanged(state),
        MachineNews::GuestReset => Fact::GuestReset,
        MachineNews::Deaf(detail) => Fact::Deaf { detail },
        MachineNews::DiskLetGo(disk) => Fact::DiskLetGo(disk),
        MachineNews::DiskFailed {
            disk,
            no_space,
            detail,
        } => Fact::DiskFailed {
            disk,
            no_space,
            detail,
        },
        MachineNews::Exited { status, stderr } => Fact::Exited { status, stderr },
    }
}

impl VmState {
    async fn command(
        &mut self,
        myself: &ActorRef<VmMsg>,
        request: CommandRequest,
        reply: oneshot::Sender<Result<OperationRecord, CommandError>>,
    ) -> Result<(), ActorProcessingErr> {
        if self.record.is_none() {
            // Erased: a VM of the same name, if there is one, has another actor.
            let _ = reply.send(Err(CommandError::Retired));
            return Ok(());
        }
        // Decided on what has happened, or not at all.
        if let Some(error) = self.write_down(myself).await? {
            let _ = reply.send(Err(CommandError::Store(error)));
            return Ok(());
        }
        let Some((revision, _)) = self.record.as_ref() else {
            let _ = reply.send(Err(CommandError::Retired));
            return Ok(());
        };
        if request
            .if_revision
            .is_some_and(|wanted| wanted != *revision)
        {
            let _ = reply.send(Err(CommandError::Stale));
            return Ok(());
        }
        let guards = request
            .idempotency
            .iter()
            .map(|row| Guard::KeyUnused(row.key.clone()))
            .collect();
        let writes = request
            .idempotency
            .into_iter()
            .map(Write::PutIdempotency)
            .collect();
        let input = Input::Command(request.command, request.context.clone());
        let turned = self.turn_with(myself, input, guards, writes).await?;
        let answer = match turned {
            Turned::Done(Some(Reply::Refused(refusal)), _) => Err(CommandError::Refused(refusal)),
            Turned::Done(_, operations) => operations
                .into_iter()
                .find(|op| op.id == request.context.operation)
                .ok_or(CommandError::Retired),
            Turned::NotWritten(StoreError::Conflict(Guard::KeyUnused(_))) => {
                Err(CommandError::KeyInUse)
            }
            Turned::NotWritten(StoreError::Conflict(Guard::DiskFree(disk))) => {
                Err(CommandError::DiskTaken(disk))
            }
            Turned::NotWritten(StoreError::Conflict(Guard::AddressFree(_) | Guard::MacFree(_))) => {
                Err(CommandError::AddressTaken)
            }
            Turned::NotWritten(StoreError::Conflict(Guard::Room(asked, allowance))) => {
                let promised = self.deps.store.inventory().promised;
                Err(CommandError::NoRoom(allowance.shortage(promised, asked)))
            }
            Turned::NotWritten(error) => Err(CommandError::Store(error)),
        };
        let _ = reply.send(answer);
        Ok(())
    }

    /// Takes what happened, after everything that happened before it.
    async fn take(
        &mut self,
        myself: &ActorRef<VmMsg>,
        happened: Unwritten,
    ) -> Result<(), ActorProcessingErr> {
        if self.unwritten.len() >= MAX_UNWRITTEN {
            return Err("too much happened that could not be recorded".into());
        }
        self.unwritten.push_back(happened);
        if self.unwritten.len() == 1
            && let Some(error) = self.write_down(myself).await?
        {
            tracing::warn!(vm_id = %self.id, %error, "cannot record what happened, trying again");
        }
        Ok(())
    }

    async fn news(
        &mut self,
        myself: &ActorRef<VmMsg>,
        incarnation: Incarnation,
        bag: &Arc<Mailbag>,
    ) -> Result<(), ActorProcessingErr> {
        let pause = if self.unwritten.is_empty() {
            self.pace
                .turn(Instant::now())
                .err()
                .filter(|_| !bag.has_exit())
        } else {
            Some(RETRY_FACT)
        };
        if let Some(pause) = pause {
            // They stay in the bag, and whatever comes meanwhile joins them.
            let bag = bag.clone();
            myself.send_after(pause, move || VmMsg::News(incarnation, bag));
            return Ok(());
        }
        for news in bag.take() {
            self.take(myself, Unwritten::Fact(incarnation, fact_of(news)))
                .await?;
        }
        Ok(())
    }

    /// Records what happened, in its order. Answers why something still waits.
    async fn write_down(
        &mut self,
        myself: &ActorRef<VmMsg>,
    ) -> Result<Option<StoreError>, ActorProcessingErr> {
        while let Some(first) = self.unwritten.front() {
            let (input, begins) = match first.clone() {
                Unwritten::Recover => (Input::Recover, true),
                Unwritten::Fact(incarnation, fact) => (Input::Fact(incarnation, fact), false),
            };
            if let Turned::NotWritten(error) = self.turn(myself, input).await? {
                if !std::mem::replace(&mut self.retry_armed, true) {
                    myself.send_after(RETRY_FACT, || VmMsg::Retry);
                }
                if begins {
                    self.recover_without_record(myself);
                }
                return Ok(Some(error));
            }
            self.unwritten.pop_front();
            if begins && self.recovered == Recovered::NotBegun {
                self.recovered = Recovered::Begun;
            }
        }
        Ok(None)
    }

    /// Recovery of this VM is over once it is known what became of its QEMU.
    fn note_recovery(&mut self) {
        let unresolved = self.record.as_ref().is_some_and(|(_, record)| {
            record.phase == model::Phase::Unknown && !record.unresponsive
        });
        if self.recovered == Recovered::Begun && !unresolved {
            self.recovered = Recovered::Told;
            self.recovery.resolved(&self.id);
        }
    }
}
