//! A VM's network cards and what went through them.

use super::not_found;
use crate::http::{
    dto::network::NicBody,
    error::{ApiError, ProblemBody},
    extract::{Id, Query},
    paging::json,
    state::HttpState,
};
use axum::{
    extract::State,
    http::{StatusCode, Uri},
    response::Response,
};
use std::time::Duration;
use vman_model::VmId;

/// How long the kernel may take to tell its counters; without them the cards are told all the same.
const COUNTERS_DEADLINE: Duration = Duration::from_secs(1);

/// The network cards of a VM with their counters
#[utoipa::path(
    get, path = "/vms/{id}/nics", tag = "vms",
    params(("id" = String, Path, description = "The VM")),
    responses(
        (status = 200, description = "Its cards while it runs; counters on a bridge only, from the guest's side", body = Vec<NicBody>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_nics(
    State(state): State<HttpState>,
    Id(id): Id<VmId>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    let inventory = state.inventory();
    let row = inventory
        .vms
        .get(&id)
        .ok_or_else(|| not_found("VM", &id).vm(&id))?;
    let counting = state.handles().network.traffic(id.clone());
    let traffic = tokio::time::timeout(COUNTERS_DEADLINE, counting).await;
    let traffic = traffic.ok().flatten();
    let claim = row.value.claim.as_ref();
    let nics = claim.map(|claim| claim.nics.as_slice()).unwrap_or_default();
    let nics = nics.iter().zip(0_u8..);
    let body: Vec<_> = nics
        .map(|(nic, number)| NicBody::of(&id, nic, number, traffic.filter(|_| number == 0)))
        .collect();
    Ok(json(StatusCode::OK, &body))
}
