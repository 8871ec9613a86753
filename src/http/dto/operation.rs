//! Operations in the API.

use super::Time;
use serde::Serialize;
use utoipa::ToSchema;
use vman_actors::store::Versioned;
use vman_model::{DiskId, OperationRecord, RequestId, VmId, network::nic::nic_id};

/// Why an operation failed or was given up.
#[derive(Serialize, ToSchema)]
#[schema(as = OperationError)]
pub(crate) struct OperationErrorBody<'a> {
    /// Stable code (`start_failed`).
    code: &'a str,
    /// What happened and what to do.
    detail: &'a str,
}

/// A piece of long work.
#[derive(Serialize, ToSchema)]
#[schema(as = Operation)]
pub(crate) struct OperationBody<'a> {
    /// Its id; ids sort by the time they were made.
    id: &'a str,
    /// What it does (`vm.start`).
    kind: &'static str,
    /// The VM it is about.
    vm_id: Option<&'a str>,
    /// The disk it is about.
    disk_id: Option<&'a str>,
    /// The VM's network card it is about (`nic1`).
    nic: Option<String>,
    /// `pending`, `running`, `succeeded`, `failed` or `cancelled`.
    status: &'static str,
    /// How far it is, 0 to 100.
    progress: u8,
    /// The step it is at, for people.
    step: &'a str,
    /// When it was accepted.
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    finished_at: Option<Time>,
    /// Why it failed or was given up.
    error: Option<OperationErrorBody<'a>>,
    /// The request that asked for it; none if the daemon itself did.
    request_id: Option<&'a str>,
}

impl<'a> OperationBody<'a> {
    pub(crate) fn of(row: &'a Versioned<OperationRecord>) -> Self {
        Self::of_record(&row.value)
    }

    pub(crate) fn of_record(record: &'a OperationRecord) -> Self {
        Self {
            id: record.id.as_str(),
            kind: record.kind.as_str(),
            vm_id: record.vm_id.as_ref().map(VmId::as_str),
            disk_id: record.disk_id.as_ref().map(DiskId::as_str),
            nic: record.nic.map(nic_id),
            status: record.status.as_str(),
            progress: record.progress,
            step: &record.step,
            created_at: Time(record.created_at),
            finished_at: record.finished_at.map(Time),
            error: record.error.as_ref().map(|error| OperationErrorBody {
                code: &error.code,
                detail: &error.detail,
            }),
            request_id: record.request_id.as_ref().map(RequestId::as_str),
        }
    }
}
