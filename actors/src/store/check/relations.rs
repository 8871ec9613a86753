//! What holds between records after every commit: the oracle's rules, as far as the store alone
//! tells (`crate::oracle` looks at processes and files as well).
//!
//! | rule | |
//! |---|---|
//! | one | no two VMs or cards have a UUID or MAC address, no two tokens a name |
//! | belongs | a disk, lease or forward belongs to a VM that is there and knows of it |
//! | held | a VM's disks are there, are its own, and each sits in one slot |
//! | based | images that a disk, VM or template names are there |
//! | rests | a VM at rest has no process and no claim |
//! | open | what a VM has open is an open operation, and each open operation of a VM is one it has open |
//! | order | no record is newer than the last revision |

use super::Fault;
use crate::store::{Inventory, Versioned};
use imbl::OrdMap;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    sync::Arc,
};
use vman_model::{DiskFile, ImageName, OperationId, vm::VmRecord};

/// Every rule that is broken.
pub(super) fn broken(inventory: &Inventory) -> Vec<Fault> {
    let mut faults = Faults(Vec::new());
    one(inventory, &mut faults);
    belongs(inventory, &mut faults);
    held(inventory, &mut faults);
    based(inventory, &mut faults);
    rests(inventory, &mut faults);
    open(inventory, &mut faults);
    order(inventory, &mut faults);
    faults.0
}

struct Faults(Vec<Fault>);

impl Faults {
    fn tell(&mut self, table: &str, key: impl Display, detail: String) {
        self.0.push(Fault::new(format!("{table}/{key}"), detail));
    }

    fn twice<K: Ord, W: Display>(
        &mut self,
        table: &str,
        what: &str,
        all: impl Iterator<Item = (K, W)>,
    ) {
        let mut first: BTreeMap<K, W> = BTreeMap::new();
        for (key, who) in all {
            if let Some(other) = first.get(&key) {
                self.tell(table, &who, format!("{other} has the same {what}"));
            } else {
                first.insert(key, who);
            }
        }
    }
}

fn vms(inventory: &Inventory) -> impl Iterator<Item = &VmRecord> {
    inventory.vms.values().map(|row| &row.value)
}

fn one(inventory: &Inventory, faults: &mut Faults) {
    let uuids = vms(inventory).map(|vm| (vm.uuid.to_string(), &vm.id));
    faults.twice("vms", "UUID", uuids);
    let macs = vms(inventory).flat_map(|vm| vm.macs().map(move |(_, mac)| (mac, &vm.id)));
    faults.twice("vms", "MAC address", macs);
    let names = inventory.tokens.values().map(|row| &row.value);
    faults.twice(
        "tokens",
        "name",
        names.map(|token| (&token.name, &token.id)),
    );
}

fn belongs(inventory: &Inventory, faults: &mut Faults) {
    for disk in inventory.disks.values().map(|row| &row.value) {
        let Some(vm) = &disk.vm_id else { continue };
        match inventory.vms.get(vm) {
            None => faults.tell(
                "disks",
                &disk.id,
                format!("it belongs to VM {vm}, which is not there"),
            ),
            Some(row) if !row.value.disk_ids().any(|id| *id == disk.id) => {
                let told = format!("it belongs to VM {vm}, whose record does not have it");
                faults.tell("disks", &disk.id, told);
            }
            Some(_) => {}
        }
    }
    for lease in inventory.leases.values().map(|row| &row.value) {
        let vm = inventory.vms.get(&lease.vm_id).map(|row| &row.value);
        let card = vm.and_then(|vm| vm.macs().find(|(nic, _)| *nic == lease.nic));
        let wrong = match (vm, card) {
            (None, _) => format!("it is held by VM {}, which is not there", lease.vm_id),
            (Some(vm), None) => format!("VM {} has no network card {}", vm.id, lease.nic),
            (Some(vm), Some((_, mac))) if mac != lease.mac => {
                format!("the network card of VM {} has another MAC address", vm.id)
            }
            (Some(_), Some(_)) => continue,
        };
        faults.tell("leases", &lease.id, wrong);
    }
    for forward in inventory.forwards.values().map(|row| &row.value) {
        if !inventory.vms.contains_key(&forward.vm_id) {
            let told = format!("it leads to VM {}, which is not there", forward.vm_id);
            faults.tell("forwards", &forward.id, told);
        }
    }
}

