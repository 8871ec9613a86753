//! What the Observer may ask of a VM: whether its machine answers, and to look
//! for its QEMU again. Neither is waited for, and neither fills a mailbox.

use super::{Unwritten, VmState, VmsHandle, msg::VmMsg};
use crate::{mailbox::ActorRef, ports::MachineAction};
use ractor::ActorProcessingErr;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;
use vman_model::{
    Revision, VmId,
    vm::{AttachState, Attachment, Phase},
};

impl VmsHandle {
    /// Asks a VM's machine whether it answers; what it says is news to the VM.
    pub fn ping(&self, id: &VmId) {
        self.tell(id, VmMsg::Ping);
    }

    /// Has a VM that is still at `revision` look for its QEMU again. Answers
    /// whether it was told.
    pub fn look_again(&self, id: &VmId, revision: Revision) -> bool {
        self.tell(id, |permit| VmMsg::LookAgain(revision, permit))
    }

    fn tell(&self, id: &VmId, message: impl FnOnce(OwnedSemaphorePermit) -> VmMsg) -> bool {
        let Some(entry) = self.directory.get(id) else {
            return false;
        };
        let Ok(permit) = Arc::clone(&entry.observed).try_acquire_owned() else {
            return false;
        };
        let actor = entry.actor.filter(|_| !entry.quarantined);
        actor.is_some_and(|actor| actor.cast(message(permit)).is_ok())
    }
}

impl VmState {
    /// The permit is given back when the machine has answered: a deaf one is
    /// not asked again before.
    pub(super) fn ping(&self, myself: &ActorRef<VmMsg>, permit: OwnedSemaphorePermit) {
        let Some((incarnation, machine)) = &self.machine else {
            return;
        };
        let answer = machine.act(MachineAction::Ping);
        let (incarnation, vm) = (*incarnation, myself.clone());
        let revision = self.quiet_with_disks();
        let asked = revision.map(|revision| (revision, machine.disks()));
        tokio::spawn(async move {
            // Ready and Deaf come as news of the machine itself.
            let _ = answer.await;
            if let Some((revision, disks)) = asked
                && let Ok(seen) = disks.await
            {
                let _ = vm.cast(VmMsg::DisksLooked(revision, incarnation, seen));
            }
            drop(permit);
        });
    }

    /// The record's revision, if there are data disks and nothing is under way
    /// with one: what is under way tells its outcome by itself.
    fn quiet_with_disks(&self) -> Option<Revision> {
        let (revision, record) = self.record.as_ref()?;
        let quiet =
            |held: &Attachment| matches!(held.state, AttachState::Attached | AttachState::LetGo);
        let idle = record.operations.is_empty();
        let disks = &record.disks;
        (idle && !disks.is_empty() && disks.iter().all(quiet)).then_some(*revision)
    }

    /// The way is that of a restarted actor: forget the machine, then recover.
    pub(super) async fn look_again(
        &mut self,
        myself: &ActorRef<VmMsg>,
        seen_at: Revision,
    ) -> Result<(), ActorProcessingErr> {
        let same = self.record.as_ref().is_some_and(|(revision, record)| {
            let alive = matches!(
                record.phase,
                Phase::Running | Phase::Paused | Phase::Stopping
            );
            *revision == seen_at && alive
        });
        if !same || !self.lane_rests() || !self.unwritten.is_empty() {
            return Ok(());
        }
        // QMP takes one client at a time.
        self.machine = None;
        self.take(myself, Unwritten::Recover).await
    }
}
