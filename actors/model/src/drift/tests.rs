//! Each class of the table is produced by records and a look, and what matching
//! records and hosts give: nothing.

#![allow(clippy::unwrap_used, reason = "a test may")]

use super::{
    Drift, DriftClass, FileKind, Patience, Recorded, Repair, Room, Seen, SeenFile, SeenFiles,
    SeenNetwork, SeenProcess, plan,
};
use crate::{
    disk::{DiskFormat, DiskRecord},
    ids::{
        BootId, DiskId, ImageName, Incarnation, OperationId, Revision, TemplateName, VmId, VmUuid,
    },
    image::{ImageFormat, ImageKind, ImageRecord},
    network::{LeaseRecord, TapName, lease_id},
    operation::{OperationKind, OperationRecord, OperationStatus},
    restart::{RestartHistory, RestartPolicy},
    time::UnixMs,
    vm::{
        AttachState, Attachment, Claim, Desired, Firmware, NetworkKind, NicClaim, Phase,
        ProcessIdentity, Reason, VmRecord, VmSize, VmSpec,
    },
};
use std::collections::BTreeMap;

const GRACE_MS: u64 = 60_000;
const OLD: u64 = GRACE_MS + 1;

/// Records and a host that agree, to be made to differ.
struct World {
    vm: VmRecord,
    disk: DiskRecord,
    image: ImageRecord,
    operation: Option<OperationRecord>,
    lease: Option<LeaseRecord>,
    quarantined: Vec<(&'static str, &'static str)>,
    seen: Seen,
}

fn identity(pid: u32) -> ProcessIdentity {
    ProcessIdentity {
        pid,
        start_time: 7,
        boot_id: BootId::parse("boot").unwrap(),
    }
}

fn process(uuid: u8, incarnation: u64) -> SeenProcess {
    SeenProcess {
        uuid: VmUuid([uuid; 16]),
        incarnation: Incarnation(incarnation),
        identity: identity(77),
    }
}

fn file(name: &str, kind: FileKind, bytes: u64) -> SeenFile {
    SeenFile {
        name: name.to_owned(),
        kind,
        bytes,
        age_ms: OLD,
    }
}

fn running_vm() -> VmRecord {
    VmRecord {
        id: VmId::parse("vm").unwrap(),
        uuid: VmUuid([1; 16]),
        spec: VmSpec {
            template: TemplateName::parse("small").unwrap(),
            size: VmSize {
                cpu_count: 1,
                ram_mib: 128,
                image: None,
                boot: None,
                firmware: Firmware::Bios,
                disk_mib: Some(1),
                labels: BTreeMap::new(),
            },
            restart: RestartPolicy::default(),
            io_error: crate::vm::IoErrorPolicy::default(),
            start: crate::power::StartSpec::default(),
            resources: crate::vm::Resources::default(),
        },
        mac: [2; 6],
        root_disk: Some(DiskId::parse("vm-root").unwrap()),
        created_at: UnixMs(0),
        desired: Desired::Running,
        phase: Phase::Running,
        phase_since: UnixMs(0),
        reason: Reason::User,
        detail: "the guest runs".to_owned(),
        incarnation: Incarnation(3),
        boot_id: None,
        process: Some(identity(77)),
        started_at: None,
        claim: Some(Claim {
            nics: vec![NicClaim {
                nic: 0,
                kind: NetworkKind::Bridge,
                mac: [2; 6],
                address: None,
            }],
            ..Claim::default()
        }),
        ending: None,
        stop: None,
        restarting: false,
        unresponsive: false,
        restarts: RestartHistory::default(),
        backoff_ms: 0,
        operations: Vec::new(),
        last_event: None,
        disks: vec![Attachment {
            disk: DiskId::parse("data").unwrap(),
            slot: 4,
            letter: b'b',
            state: AttachState::Attached,
        }],
        failed_disk: None,
        failed_for_space: false,
        paused_by_user: false,
        link: crate::network::LinkState::Up,
        nics: Vec::new(),
        network: crate::ids::NetworkName::default(),
    }
}

fn tap() -> String {
    TapName::of(&VmId::parse("vm").unwrap(), 0).to_string()
}

