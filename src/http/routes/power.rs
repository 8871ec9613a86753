//! The host's going up and down: what is still to be started since its boot, a
//! drain, and its end.

use super::{accepted, begun_before};
use crate::http::{
    dto::{
        operation::OperationBody,
        power::{DrainOptions, PowerBody},
    },
    error::{ApiError, ProblemBody},
    extract::{Post, Query},
    idempotency::{once, result_gone},
    paging::json,
    state::HttpState,
    waiting::MAX_WAIT_S,
};
use axum::{
    extract::State,
    http::{StatusCode, Uri},
    response::Response,
};
use vman_actors::power::DrainRequest;
use vman_model::{change::IdempotentAnswer, vm::CommandContext};

/// How long a drain leaves guests if nothing is said, in milliseconds.
const DRAIN_TIMEOUT_MS: u64 = 120_000;
/// The longest it may leave them, in seconds.
const MAX_DRAIN_TIMEOUT_S: f64 = 3_600.0;

/// The host's boot, what is still to be started in it, and its drain
#[utoipa::path(
    get, path = "/host", tag = "host",
    responses(
        (status = 200, description = "The host", body = PowerBody),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_host(
    State(state): State<HttpState>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    Ok(answer(&state))
}

fn answer(state: &HttpState) -> Response {
    let handles = state.handles();
    let body = PowerBody::of(handles.power.host(), &handles.clock.boot_id());
    json(StatusCode::OK, &body)
}

/// Stop all VMs, because the host is to go down
///
/// In the reverse order of their start, politely until `timeout_s` has passed, then by force. They are started again by
/// the next boot, or by a resume; until then none is started. Draining a drained host answers the same operation.
#[utoipa::path(
    post, path = "/host/actions/drain", tag = "host",
    params(
        ("timeout_s" = Option<f64>, Query, description = "How long guests have in all, 0 to 3600; 120 by default"),
        ("wait_s" = Option<f64>, Query, description = "Wait this long for the end, 0 to 300"),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key and body gives the same answer again"),
    ),
    request_body = Option<DrainOptions>,
    responses(
        (status = 200, description = "Ended within wait_s", body = OperationBody<'static>),
        (status = 202, description = "Accepted", body = OperationBody<'static>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn drain_host(
    State(state): State<HttpState>,
    mut post: Post,
) -> Result<Response, ApiError> {
    let mut query = Query::of(&post.uri)?;
    let wait_ms = query.seconds("wait_s", MAX_WAIT_S).unwrap_or(0);
    let asked = query.seconds("timeout_s", MAX_DRAIN_TIMEOUT_S);
    let mut fields = post.fields();
    let said = fields.seconds("timeout_s", MAX_DRAIN_TIMEOUT_S);
    if asked.is_some() && said.is_some() && asked != said {
        fields.wrong(
            "timeout_s",
            "says something else in the query than in the body",
        );
    }
    fields.finish()?;
    query.finish()?;
    let timeout_ms = asked.or(said).unwrap_or(DRAIN_TIMEOUT_MS);
    let state = &state;
    let again = |answer| async move {
        let operation = begun_before(answer)?;
        let row = state.inventory().operations.get(&operation).cloned();
        let row = row.ok_or_else(|| result_gone("operation"))?;
        Ok(accepted(state, &row.value, wait_ms).await)
    };
    once(state, post, again, |post, key| async move {
        let handles = state.handles();
        let operation = handles.vms.new_operation_id();
        let answer = IdempotentAnswer::Operation(operation.clone());
        let request = DrainRequest {
            timeout_ms,
            idempotency: key.map(|key| key.record(answer, handles.clock.now())),
            context: CommandContext {
                operation,
                origin: post.caller.origin(),
            },
        };
        let operation = handles.power.drain(request).await?;
        Ok(accepted(state, &operation, wait_ms).await)
    })
    .await
}

/// End a drain: the host stays up, and what was stopped is started again
#[utoipa::path(
    post, path = "/host/actions/resume", tag = "host",
    responses(
        (status = 200, description = "The host; what is to be started is listed", body = PowerBody),
        (status = "default", description = "Refused; 409 where it is not drained", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn resume_host(
    State(state): State<HttpState>,
    mut post: Post,
) -> Result<Response, ApiError> {
    Query::of(&post.uri)?.finish()?;
    post.fields().finish()?;
    state.handles().power.resume(post.caller.origin()).await?;
    Ok(answer(&state))
}
