//! Drift: a difference between the records and the host. Owns the table of its
//! classes and, in [`plan`], what is found and what is to be done about it.
//!
//! Must not: look (what was seen is passed in) or act (what is to be done is
//! handed out). A plan is of one look; whoever acts on it looks twice first,
//! because records and host are not read at the same instant.
//! Look next: `plan.rs`, `network.rs`; docs/observer.md shows the table to people.

mod network;
mod plan;

#[cfg(test)]
mod tests;

pub use plan::plan;

use crate::{
    disk::DiskRecord,
    event::Subject,
    ids::{Incarnation, Revision, VmId, VmUuid},
    image::ImageRecord,
    network::LeaseRecord,
    operation::OperationRecord,
    time::UnixMs,
    vm::{ProcessIdentity, VmRecord},
};

macro_rules! classes {
    ($($(#[$doc:meta])* $name:ident = $word:literal, evidence $evidence:literal, action $action:literal;)*) => {
        /// A kind of drift.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DriftClass { $($(#[$doc])* $name,)* }

        impl DriftClass {
            /// All classes, in the order of the table in docs/observer.md.
            pub const ALL: &'static [DriftClass] = &[$(DriftClass::$name,)*];

            /// The word the API and the event log use.
            pub fn as_str(self) -> &'static str {
                match self { $(DriftClass::$name => $word,)* }
            }

            /// What is seen, for the documentation.
            pub fn evidence(self) -> &'static str {
                match self { $(DriftClass::$name => $evidence,)* }
            }

            /// What is done under the policy `repair`, for the documentation.
            pub fn action(self) -> &'static str {
                match self { $(DriftClass::$name => $action,)* }
            }
        }
    };
}

classes! {
    /// A VM is recorded with a QEMU, and there is none.
    QemuGone = "qemu_gone",
        evidence "no process carries the UUID and incarnation of a VM that is recorded running",
        action "the VM looks for its QEMU again; without one it ends as after any exit, and its restart policy is asked";
    /// A QEMU of ours belongs to no record.
    QemuWithoutRecord = "qemu_without_record",
        evidence "a process with VMAN's marks has this daemon's files open and an unknown UUID",
        action "reported; while it lives nothing is put away";
    /// A QEMU lives although its VM is recorded as stopped.
    QemuOfStoppedVm = "qemu_of_stopped_vm",
        evidence "a process carries the UUID and the last incarnation of a VM at rest",
        action "ended if a stop or delete is what is desired, else reported";
    /// A QEMU of a life that is not the recorded one.
    QemuOfAnotherLife = "qemu_of_another_life",
        evidence "a process carries the UUID of a VM and an incarnation that is not the recorded one",
        action "an earlier life is ended if a stop or delete is what is desired, else reported; a later one is reported (the store is older than the host)";
    /// QEMU does not answer on QMP.
    QemuDeaf = "qemu_deaf",
        evidence "QMP is silent beyond its deadline while the process lives",
        action "reported; it is asked again at each look, and never killed for it";
    /// A guest stands still for a reason that is not a user's.
    GuestStands = "guest_stands",
        evidence "the run state is io-error, guest-panicked or internal-error",
        action "reported; the record follows the run state";
    /// A disk is recorded whose file is gone.
    DiskFileMissing = "disk_file_missing",
        evidence "no file of that name in the disks folder",
        action "reported";
    /// A disk's file is shorter than the disk.
    DiskFileShort = "disk_file_short",
        evidence "a raw file has fewer bytes than the recorded size, or a qcow2 file less than a header",
        action "reported";
    /// A disk is attached to a VM that there is not.
    DiskOfNoVm = "disk_of_no_vm",
        evidence "the VM named by the disk's record has no record",
        action "reported";
    /// A disk is attached, but its VM's QEMU does not have it.
    DiskLetGo = "disk_let_go",
        evidence "asked for its disks, the QEMU of a VM does not name one that is attached",
        action "reported; it is back at the VM's next start, or goes at the next detach (one that QEMU has and no record knows is unplugged by the VM)";
    /// An address is held by a VM that there is not.
    LeaseOfNoVm = "lease_of_no_vm",
        evidence "the VM named by the lease has no record",
        action "reported";
    /// The bridge is not there, down, or another's.
    BridgeLost = "bridge_lost",
        evidence "no link of the bridge's name that is up and carries VMAN's mark",
        action "the network makes it anew when the kernel tells of it; reported where that fails, or where it is another's";
    /// A running VM has no TAP, or one that leads nowhere.
    TapLost = "tap_lost",
        evidence "the TAP of a VM that is recorded running is missing, down or not on the bridge",
        action "the network attaches it again or gives QEMU another; reported where that fails";
    /// A TAP of ours belongs to no VM that runs.
    TapOrphan = "tap_orphan",
        evidence "a TAP is named as VMAN's are and no VM that runs has it",
        action "reported";
    /// Something else is on the bridge.
    LinkForeign = "link_foreign",
        evidence "a link on the bridge that is no TAP of VMAN's",
        action "reported";
    /// An image is recorded whose file is gone.
    ImageFileMissing = "image_file_missing",
        evidence "no file of that name in the images folder",
        action "reported";
    /// An image's file is shorter than recorded.
    ImageFileShort = "image_file_short",
        evidence "the file has fewer bytes than the image's record",
        action "reported";
    /// A file or folder of ours that no record knows.
    FileWithoutRecord = "file_without_record",
        evidence "a disk, image or VM folder with a name of ours and no record",
        action "put away into the trash folder when it is older than the grace time; kept there for the retention";
    /// Something in our folders that is not named as ours are.
    FileForeign = "file_foreign",
        evidence "a name, or a kind of file, that VMAN does not make",
        action "reported";
    /// A VM's sockets are there although nothing of it runs.
    RuntimeFolderStale = "runtime_folder_stale",
        evidence "a folder of sockets of a VM without a record and without a QEMU",
        action "removed when it is older than the grace time (there is no data in it)";
    /// An operation has not come to an end.
    OperationOverdue = "operation_overdue",
        evidence "it is still running long after any of its deadlines",
        action "reported";
    /// A record could not be read and was set aside.
    RecordQuarantined = "record_quarantined",
        evidence "its row is in the quarantine table",
        action "reported; while there is one nothing is put away";
    /// A console or log could not be kept within its bound.
    LogNotBounded = "log_not_bounded",
        evidence "it could not be cut",
        action "reported; tried again at each look";
    /// A part of the look came to nothing.
    CheckFailed = "check_failed",
        evidence "processes or folders could not be read",
        action "reported; what was not seen is not judged";
}

