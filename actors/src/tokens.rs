//! Bearer tokens, which are plain rows: no actor owns them, the store's guards do.
//!
//! Must not: see a secret. What comes here is a hash already.

use crate::store::{StoreError, StoreHandle};
use vman_model::{
    Cause, Change, EventDraft, EventKind, Guard, Origin, Subject, TokenId, TokenName, TokenRecord,
    UnixMs, Write,
};

/// Tokens that may be recorded; looking one up by its name goes through all.
pub const MAX_TOKENS: usize = 1_000;

/// Why a token was not made or revoked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The name is taken.
    #[error("a token named {0} exists")]
    Exists(TokenName),
    /// There are too many.
    #[error("there are {MAX_TOKENS} tokens")]
    TooMany,
    /// No token of that name.
    #[error("no token named {0}")]
    NotFound(TokenName),
    /// The store.
    #[error(transparent)]
    Store(StoreError),
}

/// Records a token. `Ok` means that it is durable and good from now on.
pub async fn create(
    store: &StoreHandle,
    record: TokenRecord,
    origin: Origin,
) -> Result<(), TokenError> {
    let (name, now) = (record.name.clone(), record.created_at);
    let change = Change {
        guards: vec![
            Guard::TokenAbsent(name.clone()),
            Guard::TokensBelow(MAX_TOKENS),
        ],
        event: Some(event(&name, EventKind::TokenCreated, origin, now)),
        writes: vec![Write::PutToken(record)],
    };
    match store.commit(change).await {
        Ok(_) => Ok(()),
        Err(StoreError::Conflict(Guard::TokenAbsent(name))) => Err(TokenError::Exists(name)),
        Err(StoreError::Conflict(Guard::TokensBelow(_))) => Err(TokenError::TooMany),
        Err(error) => Err(TokenError::Store(error)),
    }
}

/// Makes a token useless. `Ok` means that no request is let in by it any more.
pub async fn revoke(
    store: &StoreHandle,
    name: TokenName,
    origin: Origin,
    now: UnixMs,
) -> Result<(), TokenError> {
    let found = store.inventory().token_named(&name).cloned();
    let Some(row) = found else {
        return Err(TokenError::NotFound(name));
    };
    let id = row.value.id.clone();
    let change = Change {
        guards: vec![Guard::TokenPresent(id.clone())],
        event: Some(event(&name, EventKind::TokenRevoked, origin, now)),
        writes: vec![Write::EraseToken(id)],
    };
    match store.commit(change).await {
        Ok(_) => Ok(()),
        Err(StoreError::Conflict(_)) => Err(TokenError::NotFound(name)),
        Err(error) => Err(TokenError::Store(error)),
    }
}

/// Records that a token was used. Tells no event; a token revoked meanwhile stays revoked.
pub async fn used(store: &StoreHandle, id: &TokenId, now: UnixMs) -> Result<(), StoreError> {
    let found = store.inventory().tokens.get(id).cloned();
    let Some(row) = found else {
        return Ok(());
    };
    let change = Change {
        guards: vec![Guard::TokenPresent(id.clone())],
        writes: vec![Write::PutToken(TokenRecord {
            last_used_at: Some(now),
            ..row.value.clone()
        })],
        event: None,
    };
    match store.commit(change).await {
        Ok(_) | Err(StoreError::Conflict(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

fn event(name: &TokenName, kind: EventKind, origin: Origin, now: UnixMs) -> EventDraft {
    let done = if kind == EventKind::TokenCreated {
        "made"
    } else {
        "revoked"
    };
    EventDraft::new(
        now,
        Subject::Token(name.clone()),
        kind,
        format!("token {name} was {done}"),
        Cause::new(origin, kind.as_str()),
    )
}
