//! A VM's serial console: its end, or as it is written.

use super::{not_found, stream};
use crate::http::{
    dto::host::ConsoleBody,
    error::{ApiError, ProblemBody},
    extract::{Id, Query},
    paging::json,
    state::HttpState,
};
use axum::{
    extract::State,
    http::{StatusCode, Uri},
    response::Response,
};
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
    let bytes = state.handles().vms.follow_console(id, TAIL);
    stream::of_vm(state, id, "text/plain; charset=utf-8", bytes)
}
