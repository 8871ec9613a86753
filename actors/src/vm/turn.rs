//! One turn of a VmActor: decide, persist, dispatch.
//!
//! Must not: dispatch anything that is not durable.

use super::{VmState, VmSupervisorMsg, msg::VmMsg};
use crate::{mailbox::ActorRef, ports::BoxFuture, store::StoreError};
use ractor::ActorProcessingErr;
use vman_model::{
    Change, Guard, OperationRecord, Promise, Revision, Write,
    vm::{self as model, Decision, DiskChange, Input, Moment, Phase, Reply, VmRecord},
};

/// What a turn came to.
pub(super) enum Turned {
    /// Persisted and dispatched; the answer to a command, and its operation.
    Done(Option<Reply>, Vec<OperationRecord>),
    /// Certainly not persisted, so nothing was dispatched.
    NotWritten(StoreError),
}

impl VmState {
    /// Decides, persists, dispatches. `Err` means that the truth must be read
    /// again.
    pub(super) async fn turn(
        &mut self,
        myself: &ActorRef<VmMsg>,
        input: Input,
    ) -> Result<Turned, ActorProcessingErr> {
        self.turn_with(myself, input, Vec::new(), Vec::new()).await
    }

    /// The same with more in its change. In a box, which is gone when it is done: room for all that a
    /// turn holds would otherwise be part of each actor that rests.
    pub(super) fn turn_with<'a>(
        &'a mut self,
        myself: &'a ActorRef<VmMsg>,
        input: Input,
        guards: Vec<Guard>,
        writes: Vec<Write>,
    ) -> BoxFuture<'a, Result<Turned, ActorProcessingErr>> {
        Box::pin(self.decide_persist_dispatch(myself, input, guards, writes))
    }

    async fn decide_persist_dispatch(
        &mut self,
        myself: &ActorRef<VmMsg>,
        input: Input,
        guards: Vec<Guard>,
        writes: Vec<Write>,
    ) -> Result<Turned, ActorProcessingErr> {
        let Some((revision, record)) = self.record.as_ref() else {
            return Ok(Turned::Done(None, Vec::new()));
        };
        let moment = Moment {
            now: self.deps.clock.now(),
            boot_id: self.deps.clock.boot_id(),
        };
        let decision = model::step(record, input, &moment);
        if matches!(decision.reply, Some(Reply::Refused(_))) {
            return Ok(Turned::Done(decision.reply, Vec::new()));
        }
        let operations = decision.operations.clone();
        if decision.event.is_some() {
            let own = Guard::VmRevision(self.id.clone(), *revision);
            let change = self.change(&decision, own, guards, writes);
            self.open_early(&decision.effects);
            let committed = self.deps.store.commit(change).await;
            if committed.is_err() {
                self.close_early();
            }
            match committed {
                Ok(committed) => self.persisted(myself, &decision, committed.revision),
                // The record is not what this actor believes.
                Err(StoreError::Conflict(Guard::VmRevision(..))) => {
                    return Err("the VM's record was changed behind its actor".into());
                }
                Err(error) if error.is_certain() => return Ok(Turned::NotWritten(error)),
                Err(error) => return Err(error.into()),
            }
        }
        let effects = self.without_second_adoption(decision.effects);
        self.dispatch(myself, effects);
        Ok(Turned::Done(decision.reply, operations))
    }

    /// What a VM that had no promise until now must find room for.
    fn room(&self, next: &VmRecord) -> Option<Guard> {
        let (_, now) = self.record.as_ref()?;
        let asked = Promise::to(next);
        let anew = Promise::to(now).is_none() && !asked.is_none();
        anew.then_some(Guard::Room(asked, self.deps.allowance))
    }

    fn change(
        &self,
        decision: &Decision,
        own: Guard,
        mut guards: Vec<Guard>,
        mut writes: Vec<Write>,
    ) -> Change {
        guards.push(own);
        guards.extend(self.room(&decision.record));
        match decision.erased {
            None => writes.push(Write::PutVm(Box::new(decision.record.clone()))),
            Some(erasure) => {
                writes.push(Write::EraseVm(self.id.clone()));
                writes.extend(self.release_disks(erasure.keep_root_disk));
                // What was forwarded while this was decided is of no use either.
                writes.push(Write::DisconnectVm(self.id.clone()));
            }
        }
        writes.extend(decision.operations.iter().cloned().map(Write::PutOperation));
        for change in &decision.disks {
            let vm = self.id.clone();
            // Only what is taken needs a guard: what this VM has, nobody else changes.
            writes.push(match change.clone() {
                DiskChange::Attach(disk) => {
                    guards.push(Guard::DiskFree(disk.clone()));
                    Write::AssignDisk(disk, Some(vm))
                }
                DiskChange::Detach(disk) => Write::AssignDisk(disk, None),
                DiskChange::Size(disk, size_mib) => Write::SizeDisk(disk, size_mib),
            });
        }
        for change in &decision.nics {
            self.nic_rows(change, &mut guards, &mut writes);
        }
        Change {
            guards,
            writes,
            event: decision.event.clone(),
        }
    }

    /// The erased VM's root disk goes with it unless it is kept; other disks are
    /// free again.
    fn release_disks(&self, keep_root_disk: bool) -> Vec<Write> {
        let inventory = self.deps.store.inventory();
        let mine = inventory
            .disks
            .values()
            .filter(|d| d.value.vm_id.as_ref() == Some(&self.id));
        mine.map(|disk| {
            let disk = &disk.value;
            if disk.root && !keep_root_disk {
                Write::EraseDisk(disk.id.clone())
            } else {
                Write::FreeDisk(disk.id.clone())
            }
        })
        .collect()
    }

    fn persisted(&mut self, myself: &ActorRef<VmMsg>, decision: &Decision, revision: Revision) {
        if decision.erased.is_some() {
            self.record = None;
            self.machine = None;
            let _ = self
                .supervisor
                .cast(VmSupervisorMsg::Erased(self.id.clone(), myself.get_id()));
            return;
        }
        let mut record = decision.record.clone();
        record.last_event = Some(revision);
        let machine_is_old = !record.phase.may_have_process()
            || self
                .machine
                .as_ref()
                .is_some_and(|(of, _)| *of != record.incarnation);
        if machine_is_old {
            self.machine = None;
        }
        if !matches!(record.phase, Phase::Claiming | Phase::Launching) {
            self.lane.give_permit_back();
        }
        self.record = Some((revision, record));
    }
}
