//! What differs on the bridges: links and leases against the records.
//!
//! The NetworkActor heals what is ours within a second, told by the kernel; what
//! is still so at two looks is what it could not heal, or may not touch.

use super::{Drift, DriftClass, Recorded, SeenNetwork};
use crate::{
    event::Subject,
    ids::VmId,
    network::{LeaseRecord, TapName},
    vm::{NetworkKind, Phase, VmRecord},
};
use std::collections::{BTreeMap, BTreeSet};

/// A lease whose VM has no record.
pub(super) fn lease_without_vm(vms: &BTreeSet<&VmId>, lease: &LeaseRecord) -> Option<Drift> {
    (!vms.contains(&lease.vm_id)).then(|| {
        let details = format!("held by VM {}, which has no record", lease.vm_id);
        let subject = Subject::Network(lease.id.as_str().to_owned());
        Drift::reported(DriftClass::LeaseOfNoVm, lease.id.as_str(), subject, details)
    })
}

/// What differs on the bridges.
pub(super) fn links(recorded: &Recorded<'_>, seen: &SeenNetwork, found: &mut Vec<Drift>) {
    let about = |class, resource: &str, link: &str, details: String| {
        let subject = Subject::Network(link.to_owned());
        Drift::reported(class, resource, subject, details)
    };
    for (name, state) in &seen.bridges {
        let details = match state {
            Some((true, true)) => continue,
            None => "there is no such link",
            Some((false, _)) => "a link of that name does not carry VMAN's mark",
            Some((true, false)) => "it is down",
        };
        found.push(about(
            DriftClass::BridgeLost,
            name,
            name,
            details.to_owned(),
        ));
    }
    for (link, bridge) in &seen.foreign {
        let details = format!("it is on the bridge {bridge} and not VMAN's");
        found.push(about(DriftClass::LinkForeign, link, bridge, details));
    }
    let taps: BTreeMap<&str, bool> = seen
        .taps
        .iter()
        .map(|(name, attached)| (name.as_str(), *attached))
        .collect();
    let mut owned = BTreeSet::new();
    for (_, vm) in &recorded.vms {
        owned.extend(possible(vm));
        // In every other phase they come or go at this very moment.
        if !matches!(vm.phase, Phase::Running | Phase::Paused) {
            continue;
        }
        for tap in claimed(vm) {
            let here = taps.get(tap.as_str());
            if here != Some(&true) {
                let lacks = match here {
                    None => "is not there",
                    Some(_) => "is not on the bridge, or down",
                };
                let details = format!("its TAP {tap} {lacks}: the guest is off the network");
                let subject = Subject::Vm(vm.id.clone());
                found.push(Drift::reported(
                    DriftClass::TapLost,
                    vm.id.as_str(),
                    subject,
                    details,
                ));
            }
        }
    }
    for name in taps.keys() {
        if !owned.iter().any(|tap| tap.as_str() == *name) {
            let details = "it is named as VMAN's are, and no VM that runs has it".to_owned();
            found.push(about(DriftClass::TapOrphan, name, name, details));
        }
    }
}

/// The TAPs that a VM holds.
fn claimed(vm: &VmRecord) -> impl Iterator<Item = TapName> + '_ {
    let nics = vm.claim.iter().flat_map(|claim| &claim.nics);
    let bridged = nics.filter(|nic| nic.kind == NetworkKind::Bridge);
    bridged.map(|nic| TapName::of(&vm.id, nic.nic))
}

/// The TAPs that may be a VM's: they are there before its claim is recorded.
fn possible(vm: &VmRecord) -> impl Iterator<Item = TapName> + '_ {
    let numbers = std::iter::once(0).chain(vm.nics.iter().map(|nic| nic.number));
    let numbers = numbers.filter(|_| !vm.phase.is_rest());
    numbers.map(|nic| TapName::of(&vm.id, nic))
}
