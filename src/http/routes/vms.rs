//! VMs: made, listed, read, deleted, explained. Their actions are in
//! `actions.rs`, their console in `console.rs`.

use super::{
    accepted,
    actions::request,
    made::{Made, make},
    not_found,
};
use crate::http::{
    dto::{
        event::{EventBody, ExplanationBody},
        power::{StartFields, VmChangeBody, check_start},
        vm::{NewVmBody, VmBody, read_vm, vm_json},
    },
    error::{ApiError, Code, ProblemBody},
    extract::{Caller, Id, Post, Query},
    paging::{List, if_match, json, json_bytes, tagged, unchanged, unwritten, with_header},
    state::HttpState,
    waiting::{MAX_WAIT_S, operation_end},
};
use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use std::{sync::Arc, time::Duration};
use vman_actors::vm::{CommandError, CommandRequest};
use vman_model::{
    OperationKind, OperationRecord, OperationStatus, VmId,
    change::IdempotentAnswer,
    vm::{ApiState, Command, CommandContext, Refusal, VmRecord},
};

/// How long a deletion is waited for if nothing else is said, in milliseconds.
const DELETE_WAIT_MS: u64 = 60_000;
/// The most events that `explain` tells.
const MAX_EXPLAINED: u64 = 1_000;
const EXPLAINED: u64 = 50;

/// Make a VM
#[utoipa::path(
    post, path = "/vms", tag = "vms",
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key and body gives the same answer again")),
    request_body(content = NewVmBody, example = json!({"template_name": "small", "name": "web-1"})),
    responses(
        (status = 201, description = "Made; it does not run yet", body = VmBody<'static>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn create_vm(
    State(state): State<HttpState>,
    post: Post,
) -> Result<Response, ApiError> {
    let state = &state;
    make(state, post, |mut post, key| async move {
        let mut new = read_vm(state, &mut post)?;
        new.idempotency = key;
        Ok(state.handles().vms.create(new).await?)
    })
    .await
}

impl Made for VmId {
    const WHAT: &'static str = "VM";

    fn of(answer: IdempotentAnswer) -> Option<Self> {
        match answer {
            IdempotentAnswer::Vm(id) => Some(id),
            _ => None,
        }
    }

    fn created(&self, state: &HttpState) -> Option<Response> {
        let inventory = state.inventory();
        let row = inventory.vms.get(self)?;
        let body = vm_json(state, &inventory, row).ok()?;
        let response = json_bytes(StatusCode::CREATED, body);
        let response = with_header(response, header::LOCATION, &format!("/vms/{self}"));
        Some(tagged(response, row.revision))
    }
}

/// What a list of VMs is narrowed to.
struct Filter {
    state: Option<ApiState>,
    labels: Vec<(String, Option<String>)>,
}

impl Filter {
    fn read(query: &mut Query) -> Self {
        let states = [
            ApiState::Stopped,
            ApiState::Starting,
            ApiState::Running,
            ApiState::Paused,
            ApiState::Stopping,
            ApiState::Error,
        ];
        let words = states.map(|state| (state.as_str(), state));
        let labels = query
            .all("label")
            .into_iter()
            .map(|label| match label.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (label, None),
            });
        Self {
            state: query.word("state", &words),
            labels: labels.collect(),
        }
    }

    fn keeps(&self, vm: &VmRecord) -> bool {
        let has = |(key, value): &(String, Option<String>)| {
            let label = vm.spec.size.labels.get(key);
            label.is_some_and(|label| value.as_ref().is_none_or(|value| value == label))
        };
        self.state.is_none_or(|state| vm.state() == state) && self.labels.iter().all(has)
    }
}

