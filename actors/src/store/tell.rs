//! One log record for each committed event: the log and the event log say the
//! same, with the same words.
//!
//! Must not: wait, or tell what is not durable.

use vman_model::{Event, EventKind, Origin, Subject, vm::Phase};

/// Tells a committed event.
// A new kind of subject is told without an id until it gets one here.
#[allow(clippy::match_wildcard_for_single_variants)]
pub(super) fn tell(event: &Event) {
    let what = &event.what;
    let (vm_id, disk_id, name) = match &what.subject {
        Subject::Vm(id) => (Some(id.as_str()), None, None),
        Subject::Disk(id) => (None, Some(id.as_str()), None),
        Subject::Template(name) => (None, None, Some(name.as_str())),
        Subject::Image(name) => (None, None, Some(name.as_str())),
        Subject::Token(name) => (None, None, Some(name.as_str())),
        Subject::Network(name) => (None, None, Some(name.as_str())),
        Subject::Daemon => (None, None, None),
    };
    let (request_id, principal, remote) = match &what.cause.origin {
        Origin::Request {
            request_id,
            principal,
            remote,
        } => (Some(request_id.as_str()), Some(principal.as_str()), *remote),
        _ => (None, None, None),
    };
    // Levels are fixed where they stand, so each has a line of its own.
    macro_rules! record {
        ($level:ident) => {
            tracing::$level!(
                event = what.kind.as_str(),
                component = component(&what.subject),
                revision = event.revision.0,
                vm_id,
                disk_id,
                name,
                incarnation = what.incarnation.map(|incarnation| incarnation.0),
                from = what.from.map(Phase::as_str),
                phase = what.to.map(Phase::as_str),
                reason = what.reason.map(|reason| reason.as_str()),
                cause = what.cause.input,
                origin = what.cause.origin.as_str(),
                led_by = what.cause.led_by.map(|revision| revision.0),
                operation_id = what.operation.as_ref().map(|id| id.as_str()),
                request_id,
                principal,
                remote = remote.map(tracing::field::display),
                detail = what.detail,
                "{}",
                message(what.kind, what.to)
            )
        };
    }
    match (what.kind, what.to) {
        (EventKind::VmPhaseChanged, Some(Phase::Failed)) | (EventKind::RecordQuarantined, _) => {
            record!(warn);
        }
        // What happens within a phase is for who looks closely.
        (EventKind::VmUpdated, _) => record!(debug),
        _ => record!(info),
    }
}

/// The actor whose decision it was.
#[allow(clippy::match_wildcard_for_single_variants)]
fn component(subject: &Subject) -> &'static str {
    match subject {
        Subject::Vm(_) => "vm",
        Subject::Template(_) => "templates",
        Subject::Image(_) | Subject::Disk(_) => "disks",
        _ => "daemon",
    }
}

/// Constant for each class of event: what differs is in the fields.
fn message(kind: EventKind, to: Option<Phase>) -> &'static str {
    match kind {
        EventKind::VmPhaseChanged if to == Some(Phase::Failed) => "VM failed",
        EventKind::VmPhaseChanged => "VM changed phase",
        EventKind::VmUpdated => "VM updated",
        EventKind::VmCreated => "VM created",
        EventKind::VmErased => "VM erased",
        EventKind::DaemonReady => "VMAN is ready",
        EventKind::RecordQuarantined => "a record could not be read and was set aside",
        // The others say it in their word.
        other => other.as_str(),
    }
}
