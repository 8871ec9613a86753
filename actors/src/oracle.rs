//! The oracle: what must hold after any fault, whatever the host.
//!
//! It judges what was *seen* of a host, of the records and of the API. Who sees
//! is another matter: the tests on the simulated host look into it, those on the
//! real one ask the API, `/proc` and the folders. The rules are the same.
//!
//! | rule | |
//! |---|---|
//! | one | each VM, disk, address and MAC has one record |
//! | kept | what was promised is there, what was deleted is not |
//! | alive | a VM that runs has exactly the QEMU of its record, one at rest has none, and none is without a record |
//! | ended | no operation is open, no VM is on its way |
//! | files | each disk and image has its file, each file its record |
//! | held | QEMU has the disks and the network of the record, nobody else has any |
//! | clean | nothing half-made is left |
//! | untouched | a guest that nobody touched has its process, and counts on |
//!
//! Must not: wait. Whoever looks, looks when all has come to rest.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

/// Where a VM is, as its record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// No QEMU, nothing held.
    Rest,
    /// A QEMU lives.
    Alive,
    /// On its way.
    Moving,
}

/// A VM's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmSeen {
    /// Its id.
    pub id: String,
    /// Its UUID, which its QEMU carries.
    pub uuid: String,
    /// Its MAC address.
    pub mac: String,
    /// Where it is.
    pub life: Life,
    /// The pid of its QEMU.
    pub pid: Option<u32>,
    /// The number of its life.
    pub incarnation: u64,
    /// The disks that its QEMU is to have, those it boots from too.
    pub disks: BTreeSet<String>,
}

/// A disk's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSeen {
    /// Its id.
    pub id: String,
    /// The VM that has it.
    pub vm: Option<String>,
    /// Whether it must have a file already.
    pub made: bool,
}

/// A living QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSeen {
    /// The UUID it carries.
    pub uuid: String,
    /// The number of the life it carries.
    pub incarnation: u64,
    /// Its pid.
    pub pid: u32,
    /// Its start time: another one is another process.
    pub start_time: u64,
    /// The disks whose files it has open.
    pub disks: BTreeSet<String>,
    /// What its guest counts, where it counts.
    pub counter: Option<u64>,
}

/// All that was seen at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The VMs' records.
    pub vms: Vec<VmSeen>,
    /// The disks' records.
    pub disks: Vec<DiskSeen>,
    /// The images' records.
    pub images: Vec<String>,
    /// Addresses and the VMs that hold them.
    pub leases: Vec<(String, String)>,
    /// Operations that have no end.
    pub open_operations: Vec<String>,
    /// The QEMUs of ours.
    pub processes: Vec<ProcessSeen>,
    /// The disks that have a file.
    pub disk_files: BTreeSet<String>,
    /// The images that have a file.
    pub image_files: BTreeSet<String>,
    /// The VMs that hold something of the network, where that can be seen.
    pub networks: Option<BTreeSet<String>>,
    /// What is left of something that has ended: temporary files, sockets and
    /// folders of nobody.
    pub leftovers: Vec<String>,
    /// What the host itself saw happen that must never happen.
    pub violations: Vec<String>,
}

/// What was answered, and so must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promised {
    /// VMs that must be there.
    pub vms: BTreeSet<String>,
    /// VMs that must not.
    pub no_vms: BTreeSet<String>,
    /// Disks that must be there.
    pub disks: BTreeSet<String>,
    /// Disks that must not.
    pub no_disks: BTreeSet<String>,
}

/// Every rule that is broken, in a sentence; none if all is well.
pub fn verdict(seen: &Seen, promised: &Promised) -> Vec<String> {
    let mut broken = seen.violations.clone();
    one(seen, &mut broken);
    kept(seen, promised, &mut broken);
    alive(seen, &mut broken);
    ended(seen, &mut broken);
    files(seen, &mut broken);
    held(seen, &mut broken);
    let left = seen.leftovers.iter();
    broken.extend(left.map(|what| format!("left behind: {what}")));
    broken
}

/// What was done to guests that nobody touched between the two sights. `vms`
/// are their ids.
pub fn untouched(before: &Seen, after: &Seen, vms: &[&str]) -> Vec<String> {
    let mut broken = Vec::new();
    for id in vms {
        let (Some(was), Some(is)) = (process_of(before, id), process_of(after, id)) else {
            broken.push(format!("the untouched {id} does not run any more"));
            continue;
        };
        if (was.pid, was.start_time) != (is.pid, is.start_time) {
            broken.push(format!(
                "the untouched {id} is another process: {was:?}, {is:?}"
            ));
        }
        if is.counter < was.counter {
            broken.push(format!("the guest of {id} counts anew: {was:?}, {is:?}"));
        }
    }
    broken
}

