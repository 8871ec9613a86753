//! What the host has left for VMs.

use crate::http::{
    dto::host::CapacityBody,
    error::{ApiError, ProblemBody},
    extract::Query,
    paging::json,
    state::HttpState,
};
use axum::{
    extract::State,
    http::{StatusCode, Uri},
    response::Response,
};

/// How much of the host is promised to VMs
#[utoipa::path(
    get, path = "/host/capacity", tag = "health",
    responses(
        (status = 200, description = "Memory and processors: what may be promised, what is, and what is left", body = CapacityBody),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn capacity(
    State(state): State<HttpState>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    let promised = state.inventory().promised;
    let body = CapacityBody::of(state.handles().allowance, promised);
    Ok(json(StatusCode::OK, &body))
}
