//! Streams about a VM: they end when the VM is gone, when the daemon stops, or when the client goes.

use crate::http::{
    error::{ApiError, Code},
    state::HttpState,
};
use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::{Stream, StreamExt};
use std::convert::Infallible;
use vman_model::VmId;

/// The answer that streams `bytes` as `kind` while the VM is there.
pub(super) fn of_vm(
    state: &HttpState,
    id: &VmId,
    kind: &'static str,
    bytes: impl Stream<Item = Bytes> + Send + 'static,
) -> Result<Response, ApiError> {
    let permit = state.waiting.clone().try_acquire_owned().map_err(|_| {
        ApiError::new(
            Code::Overloaded,
            "too many streams are open: close one, or try again later",
        )
    })?;
    let until = ended(state.clone(), id.clone());
    let stream = bytes.take_until(until).map(move |bytes| {
        // Held as long as the stream is.
        let _held = &permit;
        Ok::<_, Infallible>(bytes)
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
    ];
    Ok((headers, Body::from_stream(stream)).into_response())
}

/// Until the VM is gone or the daemon stops.
async fn ended(state: HttpState, id: VmId) {
    let mut revision = state.handles().store.watch();
    let gone = async {
        while state.inventory().vms.contains_key(&id) {
            if revision.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = gone => {}
        () = state.settings.shutdown.cancelled() => {}
    }
}
