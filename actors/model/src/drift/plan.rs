//! Records and a look at the host in, findings out. Pure and total.

use super::{
    Drift, DriftClass, FileKind, Patience, Recorded, Repair, Room, Seen, SeenFile, SeenFiles,
    SeenProcess,
    network::{lease_without_vm, links},
};
use crate::{
    disk::{DiskFormat, DiskRecord},
    event::Subject,
    ids::{DiskId, ImageName, Revision, VmId, VmUuid},
    vm::{AttachState, Desired, Phase, Reason, VmRecord},
};
use std::collections::{BTreeMap, BTreeSet};

const MIB: u64 = 1 << 20;
/// The least bytes of a qcow2 header (version 2).
const QCOW2_HEADER: u64 = 72;

/// What differs, in the order of the classes.
pub fn plan(recorded: &Recorded<'_>, seen: &Seen, patience: Patience) -> Vec<Drift> {
    let mut found = Vec::new();
    if let Some(processes) = &seen.processes {
        processes_against_records(recorded, processes, &mut found);
    }
    for (_, vm) in &recorded.vms {
        found.extend(of_record(vm));
    }
    let vms: BTreeSet<&VmId> = recorded.vms.iter().map(|(_, vm)| &vm.id).collect();
    let astray = |disk: &&DiskRecord| disk_without_vm(&vms, disk);
    found.extend(recorded.disks.iter().filter_map(astray));
    let leases = recorded.leases.iter();
    found.extend(leases.filter_map(|lease| lease_without_vm(&vms, lease)));
    for (_, vm) in &recorded.vms {
        disks_let_go(vm, &mut found);
    }
    if let Some(seen) = &seen.network {
        links(recorded, seen, &mut found);
    }
    if let Some(files) = &seen.files {
        let keep = must_keep(recorded, seen, &found);
        Judge {
            recorded,
            files,
            patience,
            keep,
        }
        .all(&mut found);
    }
    for (row, why) in &recorded.quarantined {
        let (class, details) = (DriftClass::RecordQuarantined, (*why).to_owned());
        found.push(Drift::reported(class, row, Subject::Daemon, details));
    }
    for operation in &recorded.operations {
        let open = patience.now.since(operation.created_at);
        if open > patience.operation_ms {
            let subject = match (&operation.vm_id, &operation.disk_id) {
                (Some(vm), _) => Subject::Vm(vm.clone()),
                (None, Some(disk)) => Subject::Disk(disk.clone()),
                (None, None) => Subject::Daemon,
            };
            let details = format!(
                "{} is at `{}` and has been open for {} s",
                operation.kind.as_str(),
                operation.step,
                open / 1_000
            );
            let class = DriftClass::OperationOverdue;
            found.push(Drift::reported(
                class,
                operation.id.as_str(),
                subject,
                details,
            ));
        }
    }
    found.sort_by(|a, b| a.key().cmp(&b.key()));
    found
}

/// Why nothing may be put away: something of ours is not understood.
fn must_keep(recorded: &Recorded<'_>, seen: &Seen, found: &[Drift]) -> bool {
    let stranger = |drift: &Drift| drift.class == DriftClass::QemuWithoutRecord;
    seen.processes.is_none() || !recorded.quarantined.is_empty() || found.iter().any(stranger)
}

fn about_vm(vm: &VmRecord, class: DriftClass, details: String, repair: Repair) -> Drift {
    Drift {
        class,
        resource: vm.id.as_str().to_owned(),
        subject: Subject::Vm(vm.id.clone()),
        details,
        repair,
    }
}

fn processes_against_records(
    recorded: &Recorded<'_>,
    processes: &[SeenProcess],
    found: &mut Vec<Drift>,
) {
    let mut of_vm: BTreeMap<VmUuid, Vec<&SeenProcess>> = BTreeMap::new();
    for process in processes {
        of_vm.entry(process.uuid).or_default().push(process);
    }
    for (revision, vm) in &recorded.vms {
        let mine = of_vm.remove(&vm.uuid).unwrap_or_default();
        found.extend(of_qemus(*revision, vm, &mine));
    }
    for process in of_vm.into_values().flatten() {
        let (pid, uuid) = (process.identity.pid, process.uuid);
        let details = format!("QEMU with pid {pid} carries the UUID {uuid}, which no VM has");
        let class = DriftClass::QemuWithoutRecord;
        let resource = uuid.to_string();
        found.push(Drift::reported(class, &resource, Subject::Daemon, details));
    }
}

