//! The observer: its last check, and one now.

use crate::http::{
    dto::host::ObserverBody,
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
use std::time::Duration;
use vman_actors::observer::ObserverReport;

/// How long a check that is asked for may take.
const CHECK_DEADLINE: Duration = Duration::from_secs(30);

fn answer(state: &HttpState, report: &ObserverReport) -> Response {
    let observer = &state.handles().observer;
    let interval_s = observer.interval().as_secs_f64();
    let body = ObserverBody::of(report, observer.is_running(), interval_s);
    json(StatusCode::OK, &body)
}

/// The observer and its last check
#[utoipa::path(
    get, path = "/observer/status", tag = "observer",
    responses(
        (status = 200, description = "The last check", body = ObserverBody<'static>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_observer(
    State(state): State<HttpState>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    Ok(answer(&state, &state.handles().observer.report()))
}

/// Run a check now
#[utoipa::path(
    post, path = "/observer/check", tag = "observer",
    responses(
        (status = 200, description = "The check that was run", body = ObserverBody<'static>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn check_now(
    State(state): State<HttpState>,
    mut post: Post,
) -> Result<Response, ApiError> {
    Query::of(&post.uri)?.finish()?;
    post.fields().finish()?;
    // A waiter sits in the observer until its check ends: bounded by permits.
    let _permit = state.waiting.try_acquire().map_err(|_| {
        ApiError::new(
            Code::Overloaded,
            "too many requests wait already: try again in a moment",
        )
    })?;
    let check = state.handles().observer.check();
    match tokio::time::timeout(CHECK_DEADLINE, check).await {
        Ok(Some(report)) => Ok(answer(&state, &report)),
        Ok(None) => Err(ApiError::new(
            Code::Unavailable,
            "the observer is being restarted: try again in a moment",
        )),
        Err(_) => Err(ApiError::new(
            Code::Unavailable,
            format!(
                "the check did not end within {} s: GET /observer/status tells it later",
                CHECK_DEADLINE.as_secs()
            ),
        )),
    }
}
