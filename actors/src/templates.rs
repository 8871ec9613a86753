//! Templates are plain rows: no actor owns them, the store's guards do.

use crate::store::{StoreError, StoreHandle};
use vman_model::{
    Cause, Change, EventDraft, EventKind, Guard, IdempotencyKey, IdempotencyRecord, ImageName,
    Origin, Subject, TemplateName, TemplateRecord, UnixMs, VmId, Write, change::IdempotentAnswer,
};

/// Why a template was not made or deleted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The name is taken.
    #[error("a template named {0} exists")]
    Exists(TemplateName),
    /// An image that it boots was deleted meanwhile.
    #[error("no image named {0}")]
    NoImage(ImageName),
    /// No template of that name.
    #[error("no template named {0}")]
    NotFound(TemplateName),
    /// VMs were made from it.
    #[error("template {name} is used by {} VM(s), among them {}", vms.len(), first_few(vms))]
    InUse {
        /// The template.
        name: TemplateName,
        /// The VMs.
        vms: Vec<VmId>,
    },
    /// The idempotency key was used meanwhile.
    #[error("the idempotency key was used meanwhile")]
    KeyInUse,
    /// The store.
    #[error(transparent)]
    Store(StoreError),
}

fn first_few(vms: &[VmId]) -> String {
    let names: Vec<_> = vms.iter().take(5).map(VmId::as_str).collect();
    names.join(", ")
}

/// Makes a template. `Ok` means that it is durable.
pub async fn create(
    store: &StoreHandle,
    record: TemplateRecord,
    origin: Origin,
    idempotency: Option<(IdempotencyKey, [u8; 32])>,
) -> Result<(), TemplateError> {
    let name = record.name.clone();
    let now = record.created_at;
    let mut guards = vec![Guard::TemplateAbsent(name.clone())];
    guards.extend(record.size.images().cloned().map(Guard::ImagePresent));
    let mut change = Change {
        guards,
        writes: vec![Write::PutTemplate(record)],
        event: Some(event(&name, EventKind::TemplateCreated, origin, now)),
    };
    if let Some((key, fingerprint)) = idempotency {
        change.guards.push(Guard::KeyUnused(key.clone()));
        change.writes.push(Write::PutIdempotency(IdempotencyRecord {
            key,
            fingerprint,
            answer: IdempotentAnswer::Template(name),
            created_at: now,
        }));
    }
    commit(store, change).await
}

/// Deletes a template that no VM uses.
pub async fn delete(
    store: &StoreHandle,
    name: TemplateName,
    origin: Origin,
    now: UnixMs,
) -> Result<(), TemplateError> {
    let guards = vec![
        Guard::TemplatePresent(name.clone()),
        Guard::TemplateUnused(name.clone()),
    ];
    let event = Some(event(&name, EventKind::TemplateDeleted, origin, now));
    let change = Change {
        guards,
        writes: vec![Write::EraseTemplate(name)],
        event,
    };
    commit(store, change).await
}

async fn commit(store: &StoreHandle, change: Change) -> Result<(), TemplateError> {
    match store.commit(change).await {
        Ok(_) => Ok(()),
        Err(StoreError::Conflict(Guard::TemplateAbsent(name))) => Err(TemplateError::Exists(name)),
        Err(StoreError::Conflict(Guard::ImagePresent(name))) => Err(TemplateError::NoImage(name)),
        Err(StoreError::Conflict(Guard::TemplatePresent(name))) => {
            Err(TemplateError::NotFound(name))
        }
        Err(StoreError::Conflict(Guard::TemplateUnused(name))) => {
            let vms = store.inventory().vms_of_template(&name).cloned().collect();
            Err(TemplateError::InUse { name, vms })
        }
        Err(StoreError::Conflict(Guard::KeyUnused(_))) => Err(TemplateError::KeyInUse),
        Err(error) => Err(TemplateError::Store(error)),
    }
}

fn event(name: &TemplateName, kind: EventKind, origin: Origin, now: UnixMs) -> EventDraft {
    let done = if kind == EventKind::TemplateCreated {
        "made"
    } else {
        "deleted"
    };
    EventDraft::new(
        now,
        Subject::Template(name.clone()),
        kind,
        format!("template {name} was {done}"),
        Cause::new(origin, kind.as_str()),
    )
}
