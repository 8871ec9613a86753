//! The store's own work: a backup of it while it is used.

use crate::http::{
    dto::store::BackupBody,
    error::{ApiError, Code, ProblemBody},
    extract::{Post, Query},
    paging::json,
    state::HttpState,
};
use axum::{extract::State, http::StatusCode, response::Response};
use vman_actors::store::{BackupError, StoreError};

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
