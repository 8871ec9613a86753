//! Streams: those about a VM end when the VM is gone, when the daemon stops, or when the client goes.

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
use std::{convert::Infallible, error::Error};
use tokio::sync::OwnedSemaphorePermit;
use vman_model::VmId;

/// One JSON object a line (ndjson.org).
pub(super) const NDJSON: &str = "application/x-ndjson";

/// A place among the requests that wait or stream; it is free again when it is dropped.
pub(super) fn place(state: &HttpState) -> Result<OwnedSemaphorePermit, ApiError> {
    state.waiting.clone().try_acquire_owned().map_err(|_| {
        ApiError::new(
            Code::Overloaded,
            "too many streams are open: close one, or try again later",
        )
    })
}

/// The answer that streams `bytes` as `kind` while the VM is there.
pub(super) fn of_vm(
    state: &HttpState,
    id: &VmId,
    kind: &'static str,
    bytes: impl Stream<Item = Bytes> + Send + 'static,
) -> Result<Response, ApiError> {
    let place = place(state)?;
    let until = ended(state.clone(), id.clone());
    let bytes = bytes.take_until(until).map(Ok::<_, Infallible>);
    Ok(streamed(place, kind, bytes))
}

/// The answer that streams lines of JSON to their end; an error cuts the connection.
pub(super) fn of_lines<E: Error + Send + Sync + 'static>(
    place: OwnedSemaphorePermit,
    lines: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> Response {
    streamed(place, NDJSON, lines)
}

fn streamed<E: Error + Send + Sync + 'static>(
    place: OwnedSemaphorePermit,
    kind: &'static str,
    bytes: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> Response {
    let stream = bytes.map(move |bytes| {
        // Held as long as the stream is.
        let _held = &place;
        bytes
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
    ];
    (headers, Body::from_stream(stream)).into_response()
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
