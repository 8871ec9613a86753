//! The observer on a whole daemon: what it finds, does and tells.

use super::{
    daemon::{Daemon, STOP_BY_FORCE, alone, vm},
    network::bridged,
};
use crate::{
    fakes::FakeHost,
    observer::{DriftSettings, Finding, ObserverReport},
    ports::{ForeignLink, FoundProcess, LaunchPlan, NetworkSurvey, NewsSink, SeenTap},
};
use core::net::Ipv4Addr;
use std::sync::Arc;
use vman_model::{
    BootId, Change, DiskFile, DiskId, DiskRecord, EventKind, ImageFormat, ImageKind, ImageName,
    ImageRecord, Incarnation, LeaseRecord, NetworkName, OperationId, OperationKind,
    OperationRecord, OperationStatus, Origin, Revision, UnixMs, VmId, VmUuid, Write,
    drift::{DriftClass, FileKind, Room, SeenFile},
    network::lease_id,
    vm::{AttachState, Command, Firmware, Phase, ProcessIdentity, RunState},
};

async fn check(daemon: &Daemon) -> Arc<ObserverReport> {
    let observer = daemon.on().observer.clone();
    let check = tokio::spawn(async move { observer.check().await });
    daemon.until("the check ends", || check.is_finished()).await;
    check.await.unwrap().expect("an observer that runs")
}

fn of(report: &ObserverReport, class: DriftClass) -> Option<&Finding> {
    let mut issues = report.last_issues.iter();
    issues.find(|issue| issue.issue_type == class.as_str())
}

fn events(daemon: &Daemon, kind: EventKind) -> Vec<String> {
    let inventory = daemon.on().store.inventory();
    let events = inventory.recent_events.iter();
    let of_kind = events.filter(|event| event.what.kind == kind);
    of_kind
        .map(|event| {
            assert_eq!(event.what.cause.origin, Origin::Observer);
            event.what.detail.clone()
        })
        .collect()
}

fn stray(name: &str, kind: FileKind, age_ms: u64) -> SeenFile {
    SeenFile {
        name: name.to_owned(),
        kind,
        bytes: 1,
        age_ms,
    }
}

const OLD: u64 = 1_000_000_000;

fn stranger(uuid: VmUuid, incarnation: u64) -> FoundProcess {
    FoundProcess {
        uuid,
        incarnation: Incarnation(incarnation),
        identity: ProcessIdentity {
            pid: 9,
            start_time: 9,
            boot_id: BootId::parse("simulated-boot-0").unwrap(),
        },
    }
}

async fn put(daemon: &Daemon, write: Write) {
    let change = Change {
        writes: vec![write],
        ..Change::default()
    };
    daemon.on().store.commit(change).await.unwrap();
}

fn image(name: &str, file_size: u64) -> ImageRecord {
    ImageRecord {
        name: ImageName::parse(name).unwrap(),
        kind: ImageKind::Kernel,
        format: ImageFormat::Raw,
        file_size,
        virtual_size: file_size,
        sha256: String::new(),
        created_at: UnixMs(0),
    }
}

/// Starts a QEMU of a VM behind the daemon's back.
async fn launch(daemon: &Daemon, id: &VmId, incarnation: Incarnation) {
    let plan = LaunchPlan {
        vm: id.clone(),
        uuid: daemon.record(id).unwrap().uuid,
        incarnation,
        cpu_count: 1,
        ram_mib: 64,
        resources: vman_model::vm::Resources::default(),
        firmware: Firmware::Bios,
        boot: None,
        disks: Vec::new(),
        nics: Vec::new(),
        confinement: vman_model::vm::Confinement::default(),
    };
    let hypervisor = daemon.on().hypervisor.clone();
    let started = tokio::spawn(async move {
        let machine = hypervisor.launch(plan, NewsSink::new(|_| {})).await;
        assert!(machine.is_ok());
    });
    daemon.until("it runs", || started.is_finished()).await;
    started.await.unwrap();
}