fn held(inventory: &Inventory, faults: &mut Faults) {
    for vm in vms(inventory) {
        for disk in vm.disk_ids() {
            let wrong = match inventory.disks.get(disk).map(|row| &row.value) {
                None => format!("its disk {disk} is not there"),
                Some(record) if record.vm_id.as_ref() != Some(&vm.id) => {
                    format!("its disk {disk} does not belong to it")
                }
                Some(record) if matches!(record.file, DiskFile::Making | DiskFile::Deleting) => {
                    format!("its disk {disk} is only being made, or is being deleted")
                }
                Some(_) => continue,
            };
            faults.tell("vms", &vm.id, wrong);
        }
        let slots: BTreeSet<_> = vm.disks.iter().map(|held| held.slot).collect();
        if slots.len() != vm.disks.len() {
            faults.tell("vms", &vm.id, "two of its disks sit in one slot".to_owned());
        }
    }
}

fn based(inventory: &Inventory, faults: &mut Faults) {
    let missing = |name: &&ImageName| !inventory.images.contains_key(*name);
    let told = |name: &ImageName| format!("its image {name} is not there");
    for disk in inventory.disks.values().map(|row| &row.value) {
        for name in disk.image.iter().filter(missing) {
            faults.tell("disks", &disk.id, told(name));
        }
    }
    for vm in vms(inventory) {
        for name in vm.spec.size.images().filter(missing) {
            faults.tell("vms", &vm.id, told(name));
        }
    }
    for template in inventory.templates.values().map(|row| &row.value) {
        for name in template.size.images().filter(missing) {
            faults.tell("templates", &template.name, told(name));
        }
    }
}

fn rests(inventory: &Inventory, faults: &mut Faults) {
    for vm in vms(inventory).filter(|vm| vm.phase.is_rest()) {
        if vm.process.is_some() || vm.claim.is_some() {
            let told = format!(
                "it is {} and its record still holds a process or a claim",
                vm.phase.as_str()
            );
            faults.tell("vms", &vm.id, told);
        }
    }
}

fn open(inventory: &Inventory, faults: &mut Faults) {
    let is_open = |id: &OperationId| {
        let row = inventory.operations.get(id);
        row.is_some_and(|row| !row.value.status.is_end())
    };
    for vm in vms(inventory) {
        for open in vm.operations.iter().filter(|open| !is_open(&open.id)) {
            let told = format!(
                "it has the operation {} open, which has ended or is not there",
                open.id
            );
            faults.tell("vms", &vm.id, told);
        }
    }
    for operation in inventory.operations.values().map(|row| &row.value) {
        let Some(vm) = operation
            .vm_id
            .as_ref()
            .filter(|_| !operation.status.is_end())
        else {
            continue;
        };
        let row = inventory.vms.get(vm);
        let has = row.is_some_and(|row| {
            row.value
                .operations
                .iter()
                .any(|open| open.id == operation.id)
        });
        if !has {
            let told = format!("it is open, and VM {vm} does not have it: it would never end");
            faults.tell("operations", &operation.id, told);
        }
    }
}

fn order(inventory: &Inventory, faults: &mut Faults) {
    fn newer<K: Ord + Display, V>(
        (table, rows): (&str, &OrdMap<K, Arc<Versioned<V>>>),
        last: vman_model::Revision,
        faults: &mut Faults,
    ) {
        for (key, row) in rows.iter().filter(|(_, row)| row.revision > last) {
            let told = format!(
                "its revision {} is beyond the last, {}",
                row.revision.0, last.0
            );
            faults.tell(table, key, told);
        }
    }
    let last = inventory.revision;
    newer(("templates", &inventory.templates), last, faults);
    newer(("vms", &inventory.vms), last, faults);
    newer(("disks", &inventory.disks), last, faults);
    newer(("images", &inventory.images), last, faults);
    newer(("operations", &inventory.operations), last, faults);
    newer(("leases", &inventory.leases), last, faults);
    newer(("forwards", &inventory.forwards), last, faults);
    newer(("tokens", &inventory.tokens), last, faults);
}
