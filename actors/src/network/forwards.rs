//! Forwarded ports: made and erased in the store; the NetworkActor makes the
//! host follow.

use crate::{
    ports::{Clock, NetworkFacts},
    store::{StoreError, StoreHandle},
};
use vman_model::{
    Cause, Change, EventDraft, EventKind, ForwardId, ForwardRecord, Guard, IdempotencyKey,
    IdempotencyRecord, Origin, Protocol, Subject, VmId, Write, change::IdempotentAnswer,
    vm::NetworkKind,
};

/// The most forwarded ports: each is a rule that packets to this host meet.
pub const MAX_FORWARDS: usize = 4_096;

/// What is to be forwarded.
#[derive(Clone, Debug)]
pub struct NewForward {
    /// Where it leads.
    pub vm: VmId,
    /// What.
    pub protocol: Protocol,
    /// The port on the host.
    pub host_port: u16,
    /// The port in the guest.
    pub guest_port: u16,
    /// Who asks.
    pub origin: Origin,
    /// The client's key with the fingerprint of its request.
    pub idempotency: Option<(IdempotencyKey, [u8; 32])>,
}

/// Why a port was not forwarded, or still is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// VMs have no network.
    #[error("VMs have no network that ports could lead into")]
    NoNetwork,
    /// There is no such VM.
    #[error("there is no VM named {0}")]
    NoVm(VmId),
    /// The port of the host leads elsewhere.
    #[error("{0} leads into a VM already")]
    Exists(ForwardId),
    /// Nothing of this id is forwarded.
    #[error("there is no forward named {0}")]
    NotFound(ForwardId),
    /// There are too many.
    #[error("there are {MAX_FORWARDS} forwards already")]
    TooMany,
    /// The idempotency key was used meanwhile.
    #[error("the idempotency key was used meanwhile")]
    KeyInUse,
    /// The store.
    #[error(transparent)]
    Store(StoreError),
}

pub(super) async fn create(
    store: &StoreHandle,
    clock: &dyn Clock,
    facts: &NetworkFacts,
    new: NewForward,
) -> Result<ForwardRecord, ForwardError> {
    if facts.kind == NetworkKind::None {
        return Err(ForwardError::NoNetwork);
    }
    if store.inventory().forwards.len() >= MAX_FORWARDS {
        return Err(ForwardError::TooMany);
    }
    let record = ForwardRecord {
        id: ForwardRecord::id_of(new.protocol, new.host_port),
        vm_id: new.vm.clone(),
        protocol: new.protocol,
        host_port: new.host_port,
        guest_port: new.guest_port,
        created_at: clock.now(),
    };
    let detail = format!(
        "{} port {} of the host leads to port {} of VM {}",
        record.protocol.as_str(),
        record.host_port,
        record.guest_port,
        record.vm_id
    );
    let mut change = Change {
        guards: vec![
            Guard::VmPresent(new.vm),
            Guard::ForwardAbsent(record.id.clone()),
        ],
        writes: vec![Write::PutForward(record.clone())],
        event: Some(event(clock, EventKind::ForwardCreated, detail, new.origin)),
    };
    if let Some((key, fingerprint)) = new.idempotency {
        change.guards.push(Guard::KeyUnused(key.clone()));
        change.writes.push(Write::PutIdempotency(IdempotencyRecord {
            key,
            fingerprint,
            answer: IdempotentAnswer::Forward(record.id.clone()),
            created_at: clock.now(),
        }));
    }
    store.commit(change).await.map_err(told)?;
    Ok(record)
}

pub(super) async fn erase(
    store: &StoreHandle,
    clock: &dyn Clock,
    id: &ForwardId,
    origin: Origin,
) -> Result<(), ForwardError> {
    let detail = format!("{id} of the host leads nowhere any more");
    let change = Change {
        guards: vec![Guard::ForwardPresent(id.clone())],
        writes: vec![Write::EraseForward(id.clone())],
        event: Some(event(clock, EventKind::ForwardDeleted, detail, origin)),
    };
    store.commit(change).await.map_err(told)?;
    Ok(())
}

fn told(error: StoreError) -> ForwardError {
    match error {
        StoreError::Conflict(Guard::VmPresent(id)) => ForwardError::NoVm(id),
        StoreError::Conflict(Guard::ForwardAbsent(id)) => ForwardError::Exists(id),
        StoreError::Conflict(Guard::ForwardPresent(id)) => ForwardError::NotFound(id),
        StoreError::Conflict(Guard::KeyUnused(_)) => ForwardError::KeyInUse,
        error => ForwardError::Store(error),
    }
}

fn event(clock: &dyn Clock, kind: EventKind, detail: String, origin: Origin) -> EventDraft {
    super::event(clock, kind, detail, Cause::new(origin, "forward"))
}

pub(super) fn subject() -> Subject {
    Subject::Network("default".to_owned())
}
