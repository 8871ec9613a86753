//! What is done about a finding, and how it is told.
//!
//! Must not: find anything itself. Every repair is safe to repeat, and asks the
//! host once more before it takes something away.

use super::{Finding, ObserverArguments, Told};
use crate::{
    ports::{AdoptPlan, Adoption, NewsSink},
    store::Inventory,
};
use std::{sync::Arc, time::Duration};
use vman_model::{
    Cause, Change, EventDraft, EventKind, Origin, Subject, VmId,
    drift::{Drift, Repair, Room, SeenProcess},
};

/// Events about findings per check; the rest are told at the next ones. A host
/// that lost a whole folder shall not push every other event out of the log.
const MAX_TOLD: usize = 64;

/// Does what the finding asks for, and answers the word for it.
pub(super) async fn act(arguments: &ObserverArguments, drift: &Drift, again: bool) -> String {
    if !arguments.drift.repair {
        return "reported".to_owned();
    }
    let done = match &drift.repair {
        Repair::Report => Ok("reported"),
        Repair::Wait => Ok("waiting"),
        Repair::LookAgain(vm, revision) => {
            let told = arguments.vms.look_again(vm, *revision);
            Ok(if told { "looking_again" } else { "reported" })
        }
        Repair::End(vm, process) => end(arguments, vm, process, again).await,
        Repair::PutAway(room, name) => put_away(arguments, *room, name).await,
    };
    done.map_or_else(|error| format!("failed: {error}"), str::to_owned)
}

/// Ends a QEMU: politely the first time it is found, by force after that. It is
/// named by pid, start time and boot, so a later life of the VM is never meant.
async fn end(
    arguments: &ObserverArguments,
    vm: &VmId,
    process: &SeenProcess,
    again: bool,
) -> Result<&'static str, String> {
    let plan = AdoptPlan {
        vm: vm.clone(),
        uuid: process.uuid,
        incarnation: process.incarnation,
        process: Some(process.identity.clone()),
        bounds: None,
    };
    // What it says is nobody's news: its life is over in the records.
    let news = NewsSink::new(|_| {});
    match arguments.hypervisor.adopt(plan, news).await {
        Ok(Adoption::Gone) => Ok("gone"),
        Ok(Adoption::Found(machine)) if machine.identity() != process.identity => Ok("gone"),
        Ok(Adoption::Found(machine)) if again => {
            machine.kill();
            Ok("killed")
        }
        Ok(Adoption::Found(machine)) => {
            machine.terminate();
            Ok("ended")
        }
        Err(error) => Err(error.to_string()),
    }
}

async fn put_away(
    arguments: &ObserverArguments,
    room: Room,
    name: &str,
) -> Result<&'static str, String> {
    // A VM of this name may have been made since the look.
    if is_known(&arguments.store.inventory(), room, name) {
        return Ok("gone");
    }
    let grace = arguments.drift.grace;
    let put = arguments
        .folders
        .put_away(room, name.to_owned(), grace)
        .await;
    match (put.map_err(|error| error.to_string())?, room) {
        (false, _) => Ok("gone"),
        (true, Room::Runtime) => Ok("removed"),
        (true, Room::Disks | Room::Images | Room::VmFolders) => Ok("put_away"),
    }
}

fn is_known(inventory: &Inventory, room: Room, name: &str) -> bool {
    let by_vm = || VmId::parse(name).is_ok_and(|id| inventory.vms.contains_key(&id));
    match room {
        Room::VmFolders | Room::Runtime => by_vm(),
        Room::Images => vman_model::ImageName::parse(name)
            .is_ok_and(|image| inventory.images.contains_key(&image)),
        Room::Disks => {
            let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
            vman_model::DiskId::parse(stem).is_ok_and(|disk| inventory.disks.contains_key(&disk))
        }
    }
}

/// Deletes what has lain in the trash for long enough.
pub(super) async fn empty_trash(arguments: &ObserverArguments) {
    if !arguments.drift.repair {
        return;
    }
    match arguments
        .folders
        .empty_trash(arguments.drift.retention)
        .await
    {
        Ok(0) => {}
        Ok(removed) => tracing::info!(
            removed,
            "the trash was emptied of what is past its retention"
        ),
        Err(error) => tracing::warn!(%error, "the trash folder cannot be emptied"),
    }
}

/// Tells each finding once for as long as it lasts and the same is done about
/// it, and that it is there no more. What cannot be told now (the disk is full) is told at the next check.
pub(super) async fn tell(
    arguments: &ObserverArguments,
    inventory: &Inventory,
    findings: &[(Drift, Finding)],
    told: &mut Told,
) {
    let mut left = MAX_TOLD;
    let gone: Vec<_> = told
        .iter()
        .filter(|(key, _)| !findings.iter().any(|(drift, _)| key.is(drift)))
        .map(|(key, subject)| (key.clone(), subject.clone()))
        .collect();
    for (key, subject) in gone.into_iter().take(left) {
        let detail = format!("{}: {}: it is so no more", key.class.as_str(), key.resource);
        let input = key.class.as_str();
        let event = event(
            arguments,
            inventory,
            EventKind::DriftGone,
            subject,
            input,
            detail,
        );
        if !commit(arguments, event).await {
            return;
        }
        tracing::info!(
            issue_type = input,
            resource_id = key.resource,
            "drift is gone"
        );
        told.remove(&key);
        left -= 1;
    }
    for (drift, finding) in findings {
        if left == 0 || told.contains_with(drift, &finding.action) {
            continue;
        }
        let (class, resource) = (&finding.issue_type, &finding.resource_id);
        let detail = format!(
            "{class}: {resource}: {} ({})",
            finding.details, finding.action
        );
        let subject = drift.subject.clone();
        let event = event(
            arguments,
            inventory,
            EventKind::DriftFound,
            subject,
            class,
            detail,
        );
        if !commit(arguments, event).await {
            return;
        }
        tracing::warn!(
            message_id = super::DRIFT_MESSAGE_ID,
            issue_type = class,
            resource_id = resource,
            details = finding.details,
            action = finding.action,
            "drift found"
        );
        told.add(drift, &finding.action);
        left -= 1;
    }
}

async fn commit(arguments: &ObserverArguments, event: EventDraft) -> bool {
    let change = Change {
        event: Some(event),
        ..Change::default()
    };
    /// The store's own limit answers sooner; this is for a store that hangs.
    const DEADLINE: Duration = Duration::from_secs(10);
    match tokio::time::timeout(DEADLINE, arguments.store.commit(change)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a finding cannot be recorded yet");
            false
        }
        Err(_) => false,
    }
}

fn event(
    arguments: &ObserverArguments,
    inventory: &Inventory,
    kind: EventKind,
    subject: Subject,
    input: &str,
    detail: String,
) -> EventDraft {
    let led_by = match &subject {
        Subject::Vm(id) => inventory.vms.get(id).and_then(|vm| vm.value.last_event),
        _ => None,
    };
    EventDraft::new(
        arguments.clock.now(),
        subject,
        kind,
        detail,
        Cause {
            led_by,
            ..Cause::new(Origin::Observer, input)
        },
    )
}

/// Kept for the next check.
pub(super) fn finding(drift: &Drift, action: String) -> Finding {
    Finding {
        issue_type: drift.class.as_str().to_owned(),
        resource_id: drift.resource.clone(),
        details: drift.details.clone(),
        action,
    }
}

/// The memory of a check, shared with the one that may still run.
pub(super) type Memory = Arc<tokio::sync::Mutex<Told>>;