fn process_of<'a>(seen: &'a Seen, id: &str) -> Option<&'a ProcessSeen> {
    let vm = seen.vms.iter().find(|vm| vm.id == id)?;
    seen.processes
        .iter()
        .find(|process| process.uuid == vm.uuid)
}

fn twice<T: Ord + Debug>(what: &str, all: impl Iterator<Item = T>, broken: &mut Vec<String>) {
    let mut met = BTreeSet::new();
    for one in all {
        if met.contains(&one) {
            broken.push(format!("{what} {one:?} is there twice"));
        }
        met.insert(one);
    }
}

fn one(seen: &Seen, broken: &mut Vec<String>) {
    twice("VM", seen.vms.iter().map(|vm| &vm.id), broken);
    twice("UUID", seen.vms.iter().map(|vm| &vm.uuid), broken);
    twice("MAC", seen.vms.iter().map(|vm| &vm.mac), broken);
    twice("disk", seen.disks.iter().map(|disk| &disk.id), broken);
    twice("image", seen.images.iter(), broken);
    twice(
        "address",
        seen.leases.iter().map(|(address, _)| address),
        broken,
    );
    let known: BTreeSet<_> = seen.vms.iter().map(|vm| &vm.id).collect();
    for (address, vm) in &seen.leases {
        if !known.contains(vm) {
            broken.push(format!(
                "address {address} is held by {vm}, which is not there"
            ));
        }
    }
    for disk in &seen.disks {
        if let Some(vm) = disk.vm.as_ref().filter(|vm| !known.contains(vm)) {
            broken.push(format!(
                "disk {} belongs to {vm}, which is not there",
                disk.id
            ));
        }
    }
}

fn kept(seen: &Seen, promised: &Promised, broken: &mut Vec<String>) {
    let vms: BTreeSet<_> = seen.vms.iter().map(|vm| vm.id.clone()).collect();
    let disks: BTreeSet<_> = seen.disks.iter().map(|disk| disk.id.clone()).collect();
    let lost = promised
        .vms
        .difference(&vms)
        .map(|id| format!("VM {id} is lost"));
    broken.extend(lost);
    let back = promised.no_vms.intersection(&vms);
    broken.extend(back.map(|id| format!("VM {id} came back")));
    let lost = promised.disks.difference(&disks);
    broken.extend(lost.map(|id| format!("disk {id} is lost")));
    let back = promised.no_disks.intersection(&disks);
    broken.extend(back.map(|id| format!("disk {id} came back")));
}

fn alive(seen: &Seen, broken: &mut Vec<String>) {
    let mut of: BTreeMap<&str, Vec<&ProcessSeen>> = BTreeMap::new();
    for process in &seen.processes {
        of.entry(&process.uuid).or_default().push(process);
    }
    for vm in &seen.vms {
        let mine = of.remove(vm.uuid.as_str()).unwrap_or_default();
        match (vm.life, mine.as_slice()) {
            (Life::Moving, _) => broken.push(format!("{} is still on its way", vm.id)),
            (Life::Rest, []) => {}
            (Life::Alive, [one]) => {
                if (vm.pid, vm.incarnation) != (Some(one.pid), one.incarnation) {
                    broken.push(format!("the record {vm:?} is of another life than {one:?}"));
                }
            }
            (life, mine) => {
                broken.push(format!("{} is {life:?} and has the QEMUs {mine:?}", vm.id));
            }
        }
    }
    let strays = of.into_values().flatten();
    broken.extend(strays.map(|qemu| format!("a QEMU without a record: {qemu:?}")));
}

fn ended(seen: &Seen, broken: &mut Vec<String>) {
    let open = seen.open_operations.iter();
    broken.extend(open.map(|operation| format!("left open: {operation}")));
}

fn files(seen: &Seen, broken: &mut Vec<String>) {
    let known: BTreeSet<_> = seen.disks.iter().map(|disk| disk.id.clone()).collect();
    let made = seen.disks.iter().filter(|disk| disk.made);
    let missing = made.filter(|disk| !seen.disk_files.contains(&disk.id));
    broken.extend(missing.map(|disk| format!("disk {} has no file", disk.id)));
    let orphans = seen.disk_files.difference(&known);
    broken.extend(orphans.map(|id| format!("a file of no disk: {id}")));
    let images: BTreeSet<_> = seen.images.iter().cloned().collect();
    let missing = images.difference(&seen.image_files);
    broken.extend(missing.map(|name| format!("image {name} has no file")));
    let orphans = seen.image_files.difference(&images);
    broken.extend(orphans.map(|name| format!("a file of no image: {name}")));
}