/// List the VMs
#[utoipa::path(
    get, path = "/vms", tag = "vms",
    params(
        ("state" = Option<String>, Query, description = "Only those in this state"),
        ("label" = Option<Vec<String>>, Query, description = "Only those with this label, as `key` or `key=value`; may be repeated"),
        ("limit" = Option<u64>, Query, description = "At most this many, 1 to 1000"),
        ("cursor" = Option<String>, Query, description = "From the Link header of the page before"),
    ),
    responses(
        (status = 200, description = "By id", body = Vec<VmBody<'static>>),
        (status = 304, description = "Unchanged since the revision in If-None-Match"),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_vms(
    State(state): State<HttpState>,
    mut list: List<VmId>,
) -> Result<Response, ApiError> {
    let filter = Filter::read(&mut list.query);
    let page = list.finish()?;
    let inventory = state.inventory();
    let rows = inventory
        .vms
        .range::<_, VmId>(page.upwards())
        .filter(|(_, row)| filter.keeps(&row.value));
    let write = |out: &mut Vec<u8>, row: &Arc<_>| {
        out.extend_from_slice(&vm_json(&state, &inventory, row)?);
        Ok(())
    };
    Ok(page.answer_kept(&state.vm_lists, &inventory, rows, write))
}

/// One VM
#[utoipa::path(
    get, path = "/vms/{id}", tag = "vms",
    params(("id" = String, Path, description = "The VM")),
    responses(
        (status = 200, description = "The VM", body = VmBody<'static>),
        (status = 304, description = "Unchanged since the revision in If-None-Match"),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_vm(
    State(state): State<HttpState>,
    Id(id): Id<VmId>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    let inventory = state.inventory();
    let row = inventory
        .vms
        .get(&id)
        .ok_or_else(|| not_found("VM", &id).vm(&id))?;
    if let Some(same) = unchanged(&headers, row.revision) {
        return Ok(same);
    }
    let body = vm_json(&state, &inventory, row).map_err(unwritten)?;
    Ok(tagged(json_bytes(StatusCode::OK, body), row.revision))
}

/// Change how a VM comes up and goes down with the host
///
/// In every state of the VM; its present life is not touched.
#[utoipa::path(
    patch, path = "/vms/{id}", tag = "vms",
    params(
        ("id" = String, Path, description = "The VM"),
        ("If-Match" = Option<String>, Header, description = "Only if it still has this revision"),
    ),
    request_body = VmChangeBody,
    responses(
        (status = 200, description = "Changed", body = VmBody<'static>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn change_vm(
    State(state): State<HttpState>,
    Id(id): Id<VmId>,
    mut post: Post,
) -> Result<Response, ApiError> {
    Query::of(&post.uri)?.finish()?;
    let row = state.inventory().vms.get(&id).cloned();
    let row = row.ok_or_else(|| not_found("VM", &id).vm(&id))?;
    let mut fields = post.fields();
    let said = StartFields::read(&mut fields);
    fields.finish()?;
    let start = said.over(&row.value.spec.start);
    check_start(&state, Some(&id), &start)?;
    let request = CommandRequest {
        if_revision: if_match(&post.headers, row.revision, "VM").map_err(|error| error.vm(&id))?,
        ..request(&state, &post, None, Command::SetStart(start))
    };
    let changed = state.handles().vms.command(&id, request).await;
    changed.map_err(|error| ApiError::from(error).vm(&id))?;
    let inventory = state.inventory();
    let row = inventory.vms.get(&id);
    let row = row.ok_or_else(|| not_found("VM", &id).vm(&id))?;
    let body = vm_json(&state, &inventory, row).map_err(unwritten)?;
    Ok(tagged(json_bytes(StatusCode::OK, body), row.revision))
}

/// Delete a VM: stops it by force if it runs, releases its disks, address and files
#[utoipa::path(
    delete, path = "/vms/{id}", tag = "vms",
    params(
        ("id" = String, Path, description = "The VM"),
        ("keep_root_disk" = Option<bool>, Query, description = "Keep its root disk as a disk of its own"),
        ("wait_s" = Option<f64>, Query, description = "Wait this long for the end, 0 to 300; 60 by default"),
        ("If-Match" = Option<String>, Header, description = "Only if it still has this revision"),
    ),
    responses(
        (status = 204, description = "Gone"),
        (status = 202, description = "Still going", body = crate::http::dto::operation::OperationBody<'static>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn delete_vm(
    State(state): State<HttpState>,
    caller: Caller,
    Id(id): Id<VmId>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let mut query = Query::of(&uri)?;
    let keep_root_disk = query.flag("keep_root_disk").unwrap_or(false);
    let wait_ms = query
        .seconds("wait_s", MAX_WAIT_S)
        .unwrap_or(DELETE_WAIT_MS);
    query.finish()?;
    let row = state.inventory().vms.get(&id).cloned();
    let row = row.ok_or_else(|| not_found("VM", &id).vm(&id))?;
    let vms = &state.handles().vms;
    let request = CommandRequest {
        command: Command::Delete { keep_root_disk },
        context: CommandContext {
            operation: vms.new_operation_id(),
            origin: caller.origin(),
        },
        if_revision: if_match(&headers, row.revision, "VM").map_err(|error| error.vm(&id))?,
        idempotency: None,
    };
    match vms.command(&id, request).await {
        Ok(operation) => Ok(deleted(&state, &operation, wait_ms).await),
        // Deleting it twice is one deletion: wait for the one under way.
        Err(CommandError::Refused(Refusal::BeingDeleted)) => match deletion(&state, &id) {
            Some(operation) => Ok(deleted(&state, &operation, wait_ms).await),
            None => Ok(StatusCode::NO_CONTENT.into_response()),
        },
        Err(error) => Err(ApiError::from(error).vm(&id)),
    }
}

fn deletion(state: &HttpState, id: &VmId) -> Option<OperationRecord> {
    let inventory = state.inventory();
    let vm = inventory.vms.get(id)?;
    let is_delete = |kind: OperationKind| kind == OperationKind::VmDelete;
    let open = vm
        .value
        .operations
        .iter()
        .find(|operation| is_delete(operation.kind))?;
    inventory
        .operations
        .get(&open.id)
        .map(|row| row.value.clone())
}

async fn deleted(state: &HttpState, operation: &OperationRecord, wait_ms: u64) -> Response {
    let wait = Duration::from_millis(wait_ms);
    let Some(row) = operation_end(state, &operation.id, wait).await else {
        return StatusCode::NO_CONTENT.into_response();
    };
    match (row.value.status, &row.value.error) {
        (OperationStatus::Succeeded, _) => StatusCode::NO_CONTENT.into_response(),
        (OperationStatus::Failed | OperationStatus::Cancelled, error) => {
            let why = error
                .as_ref()
                .map_or("the deletion did not end", |error| &error.detail);
            ApiError::new(Code::OperationFailed, why)
                .operation(&operation.id)
                .into_response()
        }
        (OperationStatus::Running, _) => accepted(state, &row.value, 0).await,
    }
}

/// Why a VM is in its state: the chain of events, newest first
#[utoipa::path(
    get, path = "/vms/{id}/explain", tag = "vms",
    params(
        ("id" = String, Path, description = "The VM"),
        ("limit" = Option<u64>, Query, description = "At most this many events, 1 to 1000; 50 by default"),
    ),
    responses(
        (status = 200, description = "Newest first, each with its cause", body = ExplanationBody<'static>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn explain_vm(
    State(state): State<HttpState>,
    Id(id): Id<VmId>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let mut query = Query::of(&uri)?;
    let limit = query.whole("limit", 1..=MAX_EXPLAINED).unwrap_or(EXPLAINED);
    query.finish()?;
    if !state.inventory().vms.contains_key(&id) {
        return Err(not_found("VM", &id).vm(&id));
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let events = state.handles().vms.explain(&id, limit).await?;
    let body = ExplanationBody {
        vm_id: id.as_str(),
        summary: vman_model::explain::summary(events.iter().map(AsRef::as_ref)),
        events: events.iter().map(|event| EventBody::of(event)).collect(),
    };
    Ok(json(StatusCode::OK, &body))
}
