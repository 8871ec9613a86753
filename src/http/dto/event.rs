//! Events in the API.

use super::Time;
use serde::Serialize;
use utoipa::ToSchema;
use vman_model::{Event, OperationId, Origin, Revision, Subject, vm::Phase, vm::Reason};

/// Why something changed.
#[derive(Serialize, ToSchema)]
#[schema(as = Cause)]
pub(crate) struct CauseBody<'a> {
    /// Where it came from: `request`, `qmp`, `process`, `effect`, `timer`,
    /// `restart_policy`, `recovery`, `observer` or `daemon`.
    origin: &'static str,
    /// The input in one stable word (`start`, `exited`).
    input: &'a str,
    /// The request.
    request_id: Option<&'a str>,
    /// Who called.
    principal: Option<&'a str>,
    /// From where, over TCP.
    remote: Option<String>,
    /// The earlier change that led to it.
    led_by: Option<u64>,
}

/// Why a VM is in its state.
#[derive(Serialize, ToSchema)]
#[schema(as = Explanation)]
pub(crate) struct ExplanationBody<'a> {
    /// The VM.
    pub(crate) vm_id: &'a str,
    /// The story in one sentence, from the present phase back to what set it
    /// off: `stopped ← QEMU was killed by signal 9`.
    pub(crate) summary: String,
    /// The chain of events, newest first, each with its cause.
    pub(crate) events: Vec<EventBody<'a>>,
}

/// A recorded change as server-sent events have it.
#[derive(ToSchema)]
#[allow(dead_code, reason = "its fields are the document")]
pub(crate) struct StreamedEvent {
    /// The revision of the change.
    id: String,
    /// Its class (`vm.phase_changed`).
    event: String,
    /// The change itself as JSON: an `Event`.
    data: String,
}

/// A recorded change.
#[derive(Serialize, ToSchema)]
#[schema(as = Event)]
pub(crate) struct EventBody<'a> {
    /// The revision of the change; its id in the stream.
    revision: u64,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    at: Time,
    /// Its class (`vm.phase_changed`).
    kind: &'static str,
    /// The VM it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    vm_id: Option<&'a str>,
    /// The template it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    template_name: Option<&'a str>,
    /// The image it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    image_name: Option<&'a str>,
    /// The disk it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_id: Option<&'a str>,
    /// The token it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_name: Option<&'a str>,
    /// The phase left.
    from: Option<&'static str>,
    /// The phase entered.
    to: Option<&'static str>,
    /// The VM's reason after the change.
    reason: Option<&'static str>,
    /// What happened, in a sentence.
    detail: &'a str,
    /// The life of the VM's QEMU it belongs to.
    incarnation: Option<u64>,
    /// The operation it belongs to.
    operation_id: Option<&'a str>,
    /// Why.
    cause: CauseBody<'a>,
    /// The previous event about the same VM.
    previous: Option<u64>,
}

impl<'a> EventBody<'a> {
    pub(crate) fn of(event: &'a Event) -> Self {
        let what = &event.what;
        let (mut vm_id, mut template_name, mut image_name, mut disk_id) = (None, None, None, None);
        let mut token_name = None;
        match &what.subject {
            Subject::Vm(id) => vm_id = Some(id.as_str()),
            Subject::Template(name) => template_name = Some(name.as_str()),
            Subject::Image(name) => image_name = Some(name.as_str()),
            Subject::Disk(id) => disk_id = Some(id.as_str()),
            Subject::Token(name) => token_name = Some(name.as_str()),
            Subject::Daemon | Subject::Network(_) => {}
        }
        let (request_id, principal, remote) = match &what.cause.origin {
            Origin::Request {
                request_id,
                principal,
                remote,
            } => (Some(request_id.as_str()), Some(principal.as_str()), *remote),
            _ => (None, None, None),
        };
        let number = |revision: Revision| revision.0;
        Self {
            revision: event.revision.0,
            at: Time(what.at),
            kind: what.kind.as_str(),
            vm_id,
            template_name,
            image_name,
            disk_id,
            token_name,
            from: what.from.map(Phase::as_str),
            to: what.to.map(Phase::as_str),
            reason: what.reason.map(Reason::as_str),
            detail: &what.detail,
            incarnation: what.incarnation.map(|incarnation| incarnation.0),
            operation_id: what.operation.as_ref().map(OperationId::as_str),
            cause: CauseBody {
                origin: what.cause.origin.as_str(),
                input: &what.cause.input,
                request_id,
                principal,
                remote: remote.map(|remote| remote.to_string()),
                led_by: what.cause.led_by.map(number),
            },
            previous: what.previous.map(number),
        }
    }
}
