//! Disks: made, listed, read, changed, deleted. What involves a VM is in
//! `disk_work.rs`.

use super::{
    made::{Made, make},
    not_found,
};
use crate::http::{
    dto::disk::{DiskBody, DiskChangeBody, NewDiskBody, OptionFields, check_limits, read_disk},
    error::{ApiError, ProblemBody},
    extract::{Caller, Id, Post, Query},
    paging::{List, if_match, json, tagged, with_header},
    state::HttpState,
};
use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use vman_actors::store::{Inventory, Versioned};
use vman_model::{DiskFile, DiskId, DiskRecord, change::IdempotentAnswer};

/// A disk that is being made is not there yet; one that is being deleted is there no more.
pub(super) fn shown(row: &Versioned<DiskRecord>) -> bool {
    matches!(row.value.file, DiskFile::OnDemand | DiskFile::Made)
}

pub(super) fn body<'a>(
    state: &HttpState,
    inventory: &'a Inventory,
    row: &'a Versioned<DiskRecord>,
) -> DiskBody<'a> {
    DiskBody::of(row, inventory, state.handles().disks.seen(&row.value.id))
}

/// Make a disk
#[utoipa::path(
    post, path = "/disks", tag = "disks",
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key and body gives the same answer again")),
    request_body(content = NewDiskBody, example = json!({"name": "data-1", "size": 1})),
    responses(
        (status = 201, description = "Made; its file is there", body = DiskBody<'static>),
        (status = "default", description = "Refused; 507 without space, and nothing is left", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn create_disk(
    State(state): State<HttpState>,
    post: Post,
) -> Result<Response, ApiError> {
    let state = &state;
    make(state, post, |mut post, key| async move {
        let mut new = read_disk(&mut post)?;
        new.idempotency = key;
        let handles = state.handles();
        Ok(handles
            .disks
            .create_disk(new, handles.clock.clone())
            .await?)
    })
    .await
}

impl Made for DiskId {
    const WHAT: &'static str = "disk";

    fn of(answer: IdempotentAnswer) -> Option<Self> {
        match answer {
            IdempotentAnswer::Disk(id) => Some(id),
            _ => None,
        }
    }

    fn created(&self, state: &HttpState) -> Option<Response> {
        let inventory = state.inventory();
        let row = inventory.disks.get(self)?;
        let response = json(StatusCode::CREATED, &body(state, &inventory, row));
        let response = with_header(response, header::LOCATION, &format!("/disks/{self}"));
        Some(tagged(response, row.revision))
    }
}

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
    list: List<DiskId>,
) -> Result<Response, ApiError> {
    let page = list.finish()?;
    let inventory = state.inventory();
    let rows = inventory
        .disks
        .range::<_, DiskId>(page.upwards())
        .filter(|(_, row)| shown(row));
    Ok(page.answer(&inventory, rows, |row| body(&state, &inventory, row)))
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
    let row = inventory.disks.get(&id).filter(|row| shown(row));
    let row = row.ok_or_else(|| not_found("disk", &id).disk(&id))?;
    // Of one disk the file is looked at now.
    state.handles().disks.look_now(&row.value).await;
    Ok(tagged(
        json(StatusCode::OK, &body(&state, &inventory, row)),
        row.revision,
    ))
}

/// Change a disk's options
///
/// The limits take effect at once, the rest when it is attached next.
#[utoipa::path(
    patch, path = "/disks/{id}", tag = "disks",
    params(
        ("id" = String, Path, description = "The disk"),
        ("If-Match" = Option<String>, Header, description = "Only if it still has this revision"),
    ),
    request_body(content = DiskChangeBody, example = json!({"iops": 500})),
    responses(
        (status = 200, description = "Changed", body = DiskBody<'static>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn change_disk(
    State(state): State<HttpState>,
    Id(id): Id<DiskId>,
    mut post: Post,
) -> Result<Response, ApiError> {
    Query::of(&post.uri)?.finish()?;
    let row = state.inventory().disks.get(&id).cloned();
    let row = row.filter(|row| shown(row));
    let row = row.ok_or_else(|| not_found("disk", &id).disk(&id))?;
    let mut fields = post.fields();
    let said = OptionFields::read(&mut fields);
    let mut after = row.value.options.clone();
    said.over(&mut after);
    check_limits(&after.limits, &mut fields);
    fields.finish()?;
    if_match(&post.headers, row.revision, "disk").map_err(|error| error.disk(&id))?;
    let handles = state.handles();
    let change = |options: &mut _| said.over(options);
    let (origin, now) = (post.caller.origin(), handles.clock.now());
    handles.disks.change_disk(&id, change, origin, now).await?;
    if let Some(vm) = &row.value.vm_id {
        handles.vms.limit_disk(vm, id.clone());
    }
    let inventory = state.inventory();
    let row = inventory
        .disks
        .get(&id)
        .ok_or_else(|| not_found("disk", &id))?;
    Ok(tagged(
        json(StatusCode::OK, &body(&state, &inventory, row)),
        row.revision,
    ))
}

/// Delete a disk that no VM has, and its file
#[utoipa::path(
    delete, path = "/disks/{id}", tag = "disks",
    params(
        ("id" = String, Path, description = "The disk"),
        ("If-Match" = Option<String>, Header, description = "Only if it still has this revision"),
    ),
    responses(
        (status = 204, description = "Deleted"),
        (status = "default", description = "Refused; 409 while it is attached", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn delete_disk(
    State(state): State<HttpState>,
    caller: Caller,
    Id(id): Id<DiskId>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    if let Some(row) = state.inventory().disks.get(&id) {
        if_match(&headers, row.revision, "disk").map_err(|error| error.disk(&id))?;
    }
    let handles = state.handles();
    let now = handles.clock.now();
    handles.disks.delete_disk(id, caller.origin(), now).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