async fn hang(daemon: &Daemon, id: &VmId) {
    daemon.host.hang(id, true);
    let deaf = || daemon.record(id).is_some_and(|vm| vm.unresponsive);
    daemon.until("it is known to be deaf", deaf).await;
}

/// A running VM with the data disk `data`.
async fn attached(daemon: &Daemon) -> VmId {
    let id = daemon.create("a").await;
    let inventory = daemon.on().store.inventory();
    let root = inventory.disks.values().next().unwrap().value.clone();
    let disk = DiskId::parse("data").unwrap();
    let data = DiskRecord {
        id: disk.clone(),
        vm_id: None,
        root: false,
        file: DiskFile::OnDemand,
        ..root
    };
    put(daemon, Write::PutDisk(data)).await;
    let letter = None;
    daemon.done(&id, Command::AttachDisk { disk, letter }).await;
    daemon.done(&id, Command::Start).await;
    id
}

/// The bridge looks otherwise than it is.
async fn see(daemon: &Daemon, change: impl FnOnce(&mut NetworkSurvey)) {
    let mut seen = daemon.on().network.survey().await.unwrap();
    change(&mut seen);
    daemon.host.network_seen(Some(seen));
}

/// Makes the host or the records differ in the way of this class.
async fn make(daemon: &Daemon, class: DriftClass) -> bool {
    let host = &daemon.host;
    match class {
        DriftClass::QemuGone => host.vanish(&daemon.running("a").await),
        DriftClass::QemuWithoutRecord => host.stranger(stranger(VmUuid([9; 16]), 1)),
        DriftClass::QemuOfStoppedVm => {
            let id = daemon.running("a").await;
            daemon.done(&id, STOP_BY_FORCE).await;
            launch(daemon, &id, daemon.record(&id).unwrap().incarnation).await;
        }
        DriftClass::QemuOfAnotherLife => {
            let uuid = daemon.record(&daemon.running("a").await).unwrap().uuid;
            host.stranger(stranger(uuid, 99));
        }
        DriftClass::QemuDeaf => hang(daemon, &daemon.running("a").await).await,
        DriftClass::GuestStands => {
            let id = daemon.running("a").await;
            host.guest(&id, RunState::IoError);
            daemon.until_phase(&id, Phase::Paused).await;
        }
        DriftClass::DiskFileMissing => {
            daemon.running("a").await;
            host.lose_disk(&DiskId::parse("a-root").unwrap());
        }
        DriftClass::DiskFileShort => {
            daemon.running("a").await;
            host.stray(Room::Disks, stray("a-root.qcow2", FileKind::File, OLD));
        }
        DriftClass::DiskOfNoVm => {
            daemon.create("a").await;
            let inventory = daemon.on().store.inventory();
            let mut disk = inventory.disks.values().next().unwrap().value.clone();
            disk.vm_id = Some(vm("nobody"));
            put(daemon, Write::PutDisk(disk)).await;
        }
        DriftClass::ImageFileMissing => put(daemon, Write::PutImage(image("linux", 5))).await,
        DriftClass::ImageFileShort => {
            put(daemon, Write::PutImage(image("linux", 5))).await;
            host.stray(Room::Images, stray("linux", FileKind::File, OLD));
        }
        DriftClass::FileWithoutRecord => {
            host.stray(Room::Disks, stray("orphan.qcow2", FileKind::File, OLD));
        }
        DriftClass::FileForeign => {
            host.stray(Room::VmFolders, stray("notes", FileKind::File, OLD));
        }
        DriftClass::RuntimeFolderStale => {
            host.stray(Room::Runtime, stray("gone", FileKind::Folder, OLD));
        }
        DriftClass::OperationOverdue => {
            let operation = OperationRecord {
                id: OperationId::parse("op-old").unwrap(),
                kind: OperationKind::VmStart,
                vm_id: None,
                nic: None,
                disk_id: None,
                status: OperationStatus::Running,
                step: "launching".to_owned(),
                progress: 0,
                created_at: UnixMs(0),
                finished_at: None,
                error: None,
                request_id: None,
            };
            put(daemon, Write::PutOperation(operation)).await;
        }
        DriftClass::DiskLetGo => {
            let id = attached(daemon).await;
            host.pull_disk(&id, &DiskId::parse("data").unwrap());
            // Its record follows the answer to the observer's own question.
            check(daemon).await;
            let let_go = || {
                daemon
                    .record(&id)
                    .is_some_and(|vm| vm.disks[0].state == AttachState::LetGo)
            };
            daemon.until("QEMU was asked", let_go).await;
        }
        DriftClass::LeaseOfNoVm => {
            let address = Ipv4Addr::new(10, 0, 0, 77);
            let lease = LeaseRecord {
                id: lease_id(address),
                vm_id: vm("nobody"),
                nic: 0,
                address,
                mac: [2; 6],
                fixed: false,
                limits: vman_model::network::NicLimits::default(),
                created_at: UnixMs(0),
                network: NetworkName::default(),
            };
            put(daemon, Write::PutLease(lease)).await;
        }
        DriftClass::BridgeLost => see(daemon, |seen| seen.bridges.clear()).await,
        DriftClass::TapLost => {
            daemon.running("a").await;
            see(daemon, |seen| seen.taps.clear()).await;
        }
        DriftClass::TapOrphan => {
            let tap = SeenTap {
                name: "v0gone-abcdefg".to_owned(),
                attached: true,
            };
            see(daemon, |seen| seen.taps.push(tap)).await;
        }
        DriftClass::LinkForeign => {
            let link = ForeignLink {
                name: "eth9".to_owned(),
                bridge: "br-x".to_owned(),
            };
            see(daemon, |seen| seen.foreign.push(link)).await;
        }
        // Rows are read at the start: see `an_unreadable_record_is_told`. The
        // others are failures of the looking itself.
        DriftClass::RecordQuarantined | DriftClass::LogNotBounded | DriftClass::CheckFailed => {
            return false;
        }
    }
    true
}

