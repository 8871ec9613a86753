//! What is kept is enough: a record that is made of its manifest is the one that
//! was kept.
#![allow(clippy::unwrap_used)] // also in what the tests call

use super::{Kept, rebuild};
use crate::{
    change::Write,
    disk::{DiskFile, DiskFormat, DiskOptions, DiskRecord},
    drift::SeenProcess,
    ids::{BootId, DiskId, Incarnation, LeaseId, Revision, VmId},
    network::LeaseRecord,
    time::UnixMs,
    vm::{
        AttachState, Attachment, Desired, Effect, Input, Moment, Phase, ProcessIdentity, VmRecord,
        step, step::tests::given::records,
    },
};
use proptest::prelude::*;

const NOW: UnixMs = UnixMs(99);

fn rebuilt_vm(writes: &[Write]) -> VmRecord {
    let vms: Vec<_> = writes
        .iter()
        .filter_map(|write| match write {
            Write::PutVm(vm) => Some((**vm).clone()),
            _ => None,
        })
        .collect();
    assert_eq!(vms.len(), 1, "{writes:?}");
    vms[0].clone()
}

fn process(vm: &VmRecord, incarnation: Incarnation) -> SeenProcess {
    SeenProcess {
        uuid: vm.uuid,
        incarnation,
        identity: ProcessIdentity {
            pid: 4_711,
            start_time: 5,
            boot_id: BootId::parse("now").unwrap(),
        },
    }
}

proptest! {
    #[test]
    fn a_record_made_of_its_manifest_has_the_same_manifest(record in records()) {
        let kept = Kept::of_vm(&record);
        let made = rebuild([(Revision(7), kept.clone())], &[], NOW);
        prop_assert!(made.notes.is_empty(), "{:?}", made.notes);
        prop_assert_eq!(Kept::of_vm(&rebuilt_vm(&made.writes)), kept);
    }

    #[test]
    fn a_vm_at_rest_is_made_again_as_it_was(record in records()) {
        let record = if record.phase.is_rest() { record } else { at_rest(record) };
        let made = rebuild([(Revision(7), Kept::of_vm(&record))], &[], NOW);
        let expected = VmRecord { phase_since: NOW, last_event: None, ..record };
        prop_assert_eq!(rebuilt_vm(&made.writes), expected);
    }

    #[test]
    fn a_vm_with_a_living_qemu_is_looked_for_by_its_identity(record in records(), newer in 0..3_u64) {
        prop_assume!(!record.phase.is_rest() && record.phase != Phase::Backoff);
        let life = Incarnation(record.incarnation.0 + newer);
        let living = process(&record, life);
        let made = rebuild([(Revision(7), Kept::of_vm(&record))], std::slice::from_ref(&living), NOW);
        let vm = rebuilt_vm(&made.writes);
        prop_assert_eq!(vm.process.as_ref(), Some(&living.identity));
        prop_assert_eq!(vm.incarnation, life);
        let moment = Moment { now: NOW, boot_id: living.identity.boot_id.clone() };
        let decision = step(&vm, Input::Recover, &moment);
        prop_assert!(decision.effects.contains(&Effect::Adopt), "{:?}", decision.effects);
    }
}

fn at_rest(record: VmRecord) -> VmRecord {
    VmRecord {
        phase: Phase::Stopped,
        process: None,
        ending: None,
        stop: None,
        restarting: false,
        unresponsive: false,
        operations: Vec::new(),
        ..record
    }
}

fn running() -> VmRecord {
    use crate::restart::{RestartBudget, RestartMode};
    let mut vm =
        crate::vm::step::tests::given::new_vm(RestartMode::Never, RestartBudget::default());
    vm.phase = Phase::Running;
    vm.desired = Desired::Running;
    vm.incarnation = Incarnation(1);
    vm
}

fn disk(id: &str, vm: Option<&str>) -> DiskRecord {
    DiskRecord {
        id: DiskId::parse(id).unwrap(),
        size_mib: 64,
        format: DiskFormat::Qcow2,
        image: None,
        vm_id: vm.map(|vm| VmId::parse(vm).unwrap()),
        root: false,
        created_at: UnixMs(1),
        options: DiskOptions::default(),
        file: DiskFile::Made,
        wished_letter: None,
    }
}

fn disks(writes: &[Write]) -> Vec<(&str, Option<&str>)> {
    let disks = writes.iter().filter_map(|write| match write {
        Write::PutDisk(disk) => Some((disk.id.as_str(), disk.vm_id.as_ref().map(VmId::as_str))),
        _ => None,
    });
    disks.collect()
}

#[test]
fn a_qemu_of_a_life_after_the_manifest_makes_its_vm_running() {
    let mut vm = running();
    vm.phase = Phase::Stopped;
    vm.desired = Desired::Stopped;
    let living = process(&vm, Incarnation(2));
    let made = rebuild([(Revision(1), Kept::of_vm(&vm))], &[living], NOW);
    let vm = rebuilt_vm(&made.writes);
    assert_eq!((vm.phase, vm.desired), (Phase::Unknown, Desired::Running));
    assert_eq!(made.notes.len(), 1);
}

#[test]
fn a_qemu_without_a_manifest_is_told() {
    let stranger = process(&running(), Incarnation(1));
    let made = rebuild([], &[stranger], NOW);
    assert!(made.writes.is_empty());
    assert!(made.notes[0].contains("4711"), "{:?}", made.notes);
}

#[test]
fn revisions_go_on_far_above_the_highest_seen() {
    let made = rebuild([(Revision(41), Kept::Disk(disk("d", None)))], &[], NOW);
    assert!(made.revision > Revision(1_000_000));
}

#[test]
fn a_disk_belongs_to_the_vm_that_says_so_whatever_its_own_manifest_says() {
    let mut vm = running();
    let held = |name| Attachment {
        disk: DiskId::parse(name).unwrap(),
        slot: 4,
        letter: b'b',
        state: AttachState::Attached,
    };
    vm.disks = vec![held("late"), held("lost")];
    let manifests = [
        Kept::of_vm(&vm),
        Kept::Disk(disk("late", None)),
        Kept::Disk(disk("stale", Some("vm"))),
        Kept::Disk(disk("orphan", Some("nobody"))),
    ];
    let made = rebuild(manifests.map(|kept| (Revision(1), kept)), &[], NOW);
    assert_eq!(
        disks(&made.writes),
        [("late", Some("vm")), ("orphan", None), ("stale", None)]
    );
    let vm = rebuilt_vm(&made.writes);
    assert_eq!(vm.disks.len(), 1, "a disk that is lost hangs on nobody");
    assert_eq!(made.notes.len(), 4, "{:?}", made.notes);
}

#[test]
fn a_lease_of_no_vm_is_left_out_and_told() {
    let lease = LeaseRecord {
        id: LeaseId::parse("10.0.0.7").unwrap(),
        vm_id: VmId::parse("nobody").unwrap(),
        nic: 0,
        address: core::net::Ipv4Addr::new(10, 0, 0, 7),
        mac: [2; 6],
        fixed: false,
        limits: crate::network::NicLimits::default(),
        created_at: UnixMs(1),
        network: crate::ids::NetworkName::default(),
    };
    let made = rebuild([(Revision(1), Kept::Lease(lease))], &[], NOW);
    assert!(made.writes.is_empty());
    assert!(
        made.notes[0].contains("leases/10.0.0.7"),
        "{:?}",
        made.notes
    );
}
