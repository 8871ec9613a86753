//! What every request passes: its id, who calls, a permit, its span, the panic
//! net, and the rendering of refusals.
//!
//! Must not: know any route, except that `/live` needs no permit.

use super::{
    auth::{Call, Peer},
    bearer,
    error::{ApiError, Code},
    extract::Caller,
    leash,
    state::HttpState,
    turn::in_turn,
};
use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use std::{
    fmt::Write as _,
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};
use tokio::sync::OwnedSemaphorePermit;
use tracing::{Instrument, Span, field};
use vman_model::{RequestId, TokenId};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The one middleware around every route.
pub(crate) async fn edge(
    State(state): State<HttpState>,
    mut request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    let id = request_id(&state, request.headers());
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("(none)", MatchedPath::as_str)
        .to_owned();
    // The record of a change has all that an audit asks: who, from where, what, the request, and
    // in its last line the result.
    let span = if is_read(&method) {
        tracing::debug_span!("request", request_id = %id, %method, route = %route, principal = field::Empty, remote = field::Empty)
    } else {
        tracing::info_span!("request", request_id = %id, %method, route = %route, principal = field::Empty, remote = field::Empty)
    };
    if let Some(Peer::Tcp { remote, .. }) = request.extensions().get::<Peer>() {
        span.record("remote", field::display(remote));
    }
    let answered = async {
        match admit(&state, &mut request, &id) {
            Ok(entry) => {
                let answering = AssertUnwindSafe(next.run(request)).catch_unwind();
                let answer = if is_read(&method) {
                    answering.await
                } else {
                    in_turn(&state.turns, answering).await
                };
                let answer = answer.unwrap_or_else(|_| panicked());
                match entry.token {
                    Some(token) => leash::hold(answer, token, state.clone()),
                    None => answer,
                }
            }
            Err(error) => error.into_response(),
        }
    };
    let response = answered.instrument(span.clone()).await;
    let response = render(response, &id);
    let (status, took) = (response.status().as_u16(), began.elapsed());
    state.meters.answered(&method, &route, status, took);
    span.in_scope(|| tell(&method, status, took));
    response
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// The client's own id if it is a valid one, else a fresh one.
fn request_id(state: &HttpState, headers: &HeaderMap) -> RequestId {
    let given = headers.get(X_REQUEST_ID).and_then(|id| id.to_str().ok());
    if let Some(id) = given.and_then(|id| RequestId::parse(id).ok()) {
        return id;
    }
    let mut id = "req-".to_owned();
    for byte in &state.handles().clock.random()[..10] {
        let _ = write!(id, "{byte:02x}");
    }
    RequestId::parse(&id).expect("hex and a hyphen are an id")
}

/// What a request holds while it is answered.
struct Entry {
    /// None for what needs none.
    _permit: Option<OwnedSemaphorePermit>,
    /// The token that let it in.
    token: Option<TokenId>,
}

fn admit(state: &HttpState, request: &mut Request, id: &RequestId) -> Result<Entry, ApiError> {
    let peer = request.extensions().get::<Peer>();
    let now = state.handles().clock.now();
    let call = Call {
        peer,
        method: request.method(),
        uri: request.uri(),
        headers: request.headers(),
    };
    let remote = peer.and_then(Peer::address);
    let access = &state.settings.access;
    let admitted = access.admit(&call, || {
        bearer::holder(&state.inventory(), request.headers(), now)
    })?;
    let principal = admitted.principal;
    let token = admitted.token.as_ref().map(|holder| holder.id.clone());
    Span::current().record("principal", &principal);
    if let Some(holder) = admitted.token
        && state.token_uses.is_due(&holder, now)
    {
        let store = state.handles().store.clone();
        tokio::spawn(async move {
            if let Err(error) = vman_actors::tokens::used(&store, &holder.id, now).await {
                tracing::debug!(%error, "cannot record that a token was used");
            }
        });
    }
    request.extensions_mut().insert(Caller {
        request_id: id.clone(),
        principal,
        remote,
    });
    // A supervisor that asks whether the daemon lives must hear it under load.
    if request.uri().path() == "/live" {
        return Ok(Entry {
            _permit: None,
            token,
        });
    }
    let permit = state.inflight.clone().try_acquire_owned();
    let permit = permit.map_err(|_| {
        ApiError::new(
            Code::Overloaded,
            "too many requests are under way, this one was not begun: try again in a moment",
        )
    })?;
    Ok(Entry {
        _permit: Some(permit),
        token,
    })
}

fn panicked() -> Response {
    // The panic hook has told where; the client is told which request.
    tracing::error!("a request handler panicked");
    ApiError::new(
        Code::Internal,
        "VMAN failed to answer this request; this is a bug, and its log tells more under the request's id",
    )
    .into_response()
}

/// Gives a refusal its body and every answer its request id.
fn render(mut response: Response, id: &RequestId) -> Response {
    if let Some(error) = response.extensions_mut().remove::<Box<ApiError>>() {
        let mut rendered = error.render(id.as_str());
        for name in [header::ALLOW, header::ETAG] {
            if let Some(value) = response.headers_mut().remove(&name) {
                rendered.headers_mut().insert(name, value);
            }
        }
        response = rendered;
    }
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(X_REQUEST_ID, value);
    }
    response
}

fn tell(method: &Method, status: u16, took: Duration) {
    let duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    if is_read(method) {
        tracing::debug!(
            event = "request.answered",
            status,
            duration_us,
            "request answered"
        );
    } else {
        tracing::info!(
            event = "request.answered",
            status,
            duration_us,
            "request answered"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::AuthMode,
        http::{Access, HttpSettings, Limits, MetricsSources, Readiness},
    };
    use axum::{Router, body::Body, middleware, routing::get};
    use std::sync::Arc;
    use tower::ServiceExt;
    use vman_actors::{Tree, TreeSettings, fakes::FakeHost};

    async fn state() -> HttpState {
        let settings = TreeSettings {
            max_vms: 1,
            max_launches: 1,
            allowance: vman_model::Allowance::default(),
            observer_interval: Duration::from_secs(5),
            drift: vman_actors::observer::DriftSettings::default(),
        };
        let tree = Tree::start(FakeHost::new().ports(), &settings)
            .await
            .unwrap();
        HttpState::new(HttpSettings {
            readiness: Readiness {
                done: tokio::sync::watch::channel(true).1,
                recovery: tree.recovery.clone(),
            },
            probe: tree.handles.hypervisor.probe().await,
            handles: tree.handles.clone(),
            storage_check: Arc::new(|| Ok(())),
            access: Access::new(AuthMode::None),
            limits: Limits::default(),
            default_boot_disk: None,
            metrics: MetricsSources::default(),
            log: crate::telemetry::LogReader::default(),
            shutdown: tokio_util::sync::CancellationToken::new(),
        })
    }

    #[tokio::test]
    async fn a_handler_that_panics_answers_500_and_gives_its_permit_back() {
        let state = state().await;
        let free = state.inflight.available_permits();
        let router: Router = Router::new()
            .route(
                "/boom",
                get(|| async { std::panic::resume_unwind(Box::new("boom")) as () }),
            )
            .layer(middleware::from_fn_with_state(state.clone(), edge));
        let mut request = Request::builder().uri("/boom").body(Body::empty()).unwrap();
        request
            .extensions_mut()
            .insert(Peer::Local { uid: 0, gid: 0 });
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.status(), 500);
        assert_eq!(
            response.headers()["content-type"],
            "application/problem+json"
        );
        assert!(response.headers().contains_key("x-request-id"));
        assert_eq!(state.inflight.available_permits(), free);
    }
}