async fn is_found_and_told_once(class: DriftClass) {
    let daemon = Daemon::start_on(bridged(24)).await;
    assert_eq!(check(&daemon).await.last_issues, Vec::new());
    if !make(&daemon, class).await {
        return;
    }
    let report = check(&daemon).await;
    let finding = of(&report, class).unwrap_or_else(|| panic!("{class:?}: {report:?}"));
    assert_eq!(report.last_issues.len(), 1, "{class:?}: {report:?}");
    assert!(!finding.action.starts_with("failed"), "{finding:?}");
    check(&daemon).await;
    check(&daemon).await;
    let told = events(&daemon, EventKind::DriftFound);
    assert_eq!(told.len(), 1, "one event per appearance: {told:?}");
    assert!(told[0].contains(class.as_str()), "{told:?}");
    assert_eq!(daemon.host.violations(), Vec::<String>::new());
}

#[test]
fn every_class_of_the_table_is_found_by_one_check_told_once_and_recorded() {
    for class in DriftClass::ALL {
        alone(is_found_and_told_once(*class));
    }
}

async fn is_found_and_left(class: DriftClass) {
    let mut daemon = Daemon::start_on(bridged(24)).await;
    daemon.settings.drift.repair = false;
    daemon.stop_and_start().await;
    if !make(&daemon, class).await {
        return;
    }
    let (live, signals) = (daemon.host.live(), daemon.host.signals());
    let report = check(&daemon).await;
    let finding = of(&report, class).unwrap_or_else(|| panic!("{class:?}: {report:?}"));
    // A young file would say that it waits: here nothing waits for anything.
    assert_eq!(finding.action, "reported");
    let now = (daemon.host.live(), daemon.host.signals());
    assert_eq!(now, (live, signals), "{class:?}");
    assert_eq!(daemon.host.trash(), Vec::new());
}

