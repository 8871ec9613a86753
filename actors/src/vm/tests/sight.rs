//! What the oracle sees of a simulated host.

use super::daemon::Daemon;
use crate::{
    oracle::{DiskSeen, Life, ProcessSeen, Seen, VmSeen},
    store::check,
};
use vman_model::{
    DiskFile,
    vm::{Phase, VmRecord},
};

fn life(phase: Phase) -> Life {
    match phase {
        Phase::Running | Phase::Paused => Life::Alive,
        Phase::Stopped | Phase::Failed | Phase::Backoff => Life::Rest,
        _ => Life::Moving,
    }
}

fn vm(vm: &VmRecord) -> VmSeen {
    let root = vm.root_disk.iter();
    let disks = root.chain(vm.disks.iter().map(|held| &held.disk));
    VmSeen {
        id: vm.id.to_string(),
        uuid: vm.uuid.to_string(),
        mac: format!("{:?}", vm.mac),
        life: life(vm.phase),
        pid: vm.process.as_ref().map(|process| process.pid),
        incarnation: vm.incarnation.0,
        disks: disks.map(ToString::to_string).collect(),
    }
}

/// Everything there is, now.
pub(super) fn seen(daemon: &Daemon) -> Seen {
    let (host, inventory) = (&daemon.host, daemon.on().store.inventory());
    let disks = inventory.disks.values().map(|row| DiskSeen {
        id: row.value.id.to_string(),
        vm: row.value.vm_id.as_ref().map(ToString::to_string),
        made: row.value.file == DiskFile::Made,
    });
    let leases = inventory.leases.values();
    let open = inventory.operations.values();
    let open = open.filter(|row| !row.value.status.is_end());
    let processes = host.live().into_iter().map(|qemu| ProcessSeen {
        uuid: qemu.uuid.to_string(),
        incarnation: qemu.incarnation.0,
        pid: qemu.identity.pid,
        start_time: qemu.identity.start_time,
        disks: strings(host.disks_of(qemu.identity.pid)),
        counter: None,
    });
    Seen {
        vms: inventory.vms.values().map(|row| vm(&row.value)).collect(),
        disks: disks.collect(),
        images: strings(inventory.images.keys()),
        leases: leases
            .map(|row| (row.value.address.to_string(), row.value.vm_id.to_string()))
            .collect(),
        open_operations: open.map(|row| format!("{:?}", row.value)).collect(),
        processes: processes.collect(),
        disk_files: strings(host.disk_files()),
        image_files: strings(host.image_files()),
        networks: Some(strings(host.networks_held())),
        leftovers: Vec::new(),
        violations: [host.violations(), store_faults(daemon)].concat(),
    }
}

/// What a check of the store tells, which must be nothing at any moment.
pub(super) fn store_faults(daemon: &Daemon) -> Vec<String> {
    let checked = check::records(daemon.host.storage());
    let faults = checked.map(|checked| checked.faults);
    let told = |fault: check::Fault| format!("the store: {}: {}", fault.row, fault.detail);
    faults.unwrap_or_default().into_iter().map(told).collect()
}

fn strings<T: ToString, C: FromIterator<String>>(of: impl IntoIterator<Item = T>) -> C {
    of.into_iter().map(|one| one.to_string()).collect()
}
