//! Operations: pieces of long work.

use super::not_found;
use crate::http::{
    dto::operation::OperationBody,
    error::{ApiError, Code, ProblemBody},
    extract::{Id, Query},
    paging::{List, json},
    state::HttpState,
    waiting::{MAX_WAIT_S, operation_end},
};
use axum::{
    extract::State,
    http::{StatusCode, Uri},
    response::Response,
};
use std::time::Duration;
use vman_model::{OperationId, OperationStatus, VmId};

/// How long `wait` waits if nothing is said, in milliseconds.
const WAIT_MS: u64 = 30_000;

/// List the operations, newest first
#[utoipa::path(
    get, path = "/operations", tag = "operations",
    params(
        ("vm_id" = Option<String>, Query, description = "Only those about this VM"),
        ("status" = Option<String>, Query, description = "Only those in this status"),
        ("limit" = Option<u64>, Query, description = "At most this many, 1 to 1000"),
        ("cursor" = Option<String>, Query, description = "From the Link header of the page before"),
    ),
    responses(
        (status = 200, description = "Newest first", body = Vec<OperationBody<'static>>),
        (status = 304, description = "Unchanged since the revision in If-None-Match"),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_operations(
    State(state): State<HttpState>,
    mut list: List<OperationId>,
) -> Result<Response, ApiError> {
    let query = &mut list.query;
    let vm = query.parsed("vm_id", |text| VmId::parse(text).ok(), "the id of a VM");
    let statuses = [
        OperationStatus::Running,
        OperationStatus::Succeeded,
        OperationStatus::Failed,
        OperationStatus::Cancelled,
    ];
    let status = query.word("status", &statuses.map(|status| (status.as_str(), status)));
    let page = list.finish()?;
    let inventory = state.inventory();
    let rows = inventory
        .operations
        .range::<_, OperationId>(page.downwards())
        .rev()
        .filter(|(_, row)| {
            let of_vm = vm
                .as_ref()
                .is_none_or(|vm| row.value.vm_id.as_ref() == Some(vm));
            of_vm && status.is_none_or(|status| row.value.status == status)
        });
    Ok(page.answer(&inventory, rows, |row| OperationBody::of(row)))
}

/// One operation
#[utoipa::path(
    get, path = "/operations/{id}", tag = "operations",
    params(("id" = String, Path, description = "The operation")),
    responses(
        (status = 200, description = "The operation", body = OperationBody<'static>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_operation(
    State(state): State<HttpState>,
    Id(id): Id<OperationId>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    let row = state.inventory().operations.get(&id).cloned();
    let row = row.ok_or_else(|| not_found("operation", &id).operation(&id))?;
    Ok(json(StatusCode::OK, &OperationBody::of(&row)))
}

/// Wait for the end of an operation
#[utoipa::path(
    get, path = "/operations/{id}/wait", tag = "operations",
    params(
        ("id" = String, Path, description = "The operation"),
        ("timeout_s" = Option<f64>, Query, description = "Wait this long, 0 to 300; 30 by default"),
    ),
    responses(
        (status = 200, description = "It has ended", body = OperationBody<'static>),
        (status = 202, description = "It is still going", body = OperationBody<'static>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn wait_operation(
    State(state): State<HttpState>,
    Id(id): Id<OperationId>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let mut query = Query::of(&uri)?;
    let wait_ms = query.seconds("timeout_s", MAX_WAIT_S).unwrap_or(WAIT_MS);
    query.finish()?;
    let row = operation_end(&state, &id, Duration::from_millis(wait_ms)).await;
    let row = row.ok_or_else(|| not_found("operation", &id).operation(&id))?;
    let status = if row.value.status.is_end() {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    Ok(json(status, &OperationBody::of(&row)))
}

/// Cancel an operation, where that can be done
#[utoipa::path(
    delete, path = "/operations/{id}", tag = "operations",
    params(("id" = String, Path, description = "The operation")),
    responses(
        (status = "default", description = "Refused; 409 where it cannot be cancelled", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn cancel_operation(
    State(state): State<HttpState>,
    Id(id): Id<OperationId>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    let row = state.inventory().operations.get(&id).cloned();
    let row = row.ok_or_else(|| not_found("operation", &id).operation(&id))?;
    let (code, detail) = if row.value.status.is_end() {
        (Code::OperationFinished, "the operation has ended already")
    } else {
        (
            Code::OperationNotCancellable,
            "this operation cannot be cancelled: ask the VM for something else instead (a stop gives up a start)",
        )
    };
    let error = ApiError::new(code, detail).operation(&id);
    Err(match &row.value.vm_id {
        Some(vm) => error.vm(vm),
        None => error,
    })
}
