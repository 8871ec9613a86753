//! The store's own work while it is used: a backup of it, a check, and all of it as JSON.

use super::stream;
use crate::http::{
    dto::store::{BackupBody, CheckBody, ExportLine},
    error::{ApiError, Code, ProblemBody},
    extract::{Post, Query},
    paging::json,
    state::HttpState,
};
use axum::{
    extract::State,
    http::{StatusCode, Uri},
    response::Response,
};
use futures_util::stream::try_unfold;
use vman_actors::{
    ports::LoadError,
    store::{BackupError, StoreError},
};

/// Make a backup of the store now
///
/// A copy as of one moment in the folder `backups` of the storage path, durable when this is answered; changes go on
/// meanwhile. The newest ten are kept. A request that is repeated makes another one.
#[utoipa::path(
    post, path = "/store/backup", tag = "store",
    responses(
        (status = 201, description = "The backup", body = BackupBody<'static>),
        (status = "default", description = "Refused, and nothing is left of it; 507 where there is no room for it", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn backup_store(
    State(state): State<HttpState>,
    mut post: Post,
) -> Result<Response, ApiError> {
    Query::of(&post.uri)?.finish()?;
    post.fields().finish()?;
    let handles = state.handles();
    let made = handles.store.backup(handles.clock.now()).await;
    let backup = made.map_err(refused)?;
    Ok(json(StatusCode::CREATED, &BackupBody::of(&backup)))
}

/// Check the store now
///
/// Every row is read as of one moment, the records are held against each other and against their
/// manifests. Changes go on meanwhile, and work that is under way is no fault. Nothing is changed.
#[utoipa::path(
    post, path = "/store/check", tag = "store",
    responses(
        (status = 200, description = "What was found; `ok` if nothing is wrong", body = CheckBody<'static>),
        (status = "default", description = "Refused, or the store cannot be read", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn check_store(
    State(state): State<HttpState>,
    mut post: Post,
) -> Result<Response, ApiError> {
    Query::of(&post.uri)?.finish()?;
    post.fields().finish()?;
    let _place = stream::place(&state)?;
    let handles = state.handles();
    let (files, kept) = (handles.manifest_files.as_ref(), &handles.manifests);
    let checked = handles.store.check(files, kept).await?;
    Ok(json(StatusCode::OK, &CheckBody::of(&checked)))
}

/// All records as JSON, a line each
///
/// As of one moment, and the event log up to it; changes go on meanwhile. The last line says `end`:
/// without it the export is not whole. Hashes of tokens are left out. It takes the scope admin.
#[utoipa::path(
    get, path = "/store/export", tag = "store",
    responses(
        (status = 200, description = "A JSON object a line", content((ExportLine = "application/x-ndjson"))),
        (status = "default", description = "Refused, or the store cannot be read", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn export_store(
    State(state): State<HttpState>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    let place = stream::place(&state)?;
    let handles = state.handles();
    let export = handles.store.export(handles.clock.now()).await?;
    let lines = try_unfold(export, |export| async {
        let next = export.next().await?;
        Ok::<_, LoadError>(next.map(|(lines, export)| (lines.into(), export)))
    });
    Ok(stream::of_lines(place, lines))
}

fn refused(error: BackupError) -> ApiError {
    match error {
        BackupError::UnderWay => ApiError::new(
            Code::Overloaded,
            "a backup is being made already: try again in a moment",
        ),
        BackupError::Failed(StoreError::NoSpace) => ApiError::new(
            Code::StorageFull,
            "there is no room for a backup, nothing is left of it: free space under the storage path, or remove old backups there",
        ),
        BackupError::Failed(StoreError::Refused(why)) => ApiError::new(
            Code::HostFailed,
            format!("no backup was made, nothing is left of it: {why}"),
        ),
        BackupError::Failed(other) => other.into(),
    }
}