#[test]
fn under_the_policy_report_everything_is_told_and_nothing_is_done() {
    for class in DriftClass::ALL {
        alone(is_found_and_left(*class));
    }
}

#[tokio::test]
async fn a_vm_whose_qemu_is_gone_unheard_follows_it_and_can_be_started_again() {
    let daemon = Daemon::start().await;
    let id = daemon.running("a").await;
    daemon.host.vanish(&id);
    let report = check(&daemon).await;
    assert_eq!(
        of(&report, DriftClass::QemuGone).unwrap().action,
        "looking_again"
    );
    let left = || daemon.phase(&id) != Some(Phase::Running);
    daemon.until("the record follows", left).await;
    let rests = || daemon.phase(&id).is_some_and(Phase::is_rest);
    daemon.until("it rests", rests).await;
    assert_eq!(check(&daemon).await.last_issues, Vec::new());
    assert_eq!(events(&daemon, EventKind::DriftGone).len(), 1);
    daemon.done(&id, vman_model::vm::Command::Start).await;
    daemon.oracle().await;
}

#[tokio::test]
async fn looking_again_at_a_vm_that_is_well_changes_neither_its_qemu_nor_its_state() {
    let daemon = Daemon::start().await;
    let id = daemon.running("a").await;
    let (before, launched) = (daemon.host.qemu(&id), daemon.host.launched());
    let revision = daemon.on().store.inventory().vms[&id].revision;
    assert!(daemon.on().vms.look_again(&id, Revision(revision.0 - 1)));
    daemon.oracle().await;
    // Not before it has heard the first.
    let asked = || daemon.on().vms.look_again(&id, revision);
    daemon.until("it is asked again", asked).await;
    let revision_now = || daemon.on().store.inventory().vms[&id].revision;
    let looked = || revision_now() > revision && daemon.phase(&id) == Some(Phase::Running);
    daemon.until("it is found again", looked).await;
    daemon.oracle().await;
    assert_eq!(
        (daemon.host.qemu(&id), daemon.host.launched()),
        (before, launched)
    );
}

#[tokio::test]
async fn a_qemu_of_a_stopped_vm_is_asked_to_end_and_killed_at_the_next_check() {
    let daemon = Daemon::start().await;
    let id = daemon.running("a").await;
    daemon.done(&id, STOP_BY_FORCE).await;
    daemon
        .host
        .script_vm(&id, |script| script.terminate_takes = None);
    launch(&daemon, &id, daemon.record(&id).unwrap().incarnation).await;
    let told = |report: &ObserverReport| {
        let finding = of(report, DriftClass::QemuOfStoppedVm);
        finding.map(|finding| finding.action.clone())
    };
    assert_eq!(told(&*check(&daemon).await).as_deref(), Some("ended"));
    assert_eq!(told(&*check(&daemon).await).as_deref(), Some("killed"));
    let gone = || daemon.host.qemu(&id).is_none();
    daemon.until("it is gone", gone).await;
    daemon.oracle().await;
}

#[tokio::test]
async fn a_deaf_qemu_holds_up_no_check_and_is_never_signalled() {
    let daemon = Daemon::start().await;
    let (deaf, fine) = (daemon.running("deaf").await, daemon.running("fine").await);
    hang(&daemon, &deaf).await;
    for _ in 0..5 {
        let report = check(&daemon).await;
        assert!(report.last_duration_ms < 1_000, "{report:?}");
        let finding = of(&report, DriftClass::QemuDeaf).unwrap();
        assert_eq!(
            (&*finding.resource_id, &*finding.action),
            ("deaf", "reported")
        );
    }
    assert_eq!(daemon.host.signals(), Vec::new());
    assert_eq!(daemon.phase(&fine), Some(Phase::Running));
    daemon.host.hang(&deaf, false);
    let hears = || daemon.record(&deaf).is_some_and(|vm| !vm.unresponsive);
    daemon.until("it is heard again", hears).await;
    assert_eq!(check(&daemon).await.last_issues, Vec::new());
}

