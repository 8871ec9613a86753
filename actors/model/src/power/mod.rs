//! The host's boot and its drain: which VMs are started with the host, which are
//! stopped before it goes down, and in which order.
//!
//! Owns: what a VM says about that ([`StartSpec`]), what is durable about the
//! host ([`HostRecord`]), and the plans ([`plan`]). Must not: start or stop
//! anything; a VM's own `step` decides what a start or stop does.
//! Look next: `plan.rs`; docs/power.md.

pub mod plan;

#[cfg(test)]
mod tests;

use crate::{
    event::Origin,
    ids::{BootId, OperationId, VmId},
    time::UnixMs,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The highest priority; 0 is the lowest, and the default.
pub const MAX_PRIORITY: u32 = 1_000;
/// The most VMs that one VM may wait for.
pub const MAX_DEPENDENCIES: usize = 16;

/// What is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Condition {
    /// The other VM runs.
    #[default]
    Running,
    /// The other VM's guest answers at its address.
    Address,
}

impl Condition {
    /// All of them, for tables.
    pub const ALL: [Condition; 2] = [Condition::Running, Condition::Address];

    /// The word the API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Condition::Running => "running",
            Condition::Address => "address",
        }
    }
}

/// A VM that has to be up before another is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// The other VM.
    pub vm: VmId,
    /// What of it is waited for.
    pub condition: Condition,
}

/// How a VM comes up and goes down with the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartSpec {
    /// Whether it is started when the host was booted.
    pub autostart: bool,
    /// VMs of a higher priority are started first and stopped last.
    pub priority: u32,
    /// The VMs it waits for.
    pub depends_on: Vec<Dependency>,
}

/// A VM that is still to be started since the host was booted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Starting {
    /// The VM.
    pub vm: VmId,
    /// Whether it is on its way already and only held (its start goes on by
    /// itself), or has to be asked to start.
    pub held: bool,
}

/// The VMs are stopped, or were, because the host is to go down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Since when.
    pub since: UnixMs,
    /// How long guests have until force is used, in milliseconds.
    pub timeout_ms: u64,
    /// The operation that tells of it.
    pub operation: OperationId,
    /// Who asked.
    pub origin: Origin,
    /// The VMs that ran or were to run: they are started again with the host.
    pub vms: Vec<VmId>,
    /// Whether it has come to its end.
    pub done: bool,
}

/// What is durable about the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// The boot this is about.
    pub boot_id: BootId,
    /// What is still to be started in it.
    pub starting: Vec<Starting>,
    /// The drain, until the host was booted or is resumed.
    pub drain: Option<Drain>,
}

impl HostRecord {
    /// Whether VMs are not to be started because the host is to go down.
    pub fn drains(&self, boot_id: &BootId) -> bool {
        self.drain.is_some() && self.boot_id == *boot_id
    }

    /// Whether anything is still to be done.
    pub fn is_busy(&self) -> bool {
        !self.starting.is_empty() || self.drain.as_ref().is_some_and(|drain| !drain.done)
    }
}

/// The circle that `vm` would close if it waited for `depends_on`: the VMs on it,
/// beginning with `vm`. `others` says whom another VM waits for; only those on the way are asked.
pub fn circle<'a>(
    vm: &VmId,
    depends_on: &'a [Dependency],
    others: impl Fn(&VmId) -> Option<&'a StartSpec>,
) -> Option<Vec<VmId>> {
    let mut seen = BTreeSet::new();
    let mut way: Vec<(&VmId, &[Dependency])> = vec![(vm, depends_on)];
    // Depth first: `way` is the path, each with whom it still has to ask.
    while let Some((_, left)) = way.last_mut() {
        let Some((next, rest)) = left.split_first() else {
            way.pop();
            continue;
        };
        *left = rest;
        if next.vm == *vm {
            return Some(way.iter().map(|(id, _)| (*id).clone()).collect());
        }
        if seen.insert(&next.vm)
            && let Some(spec) = others(&next.vm)
        {
            way.push((&next.vm, &spec.depends_on));
        }
    }
    None
}