/// A folder of ours that is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Room {
    /// Disk files.
    Disks,
    /// Image files.
    Images,
    /// A folder a VM: console and logs.
    VmFolders,
    /// A folder a VM: sockets.
    Runtime,
}

impl Room {
    /// The word of the trash folder and of findings.
    pub fn as_str(self) -> &'static str {
        match self {
            Room::Disks => "disks",
            Room::Images => "images",
            Room::VmFolders => "vms",
            Room::Runtime => "run",
        }
    }
}

/// What a name in a folder stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A link, pipe, socket or device.
    Other,
}

/// A name in one of our folders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenFile {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: FileKind,
    /// Its length.
    pub bytes: u64,
    /// Since it was last written to, in milliseconds.
    pub age_ms: u64,
}

/// What lies in our folders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenFiles {
    /// Disk files.
    pub disks: Vec<SeenFile>,
    /// Image files.
    pub images: Vec<SeenFile>,
    /// The VMs' own folders.
    pub vm_folders: Vec<SeenFile>,
    /// The VMs' folders of sockets.
    pub runtime: Vec<SeenFile>,
}

/// A QEMU with our marks, that has files of ours open or whose UUID is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenProcess {
    /// The UUID on its command line.
    pub uuid: VmUuid,
    /// The incarnation on its command line.
    pub incarnation: Incarnation,
    /// Who it is.
    pub identity: ProcessIdentity,
}

/// The links of the bridges that VMs are connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenNetwork {
    /// Every bridge there shall be, and whether it is ours, and up; none if it is
    /// not there.
    pub bridges: Vec<(String, Option<(bool, bool)>)>,
    /// TAPs with names of ours, and whether each is up and on a bridge.
    pub taps: Vec<(String, bool)>,
    /// Other links, each with the bridge it is on.
    pub foreign: Vec<(String, String)>,
}

/// What one look at the host has seen. What could not be seen is none, and is
/// not judged.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The QEMUs.
    pub processes: Option<Vec<SeenProcess>>,
    /// The files.
    pub files: Option<SeenFiles>,
    /// The links, where VMs are connected to a bridge.
    pub network: Option<SeenNetwork>,
}

/// The records a look is held against.
#[derive(Clone, Debug, Default)]
pub struct Recorded<'a> {
    /// VMs.
    pub vms: Vec<(Revision, &'a VmRecord)>,
    /// Disks.
    pub disks: Vec<&'a DiskRecord>,
    /// Images.
    pub images: Vec<&'a ImageRecord>,
    /// Leases.
    pub leases: Vec<&'a LeaseRecord>,
    /// Operations that are still running.
    pub operations: Vec<&'a OperationRecord>,
    /// Rows set aside, each with why.
    pub quarantined: Vec<(&'a str, &'a str)>,
}

/// What is allowed to take how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Now, for ages of records.
    pub now: UnixMs,
    /// A file without a record is left alone for so long, in milliseconds.
    pub grace_ms: u64,
    /// An operation may be open for so long, in milliseconds.
    pub operation_ms: u64,
}

/// What is to be done about a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// It is only told.
    Report,
    /// It is young: told, and judged again later.
    Wait,
    /// The VM, still at this revision, is to look for its QEMU again.
    LookAgain(VmId, Revision),
    /// This QEMU is to be ended: a stop or delete of its VM is desired.
    End(VmId, SeenProcess),
    /// Put away: into the trash, or for sockets, removed.
    PutAway(Room, String),
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// Its class.
    pub class: DriftClass,
    /// What it is about, in the API.
    pub resource: String,
    /// What it is about, in the event log.
    pub subject: Subject,
    /// What was seen, in a sentence.
    pub details: String,
    /// What is to be done.
    pub repair: Repair,
}

impl Drift {
    /// A finding that is only told.
    pub fn reported(class: DriftClass, resource: &str, subject: Subject, details: String) -> Self {
        Self {
            class,
            resource: resource.to_owned(),
            subject,
            details,
            repair: Repair::Report,
        }
    }

    /// By what it is recognised at the next look.
    pub fn key(&self) -> (DriftClass, &str) {
        (self.class, &self.resource)
    }
}
