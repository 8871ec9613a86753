//! A VM's serial console: its end, or as it is written.

use super::not_found;
use crate::http::{
    dto::host::ConsoleBody,
    error::{ApiError, Code, ProblemBody},
    extract::{Id, Query},
    paging::json,
    state::HttpState,
};
use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use std::convert::Infallible;
use vman_model::VmId;

/// Bytes of the console that are told.
const TAIL: usize = 50_000;

/// The end of a VM's serial console
#[utoipa::path(
    get, path = "/vms/{id}/console", tag = "vms",
    params(
        ("id" = String, Path, description = "The VM"),
        ("follow" = Option<bool>, Query, description = "Stream it as text from there on"),
    ),
    responses(
        (status = 200, description = "The last 50 kB; with `follow=true` a stream of the bytes", content(
            (ConsoleBody<'static> = "application/json"), (String = "text/plain"),
        )),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_console(
    State(state): State<HttpState>,
    Id(id): Id<VmId>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let mut query = Query::of(&uri)?;
    let follow = query.flag("follow").unwrap_or(false);
    query.finish()?;
    if !state.inventory().vms.contains_key(&id) {
        return Err(not_found("VM", &id).vm(&id));
    }
    if follow {
        return follow_console(&state, &id);
    }
    let tail = state.handles().vms.console(&id, TAIL).await?;
    let body = ConsoleBody {
        vm_id: id.as_str(),
        console: &String::from_utf8_lossy(&tail.bytes),
        size: tail.bytes.len(),
        file_size: tail.file_size,
    };
    Ok(json(StatusCode::OK, &body))
}

fn follow_console(state: &HttpState, id: &VmId) -> Result<Response, ApiError> {
    let permit = state.waiting.clone().try_acquire_owned().map_err(|_| {
        ApiError::new(
            Code::Overloaded,
            "too many streams are open: close one, or try again later",
        )
    })?;
    let bytes = state.handles().vms.follow_console(id, TAIL);
    let until = ended(state.clone(), id.clone());
    let stream = bytes.take_until(until).map(move |bytes| {
        // Held as long as the stream is.
        let _held = &permit;
        Ok::<_, Infallible>(bytes)
    });
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        ),
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
