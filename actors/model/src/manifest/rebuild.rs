//! Manifests and living QEMUs in, the rows of a new store out. Pure and total.
//!
//! Manifests are written one by one, so two of them can be of different moments:
//! what a VM says about its disks wins over what they say about it. Nothing is
//! left out silently: what could not be kept as it was is told in a sentence.

use super::Kept;
use crate::{
    change::Write,
    disk::DiskRecord,
    drift::SeenProcess,
    ids::{DiskId, Revision, VmId},
    time::UnixMs,
    vm::{Desired, Phase, Reason, VmRecord},
};
use std::collections::{BTreeMap, BTreeSet};

/// How far the new store's revisions begin above the highest one seen. A
/// manifest is not written for every change, so the highest is not the last; a
/// revision that came twice would be taken for another change by clients.
const REVISION_GAP: u64 = 1_000_000;

/// What a new store is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Its rows.
    pub writes: Vec<Write>,
    /// The revision before its first change.
    pub revision: Revision,
    /// What could not be kept as it was, a sentence each.
    pub notes: Vec<String>,
}

/// The records of a new store. `processes` are the living QEMUs of this daemon;
/// each VM that has one is to be looked for and goes on as it is.
pub fn rebuild(
    manifests: impl IntoIterator<Item = (Revision, Kept)>,
    processes: &[SeenProcess],
    now: UnixMs,
) -> Rebuilt {
    let mut all = Parts::default();
    let mut highest = Revision::default();
    for (revision, kept) in manifests {
        highest = highest.max(revision);
        all.sort_in(kept);
    }
    for vm in all.vms.values_mut() {
        revive(vm, processes, now, &mut all.notes);
    }
    all.tell_strangers(processes);
    all.settle_disks();
    all.drop_what_hangs_on_no_vm();
    all.tell_missing_images();
    Rebuilt {
        revision: Revision(highest.0.saturating_add(REVISION_GAP)),
        notes: std::mem::take(&mut all.notes),
        writes: all.into_writes(),
    }
}

/// A VM whose QEMU lives is of that life and to be looked for.
fn revive(vm: &mut VmRecord, processes: &[SeenProcess], now: UnixMs, notes: &mut Vec<String>) {
    vm.phase_since = now;
    let mine = processes
        .iter()
        .filter(|process| process.uuid == vm.uuid)
        .max_by_key(|process| process.incarnation);
    let Some(process) = mine else { return };
    if process.incarnation < vm.incarnation {
        // An earlier life's: the observer tells what becomes of it.
        return;
    }
    if process.incarnation > vm.incarnation {
        notes.push(format!(
            "vm {}: its QEMU is of incarnation {}, its manifest of {}: the VM is taken for running",
            vm.id, process.incarnation, vm.incarnation
        ));
        vm.incarnation = process.incarnation;
        if vm.desired == Desired::Stopped {
            vm.desired = Desired::Running;
        }
        vm.phase = Phase::Unknown;
        vm.reason = Reason::User;
        vm.detail = String::new();
    }
    if vm.phase == Phase::Unknown {
        vm.boot_id = Some(process.identity.boot_id.clone());
        vm.process = Some(process.identity.clone());
    }
}

#[derive(Default)]
struct Parts {
    vms: BTreeMap<VmId, VmRecord>,
    disks: BTreeMap<DiskId, DiskRecord>,
    others: Vec<Kept>,
    notes: Vec<String>,
}

impl Parts {
    fn sort_in(&mut self, kept: Kept) {
        match kept {
            Kept::Vm(vm) => {
                self.vms.insert(vm.id.clone(), *vm);
            }
            Kept::Disk(disk) => {
                self.disks.insert(disk.id.clone(), disk);
            }
            other @ (Kept::Template(_)
            | Kept::Image(_)
            | Kept::Lease(_)
            | Kept::Forward(_)
            | Kept::Token(_)) => self.others.push(other),
        }
    }

    fn tell_strangers(&mut self, processes: &[SeenProcess]) {
        let known: BTreeSet<_> = self.vms.values().map(|vm| vm.uuid).collect();
        for process in processes {
            if !known.contains(&process.uuid) {
                let (pid, uuid) = (process.identity.pid, process.uuid);
                self.notes.push(format!(
                    "QEMU with pid {pid} carries the UUID {uuid}, of which there is no manifest: it runs on, and the observer tells of it"
                ));
            }
        }
    }

    /// Each disk belongs to the VM that says so, and to no other.
    fn settle_disks(&mut self) {
        let mut owners: BTreeMap<DiskId, VmId> = BTreeMap::new();
        let (disks, notes) = (&self.disks, &mut self.notes);
        for vm in self.vms.values_mut() {
            let mut mine = |disk: &DiskId| {
                let there = disks.contains_key(disk);
                let free = there && !owners.contains_key(disk);
                if free {
                    owners.insert(disk.clone(), vm.id.clone());
                } else {
                    let why = if there {
                        "another VM has it"
                    } else {
                        "it has no manifest"
                    };
                    notes.push(format!("vm {}: disk {disk} is left out: {why}", vm.id));
                }
                free
            };
            if vm.root_disk.as_ref().is_some_and(|disk| !mine(disk)) {
                vm.root_disk = None;
            }
            vm.disks.retain(|held| mine(&held.disk));
        }
        for disk in self.disks.values_mut() {
            let owner = owners.remove(&disk.id);
            if disk.vm_id != owner {
                let told = owner.as_ref().map_or("no VM", VmId::as_str);
                self.notes
                    .push(format!("disk {}: it belongs to {told}", disk.id));
                disk.root &= owner.is_some();
                disk.vm_id = owner;
            }
        }
    }

    fn drop_what_hangs_on_no_vm(&mut self) {
        let (vms, notes) = (&self.vms, &mut self.notes);
        self.others.retain(|kept| {
            let vm = match kept {
                Kept::Lease(lease) => &lease.vm_id,
                Kept::Forward(forward) => &forward.vm_id,
                _ => return true,
            };
            let there = vms.contains_key(vm);
            if !there {
                let (kind, key) = (kept.kind().as_str(), kept.key());
                notes.push(format!(
                    "{kind}/{key} is left out: there is no VM {vm} any more"
                ));
            }
            there
        });
    }

    fn tell_missing_images(&mut self) {
        let images = self.others.iter().filter_map(|kept| match kept {
            Kept::Image(image) => Some(&image.name),
            _ => None,
        });
        let images: BTreeSet<_> = images.collect();
        for disk in self.disks.values() {
            if let Some(image) = disk.image.as_ref().filter(|name| !images.contains(name)) {
                let id = &disk.id;
                self.notes.push(format!(
                    "disk {id} is a clone of image {image}, which has no manifest"
                ));
            }
        }
    }

    fn into_writes(self) -> Vec<Write> {
        let others = self.others.into_iter().filter_map(|kept| match kept {
            Kept::Template(record) => Some(Write::PutTemplate(record)),
            Kept::Image(record) => Some(Write::PutImage(record)),
            Kept::Lease(record) => Some(Write::PutLease(record)),
            Kept::Forward(record) => Some(Write::PutForward(record)),
            Kept::Token(record) => Some(Write::PutToken(record)),
            // These have been sorted out.
            Kept::Vm(_) | Kept::Disk(_) => None,
        });
        let disks = self.disks.into_values().map(Write::PutDisk);
        let vms = self.vms.into_values();
        let vms = vms.map(|vm| Write::PutVm(Box::new(vm)));
        others.chain(disks).chain(vms).collect()
    }
}