fn of_qemus(revision: Revision, vm: &VmRecord, mine: &[&SeenProcess]) -> Vec<Drift> {
    let mut found = Vec::new();
    let lives = mine
        .iter()
        .any(|process| process.incarnation == vm.incarnation);
    // In every other phase the VM itself is about to find out.
    let settled_alive = matches!(vm.phase, Phase::Running | Phase::Paused | Phase::Stopping);
    let settled_dead = matches!(vm.phase, Phase::Stopped | Phase::Failed | Phase::Backoff);
    if settled_alive && !lives {
        let details = format!(
            "recorded as {} with pid {}, but no process carries its UUID and incarnation {}",
            vm.phase.as_str(),
            vm.process
                .as_ref()
                .map_or("none".to_owned(), |of| of.pid.to_string()),
            vm.incarnation.0
        );
        let repair = Repair::LookAgain(vm.id.clone(), revision);
        found.push(about_vm(vm, DriftClass::QemuGone, details, repair));
    }
    for process in mine {
        let pid = process.identity.pid;
        if process.incarnation != vm.incarnation {
            let details = format!(
                "QEMU with pid {pid} is of incarnation {}, the record is at {}",
                process.incarnation.0, vm.incarnation.0
            );
            let repair = if process.incarnation < vm.incarnation && settled_dead {
                end_if_desired(vm, process)
            } else {
                Repair::Report
            };
            found.push(about_vm(vm, DriftClass::QemuOfAnotherLife, details, repair));
        } else if settled_dead {
            let details = format!(
                "QEMU with pid {pid} lives although the VM is recorded as {}",
                vm.phase.as_str()
            );
            let repair = end_if_desired(vm, process);
            found.push(about_vm(vm, DriftClass::QemuOfStoppedVm, details, repair));
        }
    }
    found
}

/// A live QEMU is ended only where a stop or delete is recorded as desired. A
/// VM that was just made is "stopped" without anybody having asked for a stop.
fn end_if_desired(vm: &VmRecord, process: &SeenProcess) -> Repair {
    match vm.desired {
        Desired::Running => Repair::Report,
        Desired::Stopped if vm.reason == Reason::Created => Repair::Report,
        Desired::Stopped | Desired::Erased { .. } => Repair::End(vm.id.clone(), process.clone()),
    }
}

/// What the record itself says is not as it should be.
fn of_record(vm: &VmRecord) -> Option<Drift> {
    if vm.unresponsive && vm.phase.may_have_process() {
        let details = format!("QEMU does not answer on QMP: {}", vm.detail);
        return Some(about_vm(vm, DriftClass::QemuDeaf, details, Repair::Report));
    }
    let by_itself = matches!(
        vm.reason,
        Reason::IoError | Reason::GuestPanic | Reason::InternalError
    );
    (vm.phase == Phase::Paused && by_itself).then(|| {
        let details = format!("{}: {}", vm.reason.as_str(), vm.detail);
        about_vm(vm, DriftClass::GuestStands, details, Repair::Report)
    })
}

/// Its QEMU was asked, and the record says what it answered.
fn disks_let_go(vm: &VmRecord, found: &mut Vec<Drift>) {
    if !matches!(vm.phase, Phase::Running | Phase::Paused) {
        return;
    }
    for held in &vm.disks {
        if held.state == AttachState::LetGo {
            let (disk, id) = (&held.disk, &vm.id);
            let details = format!("it is attached to {id}, whose QEMU does not have it");
            let subject = Subject::Disk(disk.clone());
            let class = DriftClass::DiskLetGo;
            found.push(Drift::reported(class, disk.as_str(), subject, details));
        }
    }
}

fn disk_without_vm(vms: &BTreeSet<&VmId>, disk: &DiskRecord) -> Option<Drift> {
    let vm = disk.vm_id.as_ref()?;
    (!vms.contains(vm)).then(|| {
        let details = format!("recorded as attached to {vm}, which has no record");
        about_disk(disk, DriftClass::DiskOfNoVm, details)
    })
}

fn about_disk(disk: &DiskRecord, class: DriftClass, details: String) -> Drift {
    let subject = Subject::Disk(disk.id.clone());
    Drift::reported(class, disk.id.as_str(), subject, details)
}

struct Judge<'a> {
    recorded: &'a Recorded<'a>,
    files: &'a SeenFiles,
    patience: Patience,
    keep: bool,
}

