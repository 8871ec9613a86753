//! The host, the network, the observer and health in the API.

use super::Time;
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;
use vman_actors::observer::{Finding, ObserverReport};
use vman_model::{Allowance, Promise};

/// One thing that is not as it should be.
#[derive(Serialize, ToSchema)]
#[schema(as = Issue)]
pub(crate) struct IssueBody<'a> {
    /// Its class (`record_quarantined`).
    issue_type: &'a str,
    /// What it is about.
    resource_id: &'a str,
    /// What was seen.
    details: &'a str,
    /// What was done about it.
    action: &'a str,
}

impl<'a> IssueBody<'a> {
    fn of(finding: &'a Finding) -> Self {
        Self {
            issue_type: &finding.issue_type,
            resource_id: &finding.resource_id,
            details: &finding.details,
            action: &finding.action,
        }
    }
}

/// The observer and its last check.
#[derive(Serialize, ToSchema)]
#[schema(as = ObserverStatus)]
pub(crate) struct ObserverBody<'a> {
    /// `running` or `restarting`.
    status: &'static str,
    /// Between two checks, in seconds.
    check_interval: f64,
    /// When the last check ended; none before the first.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_check_at: Option<Time>,
    /// How long it took, in milliseconds.
    last_duration_ms: u64,
    /// How many things it found.
    last_issues_count: usize,
    /// What it found.
    last_issues: Vec<IssueBody<'a>>,
    /// Checks since the daemon started.
    checks: u64,
}

impl<'a> ObserverBody<'a> {
    pub(crate) fn of(report: &'a ObserverReport, running: bool, interval_s: f64) -> Self {
        Self {
            status: if running { "running" } else { "restarting" },
            check_interval: interval_s,
            last_check_at: report.last_check_at.map(Time),
            last_duration_ms: report.last_duration_ms,
            last_issues_count: report.last_issues.len(),
            last_issues: report.last_issues.iter().map(IssueBody::of).collect(),
            checks: report.checks,
        }
    }
}

/// Whether everything VMAN needs is well.
#[derive(Serialize, ToSchema)]
#[schema(as = Health)]
pub(crate) struct HealthBody {
    /// `ok` or `degraded`.
    pub(crate) status: &'static str,
    /// `vman`.
    pub(crate) service: &'static str,
    /// The daemon's version.
    pub(crate) version: &'static str,
    /// Each check: `ok`, or the sentence what is wrong.
    pub(crate) checks: BTreeMap<&'static str, String>,
    /// What was found at start: QEMU's version, the accelerator and why.
    pub(crate) host: BTreeMap<&'static str, String>,
}

/// Whether the daemon lives, or is ready.
#[derive(Serialize, ToSchema)]
#[schema(as = Status)]
pub(crate) struct StatusBody {
    /// `ok`.
    pub(crate) status: &'static str,
}

/// The end of a VM's serial console.
#[derive(Serialize, ToSchema)]
#[schema(as = Console)]
pub(crate) struct ConsoleBody<'a> {
    /// The VM.
    pub(crate) vm_id: &'a str,
    /// The last 50 kB as text; what is no UTF-8 is shown as U+FFFD.
    pub(crate) console: &'a str,
    /// Bytes that are told here.
    pub(crate) size: usize,
    /// All bytes written since the VM was made, kept or not.
    pub(crate) file_size: u64,
}

/// A part of the host, as it is promised to VMs that run or are about to.
#[derive(Serialize, ToSchema)]
#[schema(as = Share)]
pub(crate) struct ShareBody {
    /// How much may be promised; none: without limit.
    allowed: Option<u64>,
    /// How much is promised.
    promised: u64,
    /// How much is left; none: without limit.
    available: Option<u64>,
}

impl ShareBody {
    fn of(allowed: Option<u64>, promised: u64) -> Self {
        Self {
            allowed,
            promised,
            available: allowed.map(|allowed| allowed.saturating_sub(promised)),
        }
    }
}

/// What the host has left for VMs.
#[derive(Serialize, ToSchema)]
#[schema(as = Capacity)]
pub(crate) struct CapacityBody {
    /// Memory in MiB; `VMAN_MEMORY_OVERCOMMIT` times the host's may be promised.
    memory_mib: ShareBody,
    /// Virtual CPUs; `VMAN_CPU_OVERCOMMIT` times the host's processors may be promised.
    cpus: ShareBody,
}

impl CapacityBody {
    pub(crate) fn of(allowance: Allowance, promised: Promise) -> Self {
        Self {
            memory_mib: ShareBody::of(allowance.memory_mib, promised.memory_mib),
            cpus: ShareBody::of(allowance.cpus, promised.cpus),
        }
    }
}
