//! What is asked of a VM: start, stop, restart, pause, resume, reset.

use super::{accepted, begun_before, not_found};
use crate::http::{
    dto::operation::OperationBody,
    error::{ApiError, Code, ProblemBody},
    extract::{Post, Query},
    fields::Fields,
    idempotency::{Key, once, result_gone},
    paging::if_match,
    state::HttpState,
    waiting::MAX_WAIT_S,
};
use axum::{
    extract::{Path, State, rejection::PathRejection},
    response::Response,
};
use utoipa::ToSchema;
use vman_actors::vm::CommandRequest;
use vman_model::{
    VmId,
    change::IdempotentAnswer,
    vm::{Command, CommandContext},
};

/// How long a guest may take to power off if nothing is said, in milliseconds.
const STOP_TIMEOUT_MS: u64 = 30_000;
/// The longest it may be given, in seconds.
pub(crate) const MAX_STOP_TIMEOUT_S: f64 = 3_600.0;

/// The actions of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Start,
    Stop,
    Restart,
    Pause,
    Resume,
    Reset,
}

const ACTIONS: [(&str, Action); 6] = [
    ("start", Action::Start),
    ("stop", Action::Stop),
    ("restart", Action::Restart),
    ("pause", Action::Pause),
    ("resume", Action::Resume),
    ("reset", Action::Reset),
];

/// How a stop or restart shall be done. Both may be given in the query instead.
#[derive(ToSchema)]
#[allow(
    dead_code,
    reason = "its fields are the document; `Manner` reads them one by one"
)]
pub(crate) struct ActionOptions {
    /// At once, without asking the guest.
    force: Option<bool>,
    /// How long the guest may take before force is used, in seconds, 0 to 3600; 30 by default.
    timeout_s: Option<f64>,
}

/// How a stop is done.
struct Manner {
    force: bool,
    timeout_ms: u64,
}

impl Manner {
    /// Only a stop has a manner; elsewhere these are unknown fields.
    fn read(action: Action, query: &mut Query, mut fields: Fields) -> Result<Self, ApiError> {
        let mut manner = Self {
            force: false,
            timeout_ms: STOP_TIMEOUT_MS,
        };
        if matches!(action, Action::Stop | Action::Restart) {
            let said = (query.flag("force"), fields.boolean("force"));
            manner.force = one_of(said, "force", &mut fields).unwrap_or(false);
            let max = MAX_STOP_TIMEOUT_S;
            let said = (
                query.seconds("timeout_s", max),
                fields.seconds("timeout_s", max),
            );
            let timeout = one_of(said, "timeout_s", &mut fields);
            manner.timeout_ms = timeout.unwrap_or(STOP_TIMEOUT_MS);
        }
        fields.finish()?;
        Ok(manner)
    }
}

fn one_of<T: PartialEq>(
    said: (Option<T>, Option<T>),
    name: &str,
    fields: &mut Fields,
) -> Option<T> {
    if let (Some(query), Some(body)) = &said
        && query != body
    {
        fields.wrong(name, "says something else in the query than in the body");
    }
    said.0.or(said.1)
}

fn command(action: Action, manner: &Manner) -> Command {
    let Manner { force, timeout_ms } = *manner;
    match action {
        Action::Start => Command::Start,
        Action::Stop => Command::Stop { force, timeout_ms },
        Action::Restart => Command::Restart { force, timeout_ms },
        Action::Pause => Command::Pause,
        Action::Resume => Command::Resume,
        Action::Reset => Command::Reset,
    }
}

/// Ask something of a VM
///
/// `stop` is polite and falls back to force after `timeout_s`; `force=true` is at once.
#[utoipa::path(
    post, path = "/vms/{id}/actions/{action}", tag = "vms",
    params(
        ("id" = String, Path, description = "The VM"),
        ("action" = String, Path, description = "`start`, `stop`, `restart`, `pause`, `resume` or `reset`"),
        ("force" = Option<bool>, Query, description = "For stop and restart: at once, without asking the guest"),
        ("timeout_s" = Option<f64>, Query, description = "For stop and restart: how long the guest may take, 0 to 3600; 30 by default"),
        ("wait_s" = Option<f64>, Query, description = "Wait this long for the end, 0 to 300"),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key and body gives the same answer again"),
        ("If-Match" = Option<String>, Header, description = "Only if it still has this revision"),
    ),
    request_body(content = Option<ActionOptions>, example = json!({})),
    responses(
        (status = 200, description = "Ended within wait_s", body = OperationBody<'static>),
        (status = 202, description = "Accepted", body = OperationBody<'static>),
        (status = "default", description = "Refused; 409 in the wrong state", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn act_on_vm(
    State(state): State<HttpState>,
    path: Result<Path<(String, String)>, PathRejection>,
    mut post: Post,
) -> Result<Response, ApiError> {
    let (id, action) = target(path)?;
    let mut query = Query::of(&post.uri)?;
    let wait_ms = query.seconds("wait_s", MAX_WAIT_S).unwrap_or(0);
    let fields = post.fields();
    let manner = Manner::read(action, &mut query, fields)?;
    query.finish()?;
    let (state, id) = (&state, &id);
    let command = command(action, &manner);
    let again = |answer| async {
        let operation = begun_before(answer)?;
        let row = state.inventory().operations.get(&operation).cloned();
        let row = row.ok_or_else(|| result_gone("operation"))?;
        Ok(accepted(state, &row.value, wait_ms).await)
    };
    once(state, post, again, |post, key| async move {
        let row = state.inventory().vms.get(id).cloned();
        let row = row.ok_or_else(|| not_found("VM", id).vm(id))?;
        let request = CommandRequest {
            if_revision: if_match(&post.headers, row.revision, "VM")
                .map_err(|error| error.vm(id))?,
            ..request(state, &post, key, command)
        };
        let begun = state.handles().vms.command(id, request).await;
        let operation = begun.map_err(|error| ApiError::from(error).vm(id))?;
        Ok(accepted(state, &operation, wait_ms).await)
    })
    .await
}

/// A command with the operation it becomes and the key it is committed with.
pub(super) fn request(
    state: &HttpState,
    post: &Post,
    key: Option<Key>,
    command: Command,
) -> CommandRequest {
    let handles = state.handles();
    let operation = handles.vms.new_operation_id();
    let answer = IdempotentAnswer::Operation(operation.clone());
    CommandRequest {
        command,
        if_revision: None,
        idempotency: key.map(|key| key.record(answer, handles.clock.now())),
        context: CommandContext {
            operation,
            origin: post.caller.origin(),
        },
    }
}

fn target(path: Result<Path<(String, String)>, PathRejection>) -> Result<(VmId, Action), ApiError> {
    let no_such = || ApiError::new(Code::NotFound, "the path names nothing: its id is no VM's");
    let Path((id, action)) = path.map_err(|_| no_such())?;
    let id = VmId::parse(&id).map_err(|_| no_such())?;
    let known = ACTIONS.iter().find(|(word, _)| *word == action);
    let (_, action) = known.ok_or_else(|| {
        let words: Vec<_> = ACTIONS.iter().map(|(word, _)| *word).collect();
        let detail = format!("there is no such action; there are {}", words.join(", "));
        ApiError::new(Code::NotFound, detail).vm(&id)
    })?;
    Ok((id, *action))
}