fn held(seen: &Seen, broken: &mut Vec<String>) {
    for vm in seen.vms.iter().filter(|vm| vm.life == Life::Alive) {
        let Some(process) = seen.processes.iter().find(|qemu| qemu.uuid == vm.uuid) else {
            continue;
        };
        if process.disks != vm.disks {
            let (has, wants) = (&process.disks, &vm.disks);
            broken.push(format!(
                "{} has the disks {has:?} and its record {wants:?}",
                vm.id
            ));
        }
    }
    let disks = seen.processes.iter().flat_map(|process| &process.disks);
    twice("a disk in a QEMU", disks, broken);
    let Some(networks) = &seen.networks else {
        return;
    };
    let alive = seen.vms.iter().filter(|vm| vm.life == Life::Alive);
    let alive: BTreeSet<_> = alive.map(|vm| vm.id.clone()).collect();
    if *networks != alive {
        broken.push(format!(
            "the network is held by {networks:?}, and {alive:?} run"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(id: &str, life: Life) -> VmSeen {
        VmSeen {
            id: id.to_owned(),
            uuid: format!("uuid-{id}"),
            mac: format!("mac-{id}"),
            life,
            pid: (life == Life::Alive).then_some(7),
            incarnation: 1,
            disks: [format!("{id}-root")].into(),
        }
    }

    fn process(id: &str) -> ProcessSeen {
        ProcessSeen {
            uuid: format!("uuid-{id}"),
            incarnation: 1,
            pid: 7,
            start_time: 70,
            disks: [format!("{id}-root")].into(),
            counter: Some(5),
        }
    }

    /// A VM that runs with one disk, and nothing wrong.
    fn well() -> Seen {
        Seen {
            vms: vec![vm("a", Life::Alive)],
            disks: vec![DiskSeen {
                id: "a-root".to_owned(),
                vm: Some("a".to_owned()),
                made: true,
            }],
            images: vec!["i".to_owned()],
            leases: vec![("10.0.0.2".to_owned(), "a".to_owned())],
            processes: vec![process("a")],
            disk_files: ["a-root".to_owned()].into(),
            image_files: ["i".to_owned()].into(),
            networks: Some(["a".to_owned()].into()),
            ..Seen::default()
        }
    }

    fn broken(change: impl FnOnce(&mut Seen)) -> usize {
        let mut seen = well();
        change(&mut seen);
        verdict(&seen, &Promised::default()).len()
    }

    #[test]
    fn what_is_well_is_judged_well_and_each_fault_is_found() {
        assert_eq!(broken(|_| {}), 0);
        let faults: [fn(&mut Seen); 16] = [
            |seen| seen.vms.push(vm("a", Life::Rest)),
            |seen| seen.disks.push(seen.disks[0].clone()),
            |seen| seen.leases.push(("10.0.0.2".to_owned(), "a".to_owned())),
            |seen| seen.leases[0].1 = "b".to_owned(),
            |seen| seen.disks[0].vm = Some("b".to_owned()),
            |seen| seen.vms[0].life = Life::Rest,
            |seen| seen.vms[0].life = Life::Moving,
            |seen| seen.processes.clear(),
            |seen| seen.processes.push(process("a")),
            |seen| seen.processes[0].incarnation = 2,
            |seen| seen.open_operations.push("op".to_owned()),
            |seen| seen.disk_files.clear(),
            |seen| seen.image_files = BTreeSet::new(),
            |seen| seen.processes[0].disks.clear(),
            |seen| seen.networks = Some(BTreeSet::new()),
            |seen| seen.leftovers.push("tmp/x".to_owned()),
        ];
        for (n, fault) in faults.into_iter().enumerate() {
            assert!(broken(fault) > 0, "fault {n} was not found");
        }
    }

    #[test]
    fn what_was_promised_must_be_there_and_what_was_deleted_must_not() {
        let lost = Promised {
            vms: ["b".to_owned()].into(),
            no_vms: ["a".to_owned()].into(),
            disks: ["d".to_owned()].into(),
            no_disks: ["a-root".to_owned()].into(),
        };
        assert_eq!(verdict(&well(), &lost).len(), 4);
    }

    #[test]
    fn an_untouched_guest_keeps_its_process_and_counts_on() {
        let before = well();
        assert_eq!(untouched(&before, &before, &["a"]), Vec::<String>::new());
        let changes: [fn(&mut ProcessSeen); 3] = [
            |process| process.pid = 8,
            |process| process.start_time = 71,
            |process| process.counter = Some(4),
        ];
        for change in changes {
            let mut after = well();
            change(&mut after.processes[0]);
            assert_eq!(untouched(&before, &after, &["a"]).len(), 1);
        }
        assert_eq!(untouched(&before, &Seen::default(), &["a"]).len(), 1);
    }
}