fn lease() -> LeaseRecord {
    let address = core::net::Ipv4Addr::new(10, 0, 0, 7);
    LeaseRecord {
        id: lease_id(address),
        vm_id: VmId::parse("other").unwrap(),
        nic: 0,
        address,
        mac: [2; 6],
        fixed: false,
        limits: crate::network::NicLimits::default(),
        created_at: UnixMs(0),
        network: crate::ids::NetworkName::default(),
    }
}

fn agreeing() -> World {
    let image = ImageRecord {
        name: ImageName::parse("linux").unwrap(),
        kind: ImageKind::Disk,
        format: ImageFormat::Raw,
        file_size: 500,
        virtual_size: 500,
        sha256: String::new(),
        created_at: UnixMs(0),
    };
    let disk = DiskRecord {
        id: DiskId::parse("vm-root").unwrap(),
        size_mib: 1,
        format: DiskFormat::Raw,
        image: None,
        vm_id: Some(VmId::parse("vm").unwrap()),
        root: true,
        created_at: UnixMs(0),
        options: crate::DiskOptions::default(),
        file: crate::DiskFile::default(),
        wished_letter: None,
    };
    World {
        vm: running_vm(),
        disk,
        image,
        operation: None,
        quarantined: Vec::new(),
        seen: Seen {
            processes: Some(vec![process(1, 3)]),
            files: Some(SeenFiles {
                disks: vec![file("vm-root.raw", FileKind::File, 1 << 20)],
                images: vec![file("linux", FileKind::File, 500)],
                vm_folders: vec![file("vm", FileKind::Folder, 0)],
                runtime: vec![file("vm", FileKind::Folder, 0)],
            }),
            network: Some(SeenNetwork {
                bridges: vec![("br-x".to_owned(), Some((true, true)))],
                taps: vec![(tap(), true)],
                foreign: Vec::new(),
            }),
        },
        lease: None,
    }
}

impl World {
    fn files(&mut self) -> &mut SeenFiles {
        self.seen.files.as_mut().unwrap()
    }

    fn network(&mut self) -> &mut SeenNetwork {
        self.seen.network.as_mut().unwrap()
    }

    fn processes(&mut self) -> &mut Vec<SeenProcess> {
        self.seen.processes.as_mut().unwrap()
    }

    fn stopped(&mut self, reason: Reason) {
        self.vm.phase = Phase::Stopped;
        self.vm.desired = Desired::Stopped;
        self.vm.reason = reason;
        self.vm.process = None;
        self.vm.claim = None;
        if let Some(network) = &mut self.seen.network {
            network.taps.clear();
        }
    }

    fn plan(&self) -> Vec<Drift> {
        let recorded = Recorded {
            vms: vec![(Revision(5), &self.vm)],
            disks: vec![&self.disk],
            images: vec![&self.image],
            leases: self.lease.iter().collect(),
            operations: self.operation.iter().collect(),
            quarantined: self.quarantined.clone(),
        };
        let patience = Patience {
            now: UnixMs(10_000_000),
            grace_ms: GRACE_MS,
            operation_ms: 1_000,
        };
        plan(&recorded, &self.seen, patience)
    }

    fn only(&self) -> Drift {
        let found = self.plan();
        assert_eq!(found.len(), 1, "{found:#?}");
        found.into_iter().next().unwrap()
    }
}

fn open_operation() -> OperationRecord {
    OperationRecord {
        id: OperationId::parse("op").unwrap(),
        kind: OperationKind::VmStart,
        vm_id: Some(VmId::parse("vm").unwrap()),
        nic: None,
        disk_id: None,
        status: OperationStatus::Running,
        step: "launching".to_owned(),
        progress: 10,
        created_at: UnixMs(0),
        finished_at: None,
        error: None,
        request_id: None,
    }
}

