//! The network, as it is configured, and who holds which address.

use crate::http::{
    dto::host::{LeaseBody, NetworkConfigBody},
    error::{ApiError, ProblemBody},
    extract::Query,
    paging::json,
};
use axum::{
    http::{StatusCode, Uri},
    response::Response,
};

/// How VMs are connected
#[utoipa::path(
    get, path = "/network/config", tag = "network",
    responses(
        (status = 200, description = "The configuration", body = NetworkConfigBody),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_network_config(uri: Uri) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    let body = NetworkConfigBody {
        status: "not_configured",
        mode: "user",
    };
    Ok(json(StatusCode::OK, &body))
}

/// The addresses that VMs hold
#[utoipa::path(
    get, path = "/network/leases", tag = "network",
    responses(
        (status = 200, description = "None in user mode", body = Vec<LeaseBody<'static>>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_leases(uri: Uri) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    // QEMU's user-mode network gives every guest the same address of its own.
    let leases: [LeaseBody<'_>; 0] = [];
    Ok(json(StatusCode::OK, &leases))
}
