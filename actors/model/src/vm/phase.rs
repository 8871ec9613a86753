//! Where a VM is ([`Phase`]), what its user wants ([`Desired`]), and the six
//! words of the API for both ([`ApiState`]).

use serde::{Deserialize, Serialize};

/// Where a VM is. `step.rs` has the table of what leads where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// No QEMU, no claim.
    Stopped,
    /// Taking hold of disks and an address.
    Claiming,
    /// QEMU is being started and has not answered yet.
    Launching,
    /// The guest's CPUs run.
    Running,
    /// QEMU lives, the guest's CPUs stand still.
    Paused,
    /// The guest was asked to power off.
    Stopping,
    /// QEMU is being ended.
    Killing,
    /// No QEMU any more; the claim is being given back. Every exit passes here.
    Releasing,
    /// Waiting to be started again by the restart policy.
    Backoff,
    /// Given up; `reason` says why. No claim.
    Failed,
    /// The daemon (or the VM's actor) started again and does not know yet
    /// whether the QEMU of the last incarnation lives.
    Unknown,
}

impl Phase {
    /// All phases, for tests and tables.
    pub const ALL: [Phase; 11] = [
        Phase::Stopped,
        Phase::Claiming,
        Phase::Launching,
        Phase::Running,
        Phase::Paused,
        Phase::Stopping,
        Phase::Killing,
        Phase::Releasing,
        Phase::Backoff,
        Phase::Failed,
        Phase::Unknown,
    ];

    /// The word used in logs, events and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Stopped => "stopped",
            Phase::Claiming => "claiming",
            Phase::Launching => "launching",
            Phase::Running => "running",
            Phase::Paused => "paused",
            Phase::Stopping => "stopping",
            Phase::Killing => "killing",
            Phase::Releasing => "releasing",
            Phase::Backoff => "backoff",
            Phase::Failed => "failed",
            Phase::Unknown => "unknown",
        }
    }

    /// Whether nothing of the VM is held on the host in this phase and nothing
    /// is under way.
    pub fn is_rest(self) -> bool {
        matches!(self, Phase::Stopped | Phase::Failed)
    }

    /// Whether a QEMU of the VM may exist in this phase.
    pub fn may_have_process(self) -> bool {
        match self {
            Phase::Launching
            | Phase::Running
            | Phase::Paused
            | Phase::Stopping
            | Phase::Killing
            | Phase::Unknown => true,
            Phase::Stopped
            | Phase::Claiming
            | Phase::Releasing
            | Phase::Backoff
            | Phase::Failed => false,
        }
    }
}

/// What the user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Desired {
    /// It shall run.
    Running,
    /// It shall not run.
    Stopped,
    /// It shall be gone, with its files.
    Erased {
        /// Whether its root disk is kept as a disk of its own.
        keep_root_disk: bool,
    },
}

impl Desired {
    /// The word the API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Desired::Running => "running",
            Desired::Stopped => "stopped",
            Desired::Erased { .. } => "deleted",
        }
    }
}

/// A VM's `state` in the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApiState {
    /// Does not run and nothing is under way.
    Stopped,
    /// On its way to running.
    Starting,
    /// Runs.
    Running,
    /// Stands still and can go on.
    Paused,
    /// On its way to stopped.
    Stopping,
    /// Given up; `reason` says why.
    Error,
}

impl ApiState {
    /// The word the API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            ApiState::Stopped => "stopped",
            ApiState::Starting => "starting",
            ApiState::Running => "running",
            ApiState::Paused => "paused",
            ApiState::Stopping => "stopping",
            ApiState::Error => "error",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients know these words.
    #[test]
    fn the_words_of_states_never_change() {
        for (desired, word) in [
            (Desired::Running, "running"),
            (Desired::Stopped, "stopped"),
            (
                Desired::Erased {
                    keep_root_disk: true,
                },
                "deleted",
            ),
        ] {
            assert_eq!(desired.as_str(), word);
        }
        for (state, word) in [
            (ApiState::Stopped, "stopped"),
            (ApiState::Starting, "starting"),
            (ApiState::Running, "running"),
            (ApiState::Paused, "paused"),
            (ApiState::Stopping, "stopping"),
            (ApiState::Error, "error"),
        ] {
            assert_eq!(state.as_str(), word);
        }
    }
}
