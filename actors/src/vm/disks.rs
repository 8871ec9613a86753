//! What a VmActor has done to its disks while its QEMU lives.
//!
//! These effects run beside the lane: an unplug may wait ten seconds for the
//! guest, and a stop must not wait behind it. The machine does work on one disk
//! one after the other. An outcome nobody knows is not told; the model asks
//! QEMU when it answers again.

use super::{VmDeps, VmMsg, VmState, opening::Opening};
use crate::{
    disks::HeldFile,
    mailbox::ActorRef,
    ports::{BoxFuture, DiskAction, DiskError, DiskPlan, Machine, device_name, node_name},
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use vman_model::{
    DiskId, DiskRecord, Incarnation, OperationId,
    disk::ROOT_DISK_SLOT,
    vm::{DiskOutcome, Fact, VmRecord},
};

/// How long after an unanswered question QEMU is asked again which disks it has.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often it is asked before the next `Ready` is waited for.
const LOOKS: u32 = 5;

/// The slot of a disk in a VM.
pub(super) fn slot_of(vm: &VmRecord, disk: &DiskRecord) -> Option<u8> {
    if disk.root {
        return Some(ROOT_DISK_SLOT);
    }
    let held = vm.disks.iter().find(|held| held.disk == disk.id);
    held.map(|held| held.slot)
}

/// A disk as QEMU is given it. Its file is there and large enough.
pub(super) async fn plan(deps: &VmDeps, disk: &DiskRecord, slot: u8) -> Result<DiskPlan, String> {
    let held = hold(deps, disk).await?;
    Ok(planned(held.path, disk, slot))
}

/// Sees to it that a disk's file is what its row says.
pub(super) async fn hold(deps: &VmDeps, disk: &DiskRecord) -> Result<HeldFile, String> {
    let held = deps.disks.hold(deps.disks.file_of(disk)).await;
    held.map_err(|error| format!("disk {}: {error}", disk.id))
}

pub(super) fn planned(path: PathBuf, disk: &DiskRecord, slot: u8) -> DiskPlan {
    DiskPlan {
        node: node_name(&disk.id),
        device: device_name(&disk.id),
        path,
        format: disk.format,
        slot,
        serial: disk.serial(),
        options: disk.options.clone(),
    }
}

pub(super) fn row(deps: &VmDeps, disk: &DiskId) -> Option<DiskRecord> {
    let inventory = deps.store.inventory();
    inventory.disks.get(disk).map(|row| row.value.clone())
}

/// Where the outcome of work on a disk is told.
struct Report {
    vm: ActorRef<VmMsg>,
    incarnation: Incarnation,
    operation: Option<OperationId>,
    disk: DiskId,
}

impl Report {
    fn tell(self, result: Result<(), DiskError>) {
        let disk = self.disk;
        let outcome = match outcome(result) {
            Ok(outcome) => outcome,
            Err(why) => {
                tracing::warn!(disk_id = %disk, why, "what became of the work on a disk is unknown");
                return;
            }
        };
        let Some(operation) = self.operation else {
            tracing::info!(disk_id = %disk, ?outcome, "took out a disk that should not be there");
            return;
        };
        let fact = Fact::DiskDone {
            operation,
            disk,
            outcome,
        };
        let _ = self.vm.cast(VmMsg::Fact(self.incarnation, fact));
    }
}

/// What is known to have become of work on a device, or why that is not known.
pub(super) fn outcome(result: Result<(), DiskError>) -> Result<DiskOutcome, String> {
    match result {
        Ok(()) => Ok(DiskOutcome::Done),
        Err(DiskError::Refused(why)) => Ok(DiskOutcome::Refused(why)),
        Err(DiskError::Held(why)) => Ok(DiskOutcome::Held(why)),
        Err(DiskError::Unknown(why)) => Err(why),
    }
}

impl VmState {
    pub(super) fn machine_now(&self) -> Result<Arc<dyn Machine>, DiskError> {
        let machine = self.machine.as_ref().map(|(_, machine)| machine.clone());
        machine.ok_or_else(|| DiskError::Refused("there is no QMP connection".to_owned()))
    }

    pub(super) fn plug(
        &mut self,
        myself: &ActorRef<VmMsg>,
        incarnation: Incarnation,
        operation: OperationId,
        disk: DiskId,
        slot: u8,
    ) {
        let report = report(myself, incarnation, Some(operation), disk.clone());
        let (machine, deps) = (self.machine_now(), self.deps.clone());
        let opening = self.opening.take().filter(|opening| opening.is_of(&disk));
        tokio::spawn(async move {
            report.tell(plug(machine, &deps, &disk, slot, opening).await);
        });
    }

    pub(super) fn unplug(
        &self,
        myself: &ActorRef<VmMsg>,
        incarnation: Incarnation,
        operation: Option<OperationId>,
        disk: DiskId,
    ) {
        let report = report(myself, incarnation, operation, disk.clone());
        let machine = self.machine_now();
        tokio::spawn(async move {
            report.tell(begin(machine, DiskAction::Unplug(disk)).await);
        });
    }

    pub(super) fn resize(
        &self,
        myself: &ActorRef<VmMsg>,
        incarnation: Incarnation,
        operation: OperationId,
        disk: DiskId,
    ) {
        let report = report(myself, incarnation, Some(operation), disk.clone());
        let (machine, size) = (self.machine_now(), row(&self.deps, &disk));
        tokio::spawn(async move {
            let done = match (machine, size) {
                (machine, Some(row)) => {
                    begin(machine, DiskAction::Resize(disk, row.size_mib)).await
                }
                (_, None) => Err(DiskError::Refused("the disk is gone".to_owned())),
            };
            report.tell(done);
        });
    }

    /// Changes how fast a disk may be; the row says it, so nothing is told.
    pub(super) fn limit(&self, disk: &DiskId) {
        let (Ok(machine), Some(row)) = (self.machine_now(), row(&self.deps, disk)) else {
            return;
        };
        let done = machine.disk(DiskAction::Limit(row.id, row.options.limits));
        tokio::spawn(async move {
            if let Err(error) = done.await {
                tracing::warn!(%error, "a disk's limits take effect at its next attach");
            }
        });
    }

    pub(super) fn look_at_disks(&self, myself: &ActorRef<VmMsg>, incarnation: Incarnation) {
        let Some((_, machine)) = &self.machine else {
            return;
        };
        let (vm, machine) = (myself.clone(), Arc::downgrade(machine));
        tokio::spawn(async move {
            for _ in 0..LOOKS {
                let Some(asked) = machine.upgrade().map(|machine| machine.disks()) else {
                    return;
                };
                match asked.await {
                    Ok(seen) => {
                        let _ = vm.cast(VmMsg::Fact(incarnation, Fact::DisksSeen(seen)));
                        return;
                    }
                    Err(error) => tracing::debug!(%error, "QEMU does not say which disks it has"),
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        });
    }

    pub(super) fn look_for_space(&self, myself: &ActorRef<VmMsg>, incarnation: Incarnation) {
        let (vm, disks) = (myself.clone(), self.deps.disks.clone());
        tokio::spawn(async move {
            // What cannot be told is no space; it is looked for again.
            let available = disks.space().await.unwrap_or(0);
            let _ = vm.cast(VmMsg::Fact(incarnation, Fact::SpaceSeen { available }));
        });
    }
}

fn report(
    vm: &ActorRef<VmMsg>,
    incarnation: Incarnation,
    operation: Option<OperationId>,
    disk: DiskId,
) -> Report {
    Report {
        vm: vm.clone(),
        incarnation,
        operation,
        disk,
    }
}

/// Begins work on a disk. What is awaited does not hold the machine: one that its
/// actor has dropped gives its connection up at once.
fn begin(
    machine: Result<Arc<dyn Machine>, DiskError>,
    action: DiskAction,
) -> BoxFuture<'static, Result<(), DiskError>> {
    match machine {
        Ok(machine) => machine.disk(action),
        Err(error) => Box::pin(async { Err(error) }),
    }
}

async fn plug(
    machine: Result<Arc<dyn Machine>, DiskError>,
    deps: &VmDeps,
    disk: &DiskId,
    slot: u8,
    opening: Option<Opening>,
) -> Result<(), DiskError> {
    if let Some(mut opening) = opening
        && let Some(plan) = opening.begun().await
    {
        let plugged = begin(machine.clone(), DiskAction::Plug { plan, opened: true });
        let (_turn, plugged) = tokio::join!(opening.opened(), plugged);
        // Refused may have been either: in the ordinary way it is said why.
        if !matches!(plugged, Err(DiskError::Refused(_))) {
            return plugged;
        }
    }
    let gone = || DiskError::Refused(format!("disk {disk} is gone"));
    let row = row(deps, disk).ok_or_else(gone)?;
    // Until QEMU has it open nobody else does.
    let HeldFile { path, turn } = hold(deps, &row).await.map_err(DiskError::Refused)?;
    let plan = planned(path, &row, slot);
    let plugged = begin(
        machine,
        DiskAction::Plug {
            plan,
            opened: false,
        },
    )
    .await;
    drop(turn);
    plugged
}
