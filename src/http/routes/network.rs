//! The network: how it is configured, who holds which address, and which ports
//! of the host lead into guests.

use super::{
    made::{Made, make},
    not_found,
};
use crate::http::{
    dto::network::{ForwardBody, LeaseBody, NetworkConfigBody, NewForwardBody},
    error::{ApiError, ProblemBody},
    extract::{Caller, Id, Post, Query},
    paging::{List, json, tagged, with_header},
    state::HttpState,
};
use axum::{
    extract::State,
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use vman_actors::network::NewForward;
use vman_model::{ForwardId, LeaseId, Protocol, change::IdempotentAnswer};

/// How VMs are connected
#[utoipa::path(
    get, path = "/network/config", tag = "network",
    responses(
        (status = 200, description = "The configuration", body = NetworkConfigBody),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_network_config(
    State(state): State<HttpState>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    let facts = state.handles().network.facts();
    let body = NetworkConfigBody::of(&facts, &state.inventory());
    Ok(json(StatusCode::OK, &body))
}

/// The addresses that VMs hold
#[utoipa::path(
    get, path = "/network/leases", tag = "network",
    params(
        ("limit" = Option<u64>, Query, description = "At most this many, 1 to 1000"),
        ("cursor" = Option<String>, Query, description = "From the Link header of the page before"),
    ),
    responses(
        (status = 200, description = "By address as text; none in user mode", body = Vec<LeaseBody<'static>>),
        (status = 304, description = "Unchanged since the revision in If-None-Match"),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_leases(
    State(state): State<HttpState>,
    list: List<LeaseId>,
) -> Result<Response, ApiError> {
    let page = list.finish()?;
    let inventory = state.inventory();
    let rows = inventory.leases.range::<_, LeaseId>(page.upwards());
    let facts = state.handles().network.facts();
    Ok(page.answer(&inventory, rows, |row| LeaseBody::of(row, &facts)))
}

/// The ports of the host that lead into guests
#[utoipa::path(
    get, path = "/network/forwards", tag = "network",
    params(
        ("limit" = Option<u64>, Query, description = "At most this many, 1 to 1000"),
        ("cursor" = Option<String>, Query, description = "From the Link header of the page before"),
    ),
    responses(
        (status = 200, description = "By id", body = Vec<ForwardBody<'static>>),
        (status = 304, description = "Unchanged since the revision in If-None-Match"),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_forwards(
    State(state): State<HttpState>,
    list: List<ForwardId>,
) -> Result<Response, ApiError> {
    let page = list.finish()?;
    let inventory = state.inventory();
    let rows = inventory.forwards.range::<_, ForwardId>(page.upwards());
    Ok(page.answer(&inventory, rows, |row| ForwardBody::of(row)))
}

/// Let a port of the host lead into a guest
///
/// By IPv4. For a VM on a bridge it is for packets that come to the host and for the host's own
/// addresses but 127.0.0.1; in user mode also for that one.
#[utoipa::path(
    post, path = "/network/forwards", tag = "network",
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key and body gives the same answer again")),
    request_body(content = NewForwardBody, example = json!({"vm_id": "web-1", "host_port": 8080, "guest_port": 80})),
    responses(
        (status = 201, description = "Made; the firewall follows within milliseconds", body = ForwardBody<'static>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn create_forward(
    State(state): State<HttpState>,
    post: Post,
) -> Result<Response, ApiError> {
    let state = &state;
    make(state, post, |mut post, key| async move {
        let mut new = read_forward(&mut post)?;
        new.idempotency = key;
        Ok(state.handles().network.forward(new).await?.id)
    })
    .await
}

fn read_forward(post: &mut Post) -> Result<NewForward, ApiError> {
    let origin = post.caller.origin();
    let mut fields = post.fields();
    for name in ["vm_id", "host_port"] {
        fields.require(name);
    }
    let vm = fields.name("vm_id");
    let words = [Protocol::Tcp, Protocol::Udp].map(|word| (word.as_str(), word));
    let protocol = fields.word("protocol", &words).unwrap_or(Protocol::Tcp);
    let mut port = |name: &str| {
        let port = fields.whole(name, 1..=65_535)?;
        u16::try_from(port).ok()
    };
    let (host_port, guest_port) = (port("host_port"), port("guest_port"));
    fields.finish()?;
    let (Some(vm), Some(host_port)) = (vm, host_port) else {
        return Err(ApiError::field("vm_id", "is required"));
    };
    Ok(NewForward {
        vm,
        protocol,
        host_port,
        guest_port: guest_port.unwrap_or(host_port),
        origin,
        idempotency: None,
    })
}

impl Made for ForwardId {
    const WHAT: &'static str = "forward";

    fn of(answer: IdempotentAnswer) -> Option<Self> {
        match answer {
            IdempotentAnswer::Forward(id) => Some(id),
            _ => None,
        }
    }

    fn created(&self, state: &HttpState) -> Option<Response> {
        let inventory = state.inventory();
        let row = inventory.forwards.get(self)?;
        let response = json(StatusCode::CREATED, &ForwardBody::of(row));
        let location = format!("/network/forwards/{self}");
        let response = with_header(response, header::LOCATION, &location);
        Some(tagged(response, row.revision))
    }
}

/// One forwarded port
#[utoipa::path(
    get, path = "/network/forwards/{id}", tag = "network",
    params(("id" = String, Path, description = "The forward, `tcp-8080`")),
    responses(
        (status = 200, description = "The forward", body = ForwardBody<'static>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_forward(
    State(state): State<HttpState>,
    Id(id): Id<ForwardId>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    let inventory = state.inventory();
    let row = inventory.forwards.get(&id);
    let row = row.ok_or_else(|| not_found("forward", &id))?;
    Ok(tagged(
        json(StatusCode::OK, &ForwardBody::of(row)),
        row.revision,
    ))
}

/// End the forwarding of a port
#[utoipa::path(
    delete, path = "/network/forwards/{id}", tag = "network",
    params(("id" = String, Path, description = "The forward, `tcp-8080`")),
    responses(
        (status = 204, description = "Ended"),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn delete_forward(
    State(state): State<HttpState>,
    caller: Caller,
    Id(id): Id<ForwardId>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    let network = &state.handles().network;
    network.unforward(&id, caller.origin()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
