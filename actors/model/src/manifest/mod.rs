//! Manifests: what is kept beside the store of each record, so that a store that
//! was lost can be made again.
//!
//! Owns: what of a record lasts ([`Kept::of_vm`] and its siblings), and what
//! records are made of manifests and living QEMUs ([`rebuild`]). Operations,
//! events and idempotency keys have none: they tell what happened, not what is.
//! Must not: know how a manifest looks as a file (the actors' `manifests` does).
//! Look next: `rebuild.rs`.

mod rebuild;

#[cfg(test)]
mod tests;

pub use rebuild::{Rebuilt, rebuild};

use crate::{
    disk::DiskRecord,
    image::ImageRecord,
    network::{ForwardRecord, LeaseRecord, NicState},
    template::TemplateRecord,
    token::TokenRecord,
    vm::{AttachState, Phase, Reason, VmRecord},
};
use serde::{Deserialize, Serialize};

/// What a manifest is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeptKind {
    /// A template.
    Template,
    /// A VM.
    Vm,
    /// A disk.
    Disk,
    /// An image.
    Image,
    /// A lease.
    Lease,
    /// A forwarded port.
    Forward,
    /// A bearer token.
    Token,
}

impl KeptKind {
    /// All kinds.
    pub const ALL: [KeptKind; 7] = [
        KeptKind::Template,
        KeptKind::Vm,
        KeptKind::Disk,
        KeptKind::Image,
        KeptKind::Lease,
        KeptKind::Forward,
        KeptKind::Token,
    ];

    /// The name of its folder.
    pub fn as_str(self) -> &'static str {
        match self {
            KeptKind::Template => "templates",
            KeptKind::Vm => "vms",
            KeptKind::Disk => "disks",
            KeptKind::Image => "images",
            KeptKind::Lease => "leases",
            KeptKind::Forward => "forwards",
            KeptKind::Token => "tokens",
        }
    }
}

/// A record as its manifest keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// A template.
    Template(TemplateRecord),
    /// A VM, at rest or to be looked for.
    Vm(Box<VmRecord>),
    /// A disk.
    Disk(DiskRecord),
    /// An image.
    Image(ImageRecord),
    /// A lease.
    Lease(LeaseRecord),
    /// A forwarded port.
    Forward(ForwardRecord),
    /// A bearer token. Its secret is in no record.
    Token(TokenRecord),
}

impl Kept {
    /// What lasts of a VM: what it is, what is wanted of it, what it holds, and
    /// which life it is at. What may have a QEMU is to be looked for; what is
    /// under way with it is not kept, for whoever asked for it is told that by
    /// the store alone.
    pub fn of_vm(vm: &VmRecord) -> Kept {
        let rests = vm.phase.is_rest() || vm.phase == Phase::Backoff;
        let mut kept = VmRecord {
            phase_since: vm.created_at,
            process: None,
            ending: None,
            stop: None,
            restarting: false,
            unresponsive: false,
            operations: Vec::new(),
            last_event: None,
            failed_disk: None,
            failed_for_space: false,
            ..vm.clone()
        };
        if !rests {
            kept.phase = Phase::Unknown;
            kept.reason = Reason::User;
            kept.detail = String::new();
        }
        for held in &mut kept.disks {
            // Whether QEMU has it is asked of QEMU when it has been found.
            if held.state != AttachState::LetGo {
                held.state = AttachState::Attached;
            }
        }
        for nic in &mut kept.nics {
            // One that QEMU does not have it gets at the next start.
            nic.state = NicState::Attached;
        }
        Kept::Vm(Box::new(kept))
    }

    /// What lasts of a token: not when it was used last, which changes by the
    /// minute.
    pub fn of_token(token: &TokenRecord) -> Kept {
        Kept::Token(TokenRecord {
            last_used_at: None,
            ..token.clone()
        })
    }

    /// What it is of.
    pub fn kind(&self) -> KeptKind {
        match self {
            Kept::Template(_) => KeptKind::Template,
            Kept::Vm(_) => KeptKind::Vm,
            Kept::Disk(_) => KeptKind::Disk,
            Kept::Image(_) => KeptKind::Image,
            Kept::Lease(_) => KeptKind::Lease,
            Kept::Forward(_) => KeptKind::Forward,
            Kept::Token(_) => KeptKind::Token,
        }
    }

    /// The record's key in its table, by which its manifest is named.
    pub fn key(&self) -> &str {
        match self {
            Kept::Template(record) => record.name.as_str(),
            Kept::Vm(record) => record.id.as_str(),
            Kept::Disk(record) => record.id.as_str(),
            Kept::Image(record) => record.name.as_str(),
            Kept::Lease(record) => record.id.as_str(),
            Kept::Forward(record) => record.id.as_str(),
            Kept::Token(record) => record.id.as_str(),
        }
    }
}
