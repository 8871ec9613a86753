//! Whether the daemon lives, is ready, and is well.

use crate::http::{
    dto::host::{HealthBody, StatusBody},
    error::{ApiError, Code, ProblemBody},
    paging::json,
    state::HttpState,
};
use axum::{extract::State, http::StatusCode, response::Response};
use std::{collections::BTreeMap, time::Duration};

/// How long a check may take before that is what is wrong.
const CHECK_DEADLINE: Duration = Duration::from_secs(1);
/// How long a commit may wait for the disk before that is what is wrong: a busy one takes
/// some hundred milliseconds.
const SLOW_COMMIT: Duration = Duration::from_secs(2);

/// Whether the daemon lives
#[utoipa::path(
    get, path = "/live", tag = "health",
    responses((status = 200, description = "It lives", body = StatusBody))
)]
pub(crate) async fn live() -> Response {
    json(StatusCode::OK, &StatusBody { status: "ok" })
}

/// Whether recovery is done
#[utoipa::path(
    get, path = "/ready", tag = "health",
    responses(
        (status = 200, description = "Every VM is found again", body = StatusBody),
        (status = 503, description = "Not yet", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn ready(State(state): State<HttpState>) -> Result<Response, ApiError> {
    if state.settings.shutdown.is_cancelled() {
        let detail = "the daemon is stopping; guests run on";
        return Err(ApiError::new(Code::ShuttingDown, detail));
    }
    let readiness = &state.settings.readiness;
    if *readiness.done.borrow() {
        return Ok(json(StatusCode::OK, &StatusBody { status: "ok" }));
    }
    let left = readiness.recovery.left();
    let detail = format!("the daemon is recovering: {left} VMs are still looked for");
    Err(ApiError::new(Code::NotReady, detail))
}

/// Whether everything VMAN needs is well
#[utoipa::path(
    get, path = "/health", tag = "health",
    responses(
        (status = 200, description = "All is well", body = HealthBody),
        (status = 503, description = "Degraded; the checks say what", body = HealthBody),
    )
)]
pub(crate) async fn health(State(state): State<HttpState>) -> Response {
    let probe = &state.settings.probe;
    let told = |found: &Result<String, String>| match found {
        Ok(_) => "ok".to_owned(),
        Err(why) => why.clone(),
    };
    let checks = BTreeMap::from([
        ("store", store(&state)),
        ("storage", storage(&state).await),
        ("qemu", told(&probe.qemu)),
        ("qemu_img", told(&probe.qemu_img)),
        ("network", network(&state).await),
        ("observer", observer(&state)),
        ("manifests", manifests(&state)),
    ]);
    let well = checks.values().all(|check| check == "ok");
    let version = |found: &Result<String, String>| found.clone().unwrap_or_default();
    let body = HealthBody {
        status: if well { "ok" } else { "degraded" },
        service: "vman",
        version: env!("CARGO_PKG_VERSION"),
        checks,
        host: BTreeMap::from([
            ("qemu", version(&probe.qemu)),
            ("qemu_img", version(&probe.qemu_img)),
            ("accelerator", probe.accelerator.clone()),
            ("jail", probe.jail.clone()),
            ("tool_jail", probe.tool_jail.clone()),
        ]),
    };
    let status = if well {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    json(status, &body)
}

fn store(state: &HttpState) -> String {
    if !state.handles().store.is_running() {
        return "the store is being restarted: reads go on, changes are refused".to_owned();
    }
    if let Some(waits) = state.handles().store.commit_waits()
        && waits > SLOW_COMMIT
    {
        let seconds = waits.as_secs();
        return format!(
            "a commit has waited for the disk for {seconds} s: reads go on, changes wait for it"
        );
    }
    match state.inventory().quarantined.len() {
        0 => "ok".to_owned(),
        n => format!(
            "{n} records could not be read and were set aside: GET /observer/status names them"
        ),
    }
}

async fn storage(state: &HttpState) -> String {
    let check = state.settings.storage_check.clone();
    let looking = state.storage_look.clone().acquire_owned();
    let Ok(Ok(turn)) = tokio::time::timeout(CHECK_DEADLINE, looking).await else {
        return "the storage path does not answer".to_owned();
    };
    let checked = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        check()
    });
    match tokio::time::timeout(CHECK_DEADLINE, checked).await {
        Ok(Ok(Ok(()))) => "ok".to_owned(),
        Ok(Ok(Err(why))) => why,
        Ok(Err(_)) => "the check of the storage path failed".to_owned(),
        Err(_) => "the storage path does not answer".to_owned(),
    }
}

async fn network(state: &HttpState) -> String {
    match tokio::time::timeout(CHECK_DEADLINE, state.handles().network.health()).await {
        Ok(Ok(_)) => "ok".to_owned(),
        Ok(Err(why)) => why,
        Err(_) => "the network does not answer".to_owned(),
    }
}

fn manifests(state: &HttpState) -> String {
    match &state.handles().manifests.status().error {
        None => "ok".to_owned(),
        Some(why) => {
            format!("a lost store could not be made again as it is now: manifests lag: {why}")
        }
    }
}

fn observer(state: &HttpState) -> String {
    let handles = state.handles();
    if !handles.observer.is_running() {
        return "the observer is being restarted".to_owned();
    }
    let interval = u64::try_from(handles.observer.interval().as_millis()).unwrap_or(u64::MAX);
    let patience = interval.saturating_mul(3).saturating_add(10_000);
    match handles.observer.report().last_check_at {
        Some(at) if handles.clock.now().since(at) > patience => {
            "the observer's last check is too long ago".to_owned()
        }
        Some(_) | None => "ok".to_owned(),
    }
}
