//! The routes, one file a resource. A handler reads its request, asks one
//! handle or the inventory, and says the answer; it decides nothing.

pub(crate) mod actions;
pub(crate) mod console;
mod device_work;
pub(crate) mod disk_work;
pub(crate) mod disks;
pub(crate) mod events;
pub(crate) mod health;
pub(crate) mod images;
pub(crate) mod network;
pub(crate) mod nics;
pub(crate) mod observer;
pub(crate) mod operations;
pub(crate) mod templates;
pub(crate) mod tokens;
pub(crate) mod vms;

use super::{
    dto::operation::OperationBody,
    error::{ApiError, Code},
    idempotency::result_gone,
    paging::{json, with_header},
    state::HttpState,
    waiting::operation_end,
};
use axum::{
    http::{StatusCode, header},
    response::Response,
};
use std::time::Duration;
use vman_model::{OperationId, OperationRecord};

/// There is no `what` of this id.
pub(crate) fn not_found(what: &str, id: impl std::fmt::Display) -> ApiError {
    ApiError::new(Code::NotFound, format!("there is no {what} named {id}"))
}

/// The answer of a call that began an operation: 202 with the operation, or 200
/// if it has ended within the time the client wants to wait.
pub(crate) async fn accepted(
    state: &HttpState,
    record: &OperationRecord,
    wait_ms: u64,
) -> Response {
    let seen = operation_end(state, &record.id, Duration::from_millis(wait_ms)).await;
    let record = seen.as_ref().map_or(record, |seen| &seen.value);
    let ended = wait_ms > 0 && record.status.is_end();
    let status = if ended {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    let response = json(status, &OperationBody::of_record(record));
    with_header(
        response,
        header::LOCATION,
        &format!("/operations/{}", record.id),
    )
}

/// The same for a request that was answered before under its key.
pub(crate) async fn accepted_before(
    state: &HttpState,
    id: &OperationId,
    wait_ms: u64,
) -> Result<Response, ApiError> {
    let row = state.inventory().operations.get(id).cloned();
    let row = row.ok_or_else(|| result_gone("operation"))?;
    Ok(replayed(accepted(state, &row.value, wait_ms).await))
}

/// Marks an answer as given before.
pub(crate) fn replayed(response: Response) -> Response {
    let name = axum::http::HeaderName::from_static("idempotency-replayed");
    with_header(response, name, "true")
}
