//! Waiting for the end of an operation: on the store's watch, never on an actor.

use super::state::HttpState;
use std::{sync::Arc, time::Duration};
use vman_actors::store::Versioned;
use vman_model::{OperationId, OperationRecord};

/// The longest a request may wait for an operation, in seconds.
pub(crate) const MAX_WAIT_S: f64 = 300.0;

/// The operation when it has ended, or as it is when `wait` is over, the daemon
/// stops, or too many wait already; none if it is not known (any more).
pub(crate) async fn operation_end(
    state: &HttpState,
    id: &OperationId,
    wait: Duration,
) -> Option<Arc<Versioned<OperationRecord>>> {
    let mut revision = state.handles().store.watch();
    let now = || state.inventory().operations.get(id).cloned();
    let seen = now()?;
    if seen.value.status.is_end() || wait.is_zero() {
        return Some(seen);
    }
    let Ok(_permit) = state.waiting.try_acquire() else {
        return Some(seen);
    };
    let ended = async {
        loop {
            let seen = now();
            let open = seen.as_ref().is_some_and(|op| !op.value.status.is_end());
            if !open || revision.changed().await.is_err() {
                return seen;
            }
        }
    };
    tokio::select! {
        ended = ended => ended,
        () = tokio::time::sleep(wait) => now(),
        () = state.settings.shutdown.cancelled() => now(),
    }
}
