//! `/metrics`: what VMAN counts about itself and its VMs, for Prometheus.
//!
//! Owns: the catalogue of metrics, their text, the counting of requests.
//! Must not: ask an actor or a QEMU anything (a hung VM never delays a scrape),
//! or let a client make a label.
//! Look next: `catalogue.rs` for what there is, `collect.rs` for where it comes
//! from, `docs/metrics.md` for people.

mod catalogue;
mod collect;
mod text;

pub use catalogue::{Kind, METRICS, Metric};

use super::{error::ProblemBody, state::HttpState};
use axum::{
    extract::State,
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};
use tokio::sync::Mutex;
use vman_actors::meters::{Counter, Family, Histogram};
use vman_model::{Capacity, vm::ProcessIdentity};

/// How long a collected text is good for: however many ask, the host is looked
/// at once in this time.
const FRESH: Duration = Duration::from_secs(1);

/// What a process has used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessUsage {
    /// Time on the host's CPUs.
    pub cpu: Duration,
    /// Resident memory, in bytes.
    pub rss_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Bytes read from and written to storage, where it may be known.
    pub storage: Option<(u64, u64)>,
}

/// What one disk of a guest has done since the VM's QEMU was started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// The disk's id.
    pub disk: String,
    /// Bytes read and written.
    pub bytes: (u64, u64),
    /// Requests to read, to write and to flush.
    pub requests: (u64, u64, u64),
}

/// What a guest holds and has done, as its QEMU counts it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestUsage {
    /// The VM's id.
    pub vm: String,
    /// Memory the guest holds by its balloon, in bytes.
    pub balloon: Option<u64>,
    /// Its disks.
    pub disks: Vec<DiskUsage>,
}

/// What went through a link of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkUsage {
    /// Bytes that the host received from it and sent to it.
    pub bytes: (u64, u64),
    /// The same in packets.
    pub packets: (u64, u64),
}

/// Looks at a VM's QEMU.
pub type UsageOfVm = Arc<dyn Fn(&ProcessIdentity) -> Option<ProcessUsage> + Send + Sync>;

/// What the daemon's other parts tell for the metrics.
#[derive(Clone)]
pub struct MetricsSources {
    /// What a VM's QEMU has used; none once it is gone. May block for a moment.
    pub vm: UsageOfVm,
    /// What the guests said last. Never waits for one.
    pub guests: Arc<dyn Fn() -> Vec<GuestUsage> + Send + Sync>,
    /// What went through the host's links, by name.
    pub links: Arc<dyn Fn() -> BTreeMap<String, LinkUsage> + Send + Sync>,
    /// What the host has for VMs; none of a simulated one.
    pub host: Option<Capacity>,
    /// What the daemon itself has used.
    pub own: Arc<dyn Fn() -> Option<ProcessUsage> + Send + Sync>,
    /// Log records dropped, by destination.
    pub dropped_records: Arc<dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync>,
    /// How long QMP commands took.
    pub qmp: Arc<Family<Histogram, 2>>,
    /// How long recovery took, once it is done.
    pub recovery: Arc<OnceLock<Duration>>,
}

impl Default for MetricsSources {
    /// Nothing is known.
    fn default() -> Self {
        Self {
            vm: Arc::new(|_| None),
            guests: Arc::new(Vec::new),
            links: Arc::new(BTreeMap::new),
            host: None,
            own: Arc::new(|| None),
            dropped_records: Arc::new(Vec::new),
            qmp: Arc::default(),
            recovery: Arc::default(),
        }
    }
}

/// What the front end counts, and the last collection.
#[derive(Default)]
pub(crate) struct HttpMeters {
    requests: Family<Counter, 3>,
    times: Family<Histogram, 2>,
    collected: Mutex<Option<(Instant, Arc<str>)>>,
}

impl HttpMeters {
    /// Counts an answered request.
    pub(crate) fn answered(&self, method: &Method, route: &str, status: u16, took: Duration) {
        let method = known(method);
        let status = status.to_string();
        self.requests.with([method, route, &status]).inc();
        self.times.with([method, route]).observe(took);
    }
}

/// A client may invent methods; a label is one of these.
fn known(method: &Method) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS"];
    let known = KNOWN.iter().find(|known| *known == &method.as_str());
    known.copied().unwrap_or("other")
}

/// The metrics, for Prometheus
#[utoipa::path(
    get, path = "/metrics", tag = "health",
    responses(
        (status = 200, description = "In Prometheus's text format 0.0.4", body = String, content_type = "text/plain"),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn metrics(State(state): State<HttpState>) -> Response {
    let text = collected(&state).await;
    let kind = [(header::CONTENT_TYPE, text::CONTENT_TYPE)];
    (StatusCode::OK, kind, text.to_string()).into_response()
}

/// The text, made anew if the last one is too old. One at a time: who comes
/// meanwhile gets the same.
async fn collected(state: &HttpState) -> Arc<str> {
    let mut last = state.meters.collected.lock().await;
    if let Some((at, text)) = &*last
        && at.elapsed() < FRESH
    {
        return text.clone();
    }
    let looking = state.clone();
    let made = tokio::task::spawn_blocking(move || collect::collect(&looking)).await;
    // A panic there has been told by the panic hook; a scrape without figures is seen by who scrapes.
    let text: Arc<str> = made.unwrap_or_default().into();
    *last = Some((Instant::now(), text.clone()));
    text
}
