//! Operations: pieces of long work, durable from the answer that named them
//! until they reach an end.

use crate::{
    ids::{DiskId, OperationId, RequestId, VmId},
    time::UnixMs,
};
use serde::{Deserialize, Serialize};

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OperationKind {
    /// Start a VM.
    VmStart,
    /// Stop a VM.
    VmStop,
    /// Stop a VM and start it again.
    VmRestart,
    /// Pause a VM's CPUs.
    VmPause,
    /// Let a paused VM run.
    VmResume,
    /// Reset a VM's machine.
    VmReset,
    /// Stop a VM by force and erase it with its disks and files.
    VmDelete,
    /// Attach a disk to a VM.
    DiskAttach,
    /// Detach a disk from its VM.
    DiskDetach,
    /// Grow a disk.
    DiskResize,
    /// Change what is wanted of a VM without touching its present life.
    VmConfigure,
    /// Stop all VMs because the host is to go down.
    HostDrain,
    /// Give a VM another network card.
    NicAttach,
    /// Take a network card from a VM.
    NicDetach,
    /// Plug a network card's cable in, or pull it.
    NicLink,
}

impl OperationKind {
    /// The word the API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            OperationKind::VmStart => "vm.start",
            OperationKind::VmStop => "vm.stop",
            OperationKind::VmRestart => "vm.restart",
            OperationKind::VmPause => "vm.pause",
            OperationKind::VmResume => "vm.resume",
            OperationKind::VmReset => "vm.reset",
            OperationKind::VmDelete => "vm.delete",
            OperationKind::DiskAttach => "disk.attach",
            OperationKind::DiskDetach => "disk.detach",
            OperationKind::DiskResize => "disk.resize",
            OperationKind::VmConfigure => "vm.configure",
            OperationKind::HostDrain => "host.drain",
            OperationKind::NicAttach => "nic.attach",
            OperationKind::NicDetach => "nic.detach",
            OperationKind::NicLink => "nic.link",
        }
    }
}

/// Where an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperationStatus {
    /// Under way.
    Running,
    /// Done as asked.
    Succeeded,
    /// Ended without doing what was asked; `error` says why.
    Failed,
    /// Given up because a later request asked for something else.
    Cancelled,
}

impl OperationStatus {
    /// The word the API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            OperationStatus::Running => "running",
            OperationStatus::Succeeded => "succeeded",
            OperationStatus::Failed => "failed",
            OperationStatus::Cancelled => "cancelled",
        }
    }

    /// Whether the operation has reached its end.
    pub fn is_end(self) -> bool {
        self != OperationStatus::Running
    }
}

/// Why an operation failed, in the API's stable words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Stable code (`start_failed`).
    pub code: String,
    /// What happened and what to do.
    pub detail: String,
}

impl Problem {
    /// A problem with its stable code and its sentence.
    pub fn new(code: &str, detail: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            detail: detail.into(),
        }
    }
}

/// A piece of long work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// Its id.
    pub id: OperationId,
    /// What it does.
    pub kind: OperationKind,
    /// The VM it is about.
    pub vm_id: Option<VmId>,
    /// The disk it is about.
    pub disk_id: Option<DiskId>,
    /// The VM's network card it is about.
    pub nic: Option<u8>,
    /// Where it is.
    pub status: OperationStatus,
    /// The step it is at, for people (`launching`).
    pub step: String,
    /// How far it is, 0 to 100.
    pub progress: u8,
    /// When it was accepted.
    pub created_at: UnixMs,
    /// When it ended.
    pub finished_at: Option<UnixMs>,
    /// Why it failed or was cancelled.
    pub error: Option<Problem>,
    /// The request that asked for it; none if the daemon itself did.
    pub request_id: Option<RequestId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients and people's alarms know these words.
    #[test]
    fn the_words_of_operations_never_change() {
        for (kind, word) in [
            (OperationKind::VmStart, "vm.start"),
            (OperationKind::VmDelete, "vm.delete"),
            (OperationKind::DiskAttach, "disk.attach"),
        ] {
            assert_eq!(kind.as_str(), word);
        }
        for (status, word) in [
            (OperationStatus::Running, "running"),
            (OperationStatus::Succeeded, "succeeded"),
            (OperationStatus::Failed, "failed"),
            (OperationStatus::Cancelled, "cancelled"),
        ] {
            assert_eq!(status.as_str(), word);
        }
    }
}
