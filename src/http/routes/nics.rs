//! A VM's network cards: what went through them, further ones, and their cables.

use super::{
    begun_before,
    device_work::{Outcome, outcome},
    not_found,
};
use crate::http::{
    dto::{
        limits::read_limits,
        nic::{NewNicBody, NicBody, NicChangeBody},
        operation::OperationBody,
    },
    error::{ApiError, Code, ProblemBody},
    extract::{Caller, Id, Post, Query},
    fields::Fields,
    idempotency::{Key, once},
    paging::{json, with_header},
    state::HttpState,
};
use axum::{
    extract::{Path, State, rejection::PathRejection},
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use std::{sync::Arc, time::Duration};
use vman_actors::{
    ports::Traffic,
    store::Versioned,
    vm::{CommandRequest, WantedNic},
};
use vman_model::{
    OperationId, Origin, VmId,
    change::IdempotentAnswer,
    network::{LinkState, MAX_NICS, NicLimits, nic::nic_id},
    vm::{Command, CommandContext, NetworkKind, VmRecord},
};

/// How long the kernel may take to tell its counters; without them the cards are told all the same.
const COUNTERS_DEADLINE: Duration = Duration::from_secs(1);

/// The code of an operation that failed because the guest did not let go of its card.
const HELD: &str = "guest_holds_nic";

fn row_of(state: &HttpState, id: &VmId) -> Result<Arc<Versioned<VmRecord>>, ApiError> {
    let row = state.inventory().vms.get(id).cloned();
    row.ok_or_else(|| not_found("VM", id).vm(id))
}

/// The VM and the card in the path. What can be none names nothing.
fn target(path: Result<Path<(String, String)>, PathRejection>) -> Result<(VmId, u8), ApiError> {
    let no_such = || ApiError::new(Code::NotFound, "the path names nothing: its id is no VM's");
    let Path((vm, nic)) = path.map_err(|_| no_such())?;
    let vm = VmId::parse(&vm).map_err(|_| no_such())?;
    let number = (0..MAX_NICS).find(|number| nic_id(*number) == nic);
    let number = number.ok_or_else(|| {
        let detail = "there is no such network card: GET /vms/{id}/nics lists those of the VM";
        ApiError::new(Code::NotFound, detail).vm(&vm)
    })?;
    Ok((vm, number))
}

async fn counters(state: &HttpState, vm: &VmId, nic: u8) -> Option<Traffic> {
    let counting = state.handles().network.traffic(vm.clone(), nic);
    let counted = tokio::time::timeout(COUNTERS_DEADLINE, counting).await;
    counted.ok().flatten()
}

async fn body(state: &HttpState, vm: &VmRecord, nic: u8) -> Result<NicBody, ApiError> {
    let traffic = counters(state, &vm.id, nic).await;
    let facts = state.handles().network.facts();
    let body = NicBody::of(vm, nic, &state.inventory(), &facts, traffic);
    body.ok_or_else(|| not_found("network card", nic_id(nic)).vm(&vm.id))
}

/// The network cards of a VM with their counters
#[utoipa::path(
    get, path = "/vms/{id}/nics", tag = "vms",
    params(("id" = String, Path, description = "The VM")),
    responses(
        (status = 200, description = "Its cards; counters while it runs on a bridge, from the guest's side", body = Vec<NicBody>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_nics(
    State(state): State<HttpState>,
    Id(id): Id<VmId>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    let row = row_of(&state, &id)?;
    let mut cards = Vec::new();
    if row.value.claim.is_some() || state.handles().network.facts().kind != NetworkKind::None {
        for (nic, _) in row.value.macs() {
            cards.push(body(&state, &row.value, nic).await?);
        }
    }
    Ok(json(StatusCode::OK, &cards))
}

/// One network card of a VM
#[utoipa::path(
    get, path = "/vms/{id}/nics/{nic}", tag = "vms",
    params(
        ("id" = String, Path, description = "The VM"),
        ("nic" = String, Path, description = "The card, `nic0` for the first"),
    ),
    responses(
        (status = 200, description = "The card", body = NicBody),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_nic(
    State(state): State<HttpState>,
    path: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let (vm, nic) = target(path)?;
    Query::of(&uri)?.finish()?;
    let row = row_of(&state, &vm)?;
    Ok(json(StatusCode::OK, &body(&state, &row.value, nic).await?))
}

/// Give a VM another network card
///
/// A running guest is given it at once; a stopped one has it from its next start on. Its address is
/// held from now on.
#[utoipa::path(
    post, path = "/vms/{id}/nics", tag = "vms",
    params(
        ("id" = String, Path, description = "The VM"),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key and body gives the same answer again"),
    ),
    request_body = Option<NewNicBody>,
    responses(
        (status = 201, description = "Attached", body = NicBody),
        (status = 202, description = "QEMU has not answered yet", body = OperationBody<'static>),
        (status = "default", description = "Refused; 409 where no slot or no address is free", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn attach_nic(
    State(state): State<HttpState>,
    Id(id): Id<VmId>,
    post: Post,
) -> Result<Response, ApiError> {
    Query::of(&post.uri)?.finish()?;
    let (state, id) = (&state, &id);
    let again = |answer| async { attached(state, id, &begun_before(answer)?).await };
    once(state, post, again, |mut post, key| async move {
        let wanted = read_nic(state, id, &mut post, key)?;
        let begun = state.handles().vms.attach_nic(id, wanted).await;
        let operation = begun.map_err(|error| ApiError::from(error).vm(id))?;
        attached(state, id, &operation.id).await
    })
    .await
}

fn read_nic(
    state: &HttpState,
    id: &VmId,
    post: &mut Post,
    key: Option<Key>,
) -> Result<WantedNic, ApiError> {
    let mut fields = post.fields();
    let network = fields.name("network");
    let address = fields.address("address");
    let link = read_link(&mut fields);
    let limits = read_limits(&mut fields);
    fields.finish()?;
    row_of(state, id)?;
    let handles = state.handles();
    let kind = handles.network.facts().kind;
    if kind == NetworkKind::None {
        let detail = "VMs have no network on this host (VMAN_NETWORK_MODE=none), so they get no network cards";
        return Err(ApiError::new(Code::NoNetwork, detail).vm(id));
    }
    let operation = handles.vms.new_operation_id();
    let answer = IdempotentAnswer::Operation(operation.clone());
    Ok(WantedNic {
        kind,
        network: network.unwrap_or_default(),
        address,
        limits: limits.unwrap_or_default(),
        link: link.unwrap_or_default(),
        idempotency: key.map(|key| key.record(answer, handles.clock.now())),
        context: CommandContext {
            operation,
            origin: post.caller.origin(),
        },
    })
}

fn read_link(fields: &mut Fields) -> Option<LinkState> {
    let words = [LinkState::Up, LinkState::Down].map(|link| (link.as_str(), link));
    fields.word("link", &words)
}

async fn attached(
    state: &HttpState,
    vm: &VmId,
    operation: &OperationId,
) -> Result<Response, ApiError> {
    let row = match ended(state, vm, operation).await? {
        Outcome::Open(response) => return Ok(response),
        Outcome::Done(row) => row,
    };
    let gone = || not_found("network card of this operation in VM", vm).vm(vm);
    let nic = row.value.nic.ok_or_else(gone)?;
    let held = row_of(state, vm)?;
    let response = json(StatusCode::CREATED, &body(state, &held.value, nic).await?);
    let place = format!("/vms/{vm}/nics/{}", nic_id(nic));
    Ok(with_header(response, header::LOCATION, &place))
}

async fn ended(state: &HttpState, vm: &VmId, operation: &OperationId) -> Result<Outcome, ApiError> {
    let outcome = outcome(state, operation, HELD).await;
    outcome.map_err(|error| error.vm(vm))
}

/// Gives a command about a card to its VM and waits for its end.
async fn command(
    state: &HttpState,
    (vm, nic): (&VmId, u8),
    command: Command,
    origin: Origin,
) -> Result<Outcome, ApiError> {
    let row = row_of(state, vm)?;
    if row.value.link_of(nic).is_none() {
        return Err(not_found("network card", nic_id(nic)).vm(vm));
    }
    let request = CommandRequest {
        command,
        if_revision: None,
        idempotency: None,
        context: CommandContext {
            operation: state.handles().vms.new_operation_id(),
            origin,
        },
    };
    let begun = state.handles().vms.command(vm, request).await;
    let operation = begun.map_err(|error| ApiError::from(error).vm(vm))?;
    ended(state, vm, &operation.id).await
}

/// Take a network card from a VM
///
/// A running guest is asked to let go of it and waited for. Its address is free afterwards.
#[utoipa::path(
    delete, path = "/vms/{id}/nics/{nic}", tag = "vms",
    params(
        ("id" = String, Path, description = "The VM"),
        ("nic" = String, Path, description = "The card; the first, `nic0`, stays"),
    ),
    responses(
        (status = 204, description = "Taken out"),
        (status = 202, description = "The guest has not let go yet; ask again when the operation has ended", body = OperationBody<'static>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn detach_nic(
    State(state): State<HttpState>,
    caller: Caller,
    path: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let (vm, nic) = target(path)?;
    Query::of(&uri)?.finish()?;
    let detach = Command::DetachNic(nic);
    match command(&state, (&vm, nic), detach, caller.origin()).await? {
        Outcome::Done(_) => Ok(StatusCode::NO_CONTENT.into_response()),
        Outcome::Open(response) => Ok(response),
    }
}

/// Plug a network card's cable in, or pull it, or limit how fast it may be
///
/// The guest sees it at once, and it stays so over restarts. Where the kernel cannot hold a limit it is
/// kept all the same, and `limits_reason` says so.
#[utoipa::path(
    patch, path = "/vms/{id}/nics/{nic}", tag = "vms",
    params(
        ("id" = String, Path, description = "The VM"),
        ("nic" = String, Path, description = "The card, `nic0` for the first"),
    ),
    request_body = NicChangeBody,
    responses(
        (status = 200, description = "Changed", body = NicBody),
        (status = 202, description = "QEMU has not answered yet", body = OperationBody<'static>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn change_nic(
    State(state): State<HttpState>,
    path: Result<Path<(String, String)>, PathRejection>,
    mut post: Post,
) -> Result<Response, ApiError> {
    let (vm, nic) = target(path)?;
    Query::of(&post.uri)?.finish()?;
    let mut fields = post.fields();
    if !fields.has("limits") {
        fields.require("link");
    }
    let link = read_link(&mut fields);
    let limits = read_limits(&mut fields);
    fields.finish()?;
    let origin = || post.caller.origin();
    if let Some(limits) = limits {
        limit(&state, (&vm, nic), limits, origin()).await?;
    }
    if let Some(link) = link {
        let change = Command::SetLink { nic, link };
        if let Outcome::Open(response) = command(&state, (&vm, nic), change, origin()).await? {
            return Ok(response);
        }
    }
    let row = row_of(&state, &vm)?;
    Ok(json(StatusCode::OK, &body(&state, &row.value, nic).await?))
}

async fn limit(
    state: &HttpState,
    (vm, nic): (&VmId, u8),
    limits: NicLimits,
    origin: Origin,
) -> Result<(), ApiError> {
    if row_of(state, vm)?.value.link_of(nic).is_none() {
        return Err(not_found("network card", nic_id(nic)).vm(vm));
    }
    let changed = state.handles().network.limit((vm, nic), limits, origin);
    changed.await.map_err(|error| ApiError::from(error).vm(vm))
}
