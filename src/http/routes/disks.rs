//! Disks, as the inventory knows them.

use super::not_found;
use crate::http::{
    dto::image::DiskBody,
    error::{ApiError, ProblemBody},
    extract::{Id, Query},
    paging::{Page, json, tagged, unchanged},
    state::HttpState,
};
use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::Response,
};
use vman_model::DiskId;

/// List the disks
#[utoipa::path(
    get, path = "/disks", tag = "disks",
    params(
        ("limit" = Option<u64>, Query, description = "At most this many, 1 to 1000"),
        ("cursor" = Option<String>, Query, description = "From the Link header of the page before"),
    ),
    responses(
        (status = 200, description = "By id", body = Vec<DiskBody<'static>>),
        (status = 304, description = "Unchanged since the revision in If-None-Match"),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_disks(
    State(state): State<HttpState>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let mut query = Query::of(&uri)?;
    let page = Page::<DiskId>::read(&mut query)?;
    query.finish()?;
    let inventory = state.inventory();
    if let Some(same) = unchanged(&headers, inventory.revision) {
        return Ok(same);
    }
    let rows = inventory.disks.range::<_, DiskId>(page.upwards());
    let response = page.answer(&uri, rows, |row| DiskBody::of(row));
    Ok(tagged(response, inventory.revision))
}

/// One disk
#[utoipa::path(
    get, path = "/disks/{id}", tag = "disks",
    params(("id" = String, Path, description = "The disk")),
    responses(
        (status = 200, description = "The disk", body = DiskBody<'static>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_disk(
    State(state): State<HttpState>,
    Id(id): Id<DiskId>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    let inventory = state.inventory();
    let row = inventory
        .disks
        .get(&id)
        .ok_or_else(|| not_found("disk", &id).disk(&id))?;
    Ok(tagged(
        json(StatusCode::OK, &DiskBody::of(row)),
        row.revision,
    ))
}