/// Makes the two differ in the way of this class; none for the classes that the
/// looking itself finds.
fn made(class: DriftClass) -> Option<World> {
    let mut world = agreeing();
    match class {
        DriftClass::QemuGone => world.processes().clear(),
        DriftClass::QemuWithoutRecord => world.processes().push(process(9, 1)),
        DriftClass::QemuOfStoppedVm => world.stopped(Reason::User),
        DriftClass::QemuOfAnotherLife => world.processes().push(process(1, 2)),
        DriftClass::QemuDeaf => world.vm.unresponsive = true,
        DriftClass::GuestStands => {
            (world.vm.phase, world.vm.reason) = (Phase::Paused, Reason::IoError);
        }
        DriftClass::DiskFileMissing => world.files().disks.clear(),
        DriftClass::DiskFileShort => world.files().disks[0].bytes -= 1,
        DriftClass::DiskOfNoVm => world.disk.vm_id = Some(VmId::parse("other").unwrap()),
        DriftClass::DiskLetGo => world.vm.disks[0].state = AttachState::LetGo,
        DriftClass::LeaseOfNoVm => world.lease = Some(lease()),
        DriftClass::BridgeLost => world.network().bridges[0].1 = None,
        DriftClass::TapLost => world.network().taps[0].1 = false,
        DriftClass::TapOrphan => world.network().taps.push(("v0gone-x".to_owned(), true)),
        DriftClass::LinkForeign => world
            .network()
            .foreign
            .push(("eth9".to_owned(), "br-x".to_owned())),
        DriftClass::ImageFileMissing => world.files().images.clear(),
        DriftClass::ImageFileShort => world.files().images[0].bytes -= 1,
        DriftClass::FileWithoutRecord => {
            let orphan = file("orphan.qcow2", FileKind::File, 1);
            world.files().disks.push(orphan);
        }
        DriftClass::FileForeign => {
            let note = file("read me.txt", FileKind::File, 1);
            world.files().disks.push(note);
        }
        DriftClass::RuntimeFolderStale => {
            let stale = file("gone", FileKind::Folder, 0);
            world.files().runtime.push(stale);
        }
        DriftClass::OperationOverdue => world.operation = Some(open_operation()),
        DriftClass::RecordQuarantined => world.quarantined = vec![("vms/x", "bad checksum")],
        DriftClass::LogNotBounded | DriftClass::CheckFailed => return None,
    }
    Some(world)
}

#[test]
fn records_and_a_host_that_agree_give_nothing() {
    assert_eq!(agreeing().plan(), Vec::new());
}

#[test]
fn every_class_of_the_table_is_found_and_nothing_else_with_it() {
    let mut found = 0;
    for class in DriftClass::ALL {
        let Some(world) = made(*class) else { continue };
        let drift = world.only();
        assert_eq!(drift.class, *class, "{drift:?}");
        assert!(!drift.details.is_empty() && !drift.resource.is_empty());
        found += 1;
    }
    assert_eq!(
        found,
        DriftClass::ALL.len() - 2,
        "the rest is the looking's own"
    );
}

#[test]
fn a_table_row_has_words_for_its_evidence_and_its_action() {
    for class in DriftClass::ALL {
        assert!(!class.evidence().is_empty() && !class.action().is_empty());
        let word = class.as_str();
        assert!(
            word.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
            "{word}"
        );
    }
}

#[test]
fn the_page_for_people_has_the_same_table() {
    let page = include_str!("../../../../docs/observer.md");
    for class in DriftClass::ALL {
        let (word, evidence, action) = (class.as_str(), class.evidence(), class.action());
        let row = format!("| `{word}` | {evidence} | {action} |");
        assert!(page.contains(&row), "docs/observer.md lacks the row\n{row}");
    }
}

#[test]
fn a_vm_without_its_qemu_is_to_look_again_at_the_revision_that_was_seen() {
    let drift = made(DriftClass::QemuGone).unwrap().only();
    let vm = VmId::parse("vm").unwrap();
    assert_eq!(drift.repair, Repair::LookAgain(vm, Revision(5)));
}

