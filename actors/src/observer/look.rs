//! One look: the host and the records, at about the same time.
//!
//! Must not: change anything.

use super::ObserverArguments;
use crate::{ports::FoundProcess, store::Inventory};
use std::{collections::BTreeSet, sync::Arc};
use vman_model::{
    Subject, VmUuid,
    drift::{Drift, DriftClass, Patience, Recorded, Seen, SeenNetwork, SeenProcess, plan},
};

/// An operation may be open for so long. Longer than the longest stop that may
/// be asked for, and than any wait for a permit to launch.
const OPERATION_MS: u64 = 2 * 3_600 * 1_000;

/// What differs, and the records it was held against.
pub(super) struct Looked {
    pub(super) drifts: Vec<Drift>,
    pub(super) inventory: Arc<Inventory>,
}

/// Looks once. Processes and files come first: what has been made meanwhile has
/// its record by then, for every record comes before what it records.
pub(super) async fn look(arguments: &ObserverArguments) -> Looked {
    let mut failures = Vec::new();
    let mut seen = Seen::default();
    let survey = arguments.hypervisor.survey().await;
    match arguments.folders.look().await {
        Ok(files) => seen.files = files,
        Err(error) => failures.push(("folders", error.to_string())),
    }
    match links(arguments).await {
        Ok(links) => seen.network = links,
        Err(error) => failures.push(("network", error)),
    }
    let inventory = arguments.store.inventory();
    match survey {
        Ok(found) => match ours(arguments, &inventory, found).await {
            Ok(processes) => seen.processes = Some(processes),
            Err(error) => failures.push(("processes", error)),
        },
        Err(error) => failures.push(("processes", error.to_string())),
    }
    let patience = Patience {
        now: arguments.clock.now(),
        grace_ms: u64::try_from(arguments.drift.grace.as_millis()).unwrap_or(u64::MAX),
        operation_ms: OPERATION_MS,
    };
    let records = inventory.clone();
    let comparing = move || plan(&recorded(&records), &seen, patience);
    let mut drifts = arguments.store.aside().run(comparing).await;
    drifts.extend(failures.into_iter().map(|(what, error)| {
        let class = DriftClass::CheckFailed;
        Drift::reported(class, what, Subject::Daemon, error)
    }));
    Looked { drifts, inventory }
}

/// The links of the bridges, where VMs are connected to such.
async fn links(arguments: &ObserverArguments) -> Result<Option<SeenNetwork>, String> {
    let facts = arguments.network.facts();
    if facts.bridges.is_empty() {
        return Ok(None);
    }
    let survey = arguments.network.survey().await;
    let survey = survey.map_err(|error| error.to_string())?;
    let taps = survey.taps.into_iter();
    Ok(Some(SeenNetwork {
        bridges: facts
            .bridges
            .into_iter()
            .map(|wanted| {
                let mut seen = survey.bridges.iter();
                let found = seen.find(|bridge| bridge.name == wanted.name);
                (wanted.name, found.map(|bridge| (bridge.ours, bridge.up)))
            })
            .collect(),
        taps: taps.map(|tap| (tap.name, tap.attached)).collect(),
        foreign: survey
            .foreign
            .into_iter()
            .map(|link| (link.name, link.bridge))
            .collect(),
    }))
}

/// The QEMUs of this daemon: those of a recorded VM, and those that have files
/// of ours open. Another daemon's on the same host are none of ours.
async fn ours(
    arguments: &ObserverArguments,
    inventory: &Inventory,
    found: Vec<FoundProcess>,
) -> Result<Vec<SeenProcess>, String> {
    let known: BTreeSet<VmUuid> = inventory.vms.values().map(|vm| vm.value.uuid).collect();
    let mut ours = Vec::with_capacity(found.len());
    for process in found {
        let FoundProcess {
            uuid,
            incarnation,
            identity,
        } = process;
        let mine = known.contains(&uuid) || {
            let asked = arguments.folders.holds_ours(identity.clone()).await;
            asked.map_err(|error| error.to_string())?
        };
        if mine {
            ours.push(SeenProcess {
                uuid,
                incarnation,
                identity,
            });
        }
    }
    Ok(ours)
}

fn recorded(inventory: &Inventory) -> Recorded<'_> {
    let open = inventory
        .operations
        .values()
        .filter(|operation| !operation.value.status.is_end());
    Recorded {
        vms: inventory
            .vms
            .values()
            .map(|vm| (vm.revision, &vm.value))
            .collect(),
        disks: inventory.disks.values().map(|disk| &disk.value).collect(),
        images: inventory
            .images
            .values()
            .map(|image| &image.value)
            .collect(),
        leases: inventory.leases.values().map(|row| &row.value).collect(),
        operations: open.map(|operation| &operation.value).collect(),
        quarantined: inventory
            .quarantined
            .iter()
            .map(|row| (row.row.as_str(), row.error.as_str()))
            .collect(),
    }
}
