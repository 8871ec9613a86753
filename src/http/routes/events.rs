//! Events: as a stream that can be resumed, or as an array.
//!
//! Each stream has a task that reads the log from where its client is; what
//! waits for a client is bounded, and one that does not read is cut: it comes
//! back with `Last-Event-ID` and has missed nothing.

use crate::http::{
    dto::event::{EventBody, StreamedEvent},
    error::{ApiError, Code, ProblemBody},
    extract::Query,
    paging::{json, next_link},
    state::HttpState,
};
use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use std::{convert::Infallible, time::Duration};
use tokio::sync::mpsc;
use vman_model::{Event, Revision, Subject, VmId};

/// Events read from the log at once, and the most of an array.
const BATCH: usize = 256;
const MAX_ARRAY: u64 = 1_000;
/// Events that may wait for one client.
const MAX_WAITING: usize = 64;
/// How long a client may let an event wait before it is cut.
const SLOW_READER: Duration = Duration::from_secs(10);
/// A line now and then, so that both ends notice a dead connection.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// What is asked for.
struct Wanted {
    since: Option<Revision>,
    vm: Option<VmId>,
    limit: u64,
}

impl Wanted {
    fn read(uri: &Uri, headers: &HeaderMap, present: Revision) -> Result<Self, ApiError> {
        let mut query = Query::of(uri)?;
        let since = query.whole("since", 0..=u64::MAX);
        let vm = query.parsed("vm_id", |text| VmId::parse(text).ok(), "the id of a VM");
        let limit = query.whole("limit", 1..=MAX_ARRAY).unwrap_or(MAX_ARRAY);
        query.finish()?;
        // A browser repeats the address with its old `since` when it comes back.
        let last =
            match headers.get("last-event-id") {
                Some(id) => Some(id.to_str().ok().and_then(|id| id.parse().ok()).ok_or_else(
                    || ApiError::new(Code::BadCursor, "Last-Event-ID must be the id of an event"),
                )?),
                None => since,
            };
        if last.is_some_and(|last| last > present.0) {
            return Err(ApiError::new(
                Code::BadCursor,
                format!("the log ends at {present}: what comes after a later event is not known"),
            ));
        }
        Ok(Self {
            since: last.map(Revision),
            vm,
            limit,
        })
    }

    fn wants(&self, event: &Event) -> bool {
        let of_vm = |vm: &VmId| event.what.subject == Subject::Vm(vm.clone());
        self.vm.as_ref().is_none_or(of_vm)
    }
}

/// What happened, as it happens
///
/// Server-sent events, each with its revision as id, from now on or after
/// `Last-Event-ID` or `since`. With `Accept: application/json` an array.
#[utoipa::path(
    get, path = "/events", tag = "events",
    params(
        ("since" = Option<u64>, Query, description = "Only events after this revision"),
        ("vm_id" = Option<String>, Query, description = "Only events about this VM"),
        ("limit" = Option<u64>, Query, description = "In an array at most this many, 1 to 1000"),
        ("Last-Event-ID" = Option<String>, Header, description = "The last event the client has seen"),
    ),
    responses(
        (status = 200, description = "Oldest first", content(
            (StreamedEvent = "text/event-stream"), (Vec<EventBody<'static>> = "application/json"),
        )),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_events(
    State(state): State<HttpState>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let wanted = Wanted::read(&uri, &headers, state.inventory().revision)?;
    if wants_array(&headers) {
        return array(&state, &uri, &wanted).await;
    }
    stream_events(state, wanted)
}

fn wants_array(headers: &HeaderMap) -> bool {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| {
        accept.contains("application/json") && !accept.contains("text/event-stream")
    })
}

async fn array(state: &HttpState, uri: &Uri, wanted: &Wanted) -> Result<Response, ApiError> {
    let limit = usize::try_from(wanted.limit).unwrap_or(usize::MAX);
    let since = wanted.since.unwrap_or_default();
    let events = state.handles().store.events().after(since, limit).await?;
    let next = events.last().filter(|_| events.len() == limit);
    let next = next.map(|event| event.revision.to_string());
    let kept = events.iter().filter(|event| wanted.wants(event));
    let body: Vec<_> = kept.map(|event| EventBody::of(event)).collect();
    let mut response = json(StatusCode::OK, &body);
    if let Some(link) = next.and_then(|next| next_link(uri, "since", &next)) {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

fn stream_events(state: HttpState, wanted: Wanted) -> Result<Response, ApiError> {
    let permit = state.waiting.clone().try_acquire_owned().map_err(|_| {
        ApiError::new(
            Code::Overloaded,
            "too many streams are open: close one, or try again later",
        )
    })?;
    let (events, waiting) = mpsc::channel(MAX_WAITING);
    tokio::spawn(pump(state, wanted, events));
    let stream = stream::unfold((waiting, permit), |(mut waiting, permit)| async move {
        let frame = match tokio::time::timeout(HEARTBEAT, waiting.recv()).await {
            Ok(frame) => frame?,
            Err(_) => Bytes::from_static(b":\n\n"),
        };
        Some((Ok::<_, Infallible>(frame), (waiting, permit)))
    });
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    Ok((headers, Body::from_stream(stream)).into_response())
}

/// Reads the log for one client until it goes, is too slow, or the daemon stops.
async fn pump(state: HttpState, wanted: Wanted, client: mpsc::Sender<Bytes>) {
    let store = &state.handles().store;
    let mut revision = store.watch();
    let mut since = wanted.since.unwrap_or_else(|| state.inventory().revision);
    loop {
        let present = *revision.borrow_and_update();
        loop {
            let events = match store.events().after(since, BATCH).await {
                Ok(events) => events,
                Err(error) => {
                    tracing::warn!(%error, "cannot read the event log for a stream");
                    return;
                }
            };
            let Some(last) = events.last() else { break };
            since = last.revision;
            for event in events.iter().filter(|event| wanted.wants(event)) {
                if !tell(&state, &client, event).await {
                    return;
                }
            }
        }
        // Changes without an event have been passed too.
        since = since.max(present);
        tokio::select! {
            changed = revision.changed() => if changed.is_err() { return },
            () = client.closed() => return,
            () = state.settings.shutdown.cancelled() => return,
        }
    }
}

async fn tell(state: &HttpState, client: &mpsc::Sender<Bytes>, event: &Event) -> bool {
    let Ok(frame) = state.frames.of(event) else {
        return false;
    };
    let sent = client.send_timeout(frame, SLOW_READER).await;
    if matches!(sent, Err(mpsc::error::SendTimeoutError::Timeout(_))) {
        tracing::warn!("a client does not read its events, its stream is cut");
    }
    sent.is_ok()
}