#[test]
fn a_live_qemu_is_ended_only_where_a_stop_or_delete_is_desired() {
    let mut world = agreeing();
    let erased = Desired::Erased {
        keep_root_disk: false,
    };
    let phases = Phase::ALL;
    for (desired, reason) in [
        (Desired::Running, Reason::User),
        (Desired::Stopped, Reason::User),
        (Desired::Stopped, Reason::Created),
        (erased, Reason::User),
    ] {
        for phase in phases {
            for incarnation in [2, 3, 4] {
                world.vm.phase = phase;
                (world.vm.desired, world.vm.reason) = (desired, reason);
                world.seen.processes = Some(vec![process(1, incarnation), process(9, 3)]);
                for drift in world.plan() {
                    if let Repair::End(..) = drift.repair {
                        assert_ne!(desired, Desired::Running);
                        assert_ne!(reason, Reason::Created, "nobody asked for a stop");
                        assert!(incarnation <= 3, "the store is older than this QEMU");
                        let settled = [Phase::Stopped, Phase::Failed, Phase::Backoff];
                        assert!(settled.contains(&phase), "{phase:?}");
                    }
                }
            }
        }
    }
    world.stopped(Reason::User);
    world.seen.processes = Some(vec![process(1, 3)]);
    assert!(matches!(world.only().repair, Repair::End(..)));
}

#[test]
fn a_vm_in_motion_is_not_judged_by_its_processes() {
    let settled = [
        Phase::Running,
        Phase::Paused,
        Phase::Stopping,
        Phase::Stopped,
        Phase::Failed,
        Phase::Backoff,
    ];
    for phase in Phase::ALL {
        let mut world = agreeing();
        world.vm.phase = phase;
        world.processes().clear();
        let without = world.plan();
        world.processes().push(process(1, 3));
        let with = world.plan();
        if !settled.contains(&phase) {
            assert_eq!((without, with), (Vec::new(), Vec::new()), "{phase:?}");
        }
    }
}

#[test]
fn what_is_young_waits_and_what_is_old_is_put_away() {
    let mut world = made(DriftClass::FileWithoutRecord).unwrap();
    assert_eq!(
        world.only().repair,
        Repair::PutAway(Room::Disks, "orphan.qcow2".to_owned())
    );
    world.files().disks[1].age_ms = GRACE_MS;
    assert_eq!(world.only().repair, Repair::Wait);
}

#[test]
fn nothing_is_put_away_while_a_record_is_unreadable_or_a_qemu_unknown() {
    let leftovers = |world: &World| {
        let found = world.plan();
        let put_away = |drift: &Drift| matches!(drift.repair, Repair::PutAway(..));
        assert!(
            found
                .iter()
                .any(|d| d.class == DriftClass::FileWithoutRecord)
        );
        found.iter().any(put_away)
    };
    let world = made(DriftClass::FileWithoutRecord).unwrap();
    assert!(leftovers(&world));
    let mut world = made(DriftClass::FileWithoutRecord).unwrap();
    world.quarantined = vec![("disks/orphan", "bad checksum")];
    assert!(!leftovers(&world));
    let mut world = made(DriftClass::FileWithoutRecord).unwrap();
    world.processes().push(process(9, 1));
    assert!(!leftovers(&world));
    let mut world = made(DriftClass::FileWithoutRecord).unwrap();
    world.seen.processes = None;
    assert!(!leftovers(&world), "whether one lives is not known");
}

#[test]
fn what_could_not_be_seen_is_not_judged() {
    let mut world = agreeing();
    world.seen = Seen::default();
    assert_eq!(world.plan(), Vec::new());
}

#[test]
fn a_root_disk_that_was_never_made_is_not_missing() {
    let mut world = agreeing();
    world.stopped(Reason::Created);
    world.seen = Seen {
        processes: Some(Vec::new()),
        files: Some(SeenFiles {
            images: vec![file("linux", FileKind::File, 500)],
            ..SeenFiles::default()
        }),
        network: None,
    };
    assert_eq!(world.plan(), Vec::new());
}

#[test]
fn a_folder_or_a_link_in_the_place_of_a_disk_is_told_and_never_put_away() {
    for kind in [FileKind::Folder, FileKind::Other] {
        let mut world = agreeing();
        world.files().disks.push(file("orphan.qcow2", kind, 0));
        let drift = world.only();
        assert_eq!(
            (drift.class, drift.repair),
            (DriftClass::FileForeign, Repair::Report)
        );
    }
}