impl Judge<'_> {
    fn all(&self, found: &mut Vec<Drift>) {
        let vms: BTreeSet<&str> = self
            .recorded
            .vms
            .iter()
            .map(|(_, vm)| vm.id.as_str())
            .collect();
        self.disks(found);
        self.images(found);
        for file in &self.files.vm_folders {
            let ours = file.kind == FileKind::Folder && VmId::parse(&file.name).is_ok();
            if !vms.contains(file.name.as_str()) {
                found.push(self.leftover(Room::VmFolders, file, ours));
            }
        }
        for file in &self.files.runtime {
            let ours = file.kind == FileKind::Folder && VmId::parse(&file.name).is_ok();
            if !vms.contains(file.name.as_str()) {
                found.push(self.leftover(Room::Runtime, file, ours));
            }
        }
    }

    fn disks(&self, found: &mut Vec<Drift>) {
        let seen: BTreeMap<&str, &SeenFile> = named(&self.files.disks);
        let started: BTreeSet<&str> = named(&self.files.vm_folders).into_keys().collect();
        let mut known = BTreeSet::new();
        for disk in &self.recorded.disks {
            let name = format!("{}.{}", disk.id, disk.format.as_str());
            match seen.get(name.as_str()) {
                None if self.has_been_made(disk, &started) => {
                    let details = format!("its file disks/{name} is gone");
                    found.push(about_disk(disk, DriftClass::DiskFileMissing, details));
                }
                None => {}
                Some(file) => {
                    let least = match disk.format {
                        DiskFormat::Raw => disk.size_mib.saturating_mul(MIB),
                        DiskFormat::Qcow2 => QCOW2_HEADER,
                    };
                    if file.kind != FileKind::File || file.bytes < least {
                        let bytes = file.bytes;
                        let details =
                            format!("its file disks/{name} has {bytes} bytes of at least {least}");
                        found.push(about_disk(disk, DriftClass::DiskFileShort, details));
                    }
                }
            }
            known.insert(name);
        }
        for file in &self.files.disks {
            if !known.contains(&file.name) {
                let ours = file.kind == FileKind::File && is_disk_name(&file.name);
                found.push(self.leftover(Room::Disks, file, ours));
            }
        }
    }

    /// A root disk's file comes at the VM's first start, right before the VM's
    /// own folder; another disk's with its record.
    fn has_been_made(&self, disk: &DiskRecord, started: &BTreeSet<&str>) -> bool {
        match (&disk.vm_id, disk.root) {
            (Some(vm), true) => started.contains(vm.as_str()),
            _ => self.patience.now.since(disk.created_at) > self.patience.grace_ms,
        }
    }

    fn images(&self, found: &mut Vec<Drift>) {
        let mut seen = named(&self.files.images);
        for image in &self.recorded.images {
            let (name, least) = (image.name.as_str(), image.file_size);
            let tell = |class, details| {
                Drift::reported(class, name, Subject::Image(image.name.clone()), details)
            };
            match seen.remove(name) {
                None => {
                    let details = format!("its file images/{name} is gone");
                    found.push(tell(DriftClass::ImageFileMissing, details));
                }
                Some(file) if file.kind != FileKind::File || file.bytes < least => {
                    let details =
                        format!("its file images/{name} has {} bytes of {least}", file.bytes);
                    found.push(tell(DriftClass::ImageFileShort, details));
                }
                Some(_) => {}
            }
        }
        for file in seen.into_values() {
            let ours = file.kind == FileKind::File && ImageName::parse(&file.name).is_ok();
            found.push(self.leftover(Room::Images, file, ours));
        }
    }

    /// Something that no record knows.
    fn leftover(&self, room: Room, file: &SeenFile, ours: bool) -> Drift {
        let resource = format!("{}/{}", room.as_str(), file.name);
        let age = file.age_ms / 1_000;
        let (class, details) = match (ours, room) {
            (false, _) => (
                DriftClass::FileForeign,
                "it is not named or made as VMAN does it".to_owned(),
            ),
            (true, Room::Runtime) => (
                DriftClass::RuntimeFolderStale,
                format!("no VM of that name, untouched for {age} s"),
            ),
            (true, _) => (
                DriftClass::FileWithoutRecord,
                format!(
                    "no record knows it, {} bytes, untouched for {age} s",
                    file.bytes
                ),
            ),
        };
        let repair = if !ours || self.keep {
            Repair::Report
        } else if file.age_ms <= self.patience.grace_ms {
            Repair::Wait
        } else {
            Repair::PutAway(room, file.name.clone())
        };
        Drift {
            class,
            resource,
            subject: Subject::Daemon,
            details,
            repair,
        }
    }
}

fn named(files: &[SeenFile]) -> BTreeMap<&str, &SeenFile> {
    files
        .iter()
        .map(|file| (file.name.as_str(), file))
        .collect()
}

fn is_disk_name(name: &str) -> bool {
    let formats = [DiskFormat::Qcow2, DiskFormat::Raw];
    formats.iter().any(|format| {
        let stem = name
            .strip_suffix(format.as_str())
            .and_then(|s| s.strip_suffix('.'));
        stem.is_some_and(|stem| DiskId::parse(stem).is_ok())
    })
}