#[tokio::test]
async fn however_often_a_deaf_qemu_is_looked_at_a_user_can_still_stop_it() {
    let daemon = Daemon::start().await;
    let id = daemon.running("deaf").await;
    hang(&daemon, &id).await;
    for _ in 0..100 {
        daemon.on().vms.ping(&id);
    }
    daemon.done(&id, STOP_BY_FORCE).await;
    daemon.oracle().await;
}

#[tokio::test]
async fn a_leftover_waits_for_the_grace_time_and_is_then_put_away() {
    let daemon = Daemon::start().await;
    let young = stray("orphan.raw", FileKind::File, 1_000);
    daemon.host.stray(Room::Disks, young);
    let report = check(&daemon).await;
    assert_eq!(report.last_issues[0].action, "waiting");
    assert_eq!(daemon.host.trash(), Vec::new());
    let old = stray("orphan.raw", FileKind::File, OLD);
    daemon.host.stray(Room::Disks, old);
    assert_eq!(check(&daemon).await.last_issues[0].action, "put_away");
    let put_away = (Room::Disks, "orphan.raw".to_owned());
    assert_eq!(daemon.host.trash(), vec![put_away]);
    assert_eq!(check(&daemon).await.last_issues, Vec::new());
}

#[tokio::test]
async fn a_finding_that_cannot_be_recorded_is_recorded_when_there_is_space_again() {
    let daemon = Daemon::start().await;
    make(&daemon, DriftClass::FileForeign).await;
    daemon
        .host
        .storage()
        .then(crate::fakes::NextCommit::NoSpace);
    assert_eq!(check(&daemon).await.last_issues.len(), 1);
    assert_eq!(events(&daemon, EventKind::DriftFound), Vec::<String>::new());
    check(&daemon).await;
    assert_eq!(events(&daemon, EventKind::DriftFound).len(), 1);
}

#[tokio::test]
async fn checks_asked_for_many_times_at_once_are_one_check() {
    let daemon = Daemon::start().await;
    let before = daemon.on().observer.report().checks;
    let asked: Vec<_> = (0..20)
        .map(|_| {
            let observer = daemon.on().observer.clone();
            tokio::spawn(async move { observer.check().await })
        })
        .collect();
    daemon
        .until("all are answered", || {
            asked.iter().all(tokio::task::JoinHandle::is_finished)
        })
        .await;
    assert_eq!(daemon.on().observer.report().checks, before + 1);
}

#[tokio::test]
async fn an_observer_started_twice_or_stopped_twice_is_one_observer() {
    let mut daemon = Daemon::start().await;
    daemon.stop_and_start().await;
    daemon.kill_and_start().await;
    daemon.pass(std::time::Duration::from_secs(12)).await;
    let checks = daemon.on().observer.report().checks;
    assert!((2..=3).contains(&checks), "a tick each 5 s: {checks}");
}

#[tokio::test]
async fn a_dry_runs_files_do_not_outlive_it_and_are_not_missed() {
    let daemon = Daemon::start_on(FakeHost::simulated(7)).await;
    put(&daemon, Write::PutImage(image("linux", 5))).await;
    assert_eq!(check(&daemon).await.last_issues, Vec::new());
}

#[tokio::test]
async fn a_host_that_lost_everything_is_told_a_bounded_number_of_times_per_check() {
    let daemon = Daemon::start().await;
    for n in 0..100 {
        put(&daemon, Write::PutImage(image(&format!("image-{n}"), 5))).await;
    }
    assert_eq!(check(&daemon).await.last_issues.len(), 100);
    assert_eq!(events(&daemon, EventKind::DriftFound).len(), 64);
    check(&daemon).await;
    assert_eq!(events(&daemon, EventKind::DriftFound).len(), 100);
}

#[test]
fn the_defaults_give_people_time() {
    let settings = DriftSettings::default();
    assert!(settings.repair && settings.grace.as_secs() >= 600);
    assert!(settings.retention.as_secs() >= 24 * 3_600);
}
