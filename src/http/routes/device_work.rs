//! What disks and network cards of a VM have in common: their work is an operation, and the guest is
//! waited for at most [`GUEST_WAIT`].

use super::accepted;
use crate::http::{
    error::{ApiError, Code},
    idempotency::result_gone,
    state::HttpState,
    waiting::operation_end,
};
use axum::response::Response;
use std::{sync::Arc, time::Duration};
use vman_actors::store::Versioned;
use vman_model::{OperationId, OperationRecord, OperationStatus};

/// How long the guest is waited for.
const GUEST_WAIT: Duration = Duration::from_secs(10);

/// What became of work on a device.
pub(super) enum Outcome {
    /// It is done; the operation says what it was about.
    Done(Arc<Versioned<OperationRecord>>),
    /// Not yet, or the guest holds the device, and it may be asked for again: the answer tells the
    /// operation.
    Open(Response),
}

/// The end of an operation, or the operation itself where it has none yet. `held` is the code of one
/// that failed because the guest did not let go.
pub(super) async fn outcome(
    state: &HttpState,
    id: &OperationId,
    held: &str,
) -> Result<Outcome, ApiError> {
    let row = operation_end(state, id, GUEST_WAIT).await;
    let row = row.ok_or_else(|| result_gone("operation"))?;
    let operation = &row.value;
    let error = operation.error.as_ref();
    match operation.status {
        OperationStatus::Succeeded => Ok(Outcome::Done(row)),
        OperationStatus::Failed if error.is_some_and(|error| error.code == held) => {
            Ok(Outcome::Open(accepted(state, operation, 0).await))
        }
        OperationStatus::Failed | OperationStatus::Cancelled => {
            let why = error.map_or("it came to nothing", |error| error.detail.as_str());
            Err(ApiError::new(Code::OperationFailed, why).operation(id))
        }
        OperationStatus::Running => Ok(Outcome::Open(accepted(state, operation, 0).await)),
    }
}
