//! The routes, one file a resource. A handler reads its request, asks one
//! handle or the inventory, and says the answer; it decides nothing.

pub(crate) mod actions;
pub(crate) mod console;
mod device_work;
pub(crate) mod disk_work;
pub(crate) mod disks;
pub(crate) mod events;
pub(crate) mod health;
pub(crate) mod host;
pub(crate) mod images;
pub(crate) mod logs;
mod made;
pub(crate) mod network;
pub(crate) mod nics;
pub(crate) mod observer;
pub(crate) mod operations;
pub(crate) mod power;
pub(crate) mod store;
mod stream;
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
use vman_model::{OperationId, OperationRecord, change::IdempotentAnswer};

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

/// The operation that a request began which was answered before under its key.
pub(crate) fn begun_before(answer: IdempotentAnswer) -> Result<OperationId, ApiError> {
    match answer {
        IdempotentAnswer::Operation(id) => Ok(id),
        _ => Err(result_gone("operation")),
    }
}
