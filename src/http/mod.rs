//! The HTTP front end: what a client says is checked here, handed to the tree's
//! handles, and answered from the inventory.
//!
//! Owns: paths, DTOs, problems, the OpenAPI document, who may call.
//! Must not: decide anything about a VM, wait for an actor to read, or touch the
//! host; `HttpState` brings what was probed.
//! Look next: `edge.rs` for what every request passes, `openapi.rs` for the
//! list of routes, `routes/` for each, `metrics/` for what is counted, `serve.rs` for connections, and
//! `docs/life-of-a-request.md` for the whole way.

mod auth;
mod bearer;
mod dto;
mod edge;
mod error;
mod extract;
mod fields;
mod frames;
mod idempotency;
mod kept;
mod leash;
mod metrics;
mod openapi;
mod paging;
mod parameters;
mod refusal;
mod routes;
mod seats;
mod serve;
mod state;
mod turn;
mod waiting;

pub use auth::{Access, LocalCallers, Peer};
pub use dto::store::store_check;
pub use error::{ApiError, Code, ERROR_CODES, FieldError};
pub use metrics::{
    DiskUsage, GuestUsage, Kind, LinkUsage, METRICS, Metric, MetricsSources, ProcessUsage,
    UsageOfVm,
};
pub use openapi::openapi_yaml;
pub use serve::{Bounds, Listeners, serve, serve_within};
pub use state::{HttpSettings, HttpState, Limits, Readiness, Shared, StorageCheck};

use axum::{Router, http::Method, middleware};

/// The whole API.
pub fn router(state: HttpState) -> Router {
    openapi::routes()
        .fallback(|| async {
            ApiError::new(
                Code::NotFound,
                "there is no such path: /docs shows those that are",
            )
        })
        .method_not_allowed_fallback(|method: Method| async move {
            let detail = format!("this path does not know {method}: Allow names what it knows");
            ApiError::new(Code::MethodNotAllowed, detail)
        })
        .layer(middleware::from_fn_with_state(state.clone(), edge::edge))
        .with_state(state)
}
