//! `Idempotency-Key`: the same key and request gives the same answer again.
//!
//! The key is committed together with its effect, so a client that lost the
//! answer (its network, or the daemon, went away) may simply ask again.
//! Must not: remember anything that is not in the store but the keys of
//! requests under way.

use super::{
    error::{ApiError, Code},
    extract::Post,
    refusal::key_in_flight,
    state::HttpState,
};
use sha2::{Digest, Sha256};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use vman_model::{IdempotencyKey, IdempotencyRecord, UnixMs, change::IdempotentAnswer};

/// Keys of requests under way.
#[derive(Clone, Default)]
pub(crate) struct KeysInFlight(Arc<Mutex<HashSet<IdempotencyKey>>>);

impl KeysInFlight {
    fn lock(&self) -> MutexGuard<'_, HashSet<IdempotencyKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A key that this request is the first to use.
pub(crate) struct KeyTurn {
    key: IdempotencyKey,
    fingerprint: [u8; 32],
    keys: KeysInFlight,
}

impl Drop for KeyTurn {
    fn drop(&mut self) {
        self.keys.lock().remove(&self.key);
    }
}

impl KeyTurn {
    /// The key and its request's fingerprint.
    pub(crate) fn pair(&self) -> (IdempotencyKey, [u8; 32]) {
        (self.key.clone(), self.fingerprint)
    }

    /// What is committed with the effect.
    pub(crate) fn record(&self, answer: IdempotentAnswer, now: UnixMs) -> IdempotencyRecord {
        IdempotencyRecord {
            key: self.key.clone(),
            fingerprint: self.fingerprint,
            answer,
            created_at: now,
        }
    }

    /// What the key answers by now, if it was used meanwhile.
    pub(crate) fn used_meanwhile(&self, state: &HttpState) -> Result<IdempotentAnswer, ApiError> {
        remembered(state, &self.key, &self.fingerprint)?.ok_or_else(key_in_flight)
    }
}

/// What a request's key says.
pub(crate) enum Keyed {
    /// It has none.
    Without,
    /// It is the first under its key.
    First(KeyTurn),
    /// It was answered before.
    Replay(IdempotentAnswer),
}

/// Looks at a request's key.
pub(crate) fn look(state: &HttpState, post: &Post) -> Result<Keyed, ApiError> {
    let mut given = post.headers.get_all("idempotency-key").iter();
    let Some(value) = given.next() else {
        return Ok(Keyed::Without);
    };
    let malformed = || {
        ApiError::new(
            Code::MalformedHeader,
            "Idempotency-Key must be given once, with 1 to 128 visible ASCII characters",
        )
    };
    if given.next().is_some() {
        return Err(malformed());
    }
    let text = value.to_str().map_err(|_| malformed())?;
    let key = IdempotencyKey::parse(text).map_err(|_| malformed())?;
    let fingerprint = fingerprint(post);
    // First the turn, then the look: the other way round an answer that comes
    // in between would be missed.
    if !state.keys.lock().insert(key.clone()) {
        return Err(key_in_flight());
    }
    let turn = KeyTurn {
        key,
        fingerprint,
        keys: state.keys.clone(),
    };
    let answer = remembered(state, &turn.key, &turn.fingerprint)?;
    Ok(answer.map_or_else(|| Keyed::First(turn), Keyed::Replay))
}

fn remembered(
    state: &HttpState,
    key: &IdempotencyKey,
    fingerprint: &[u8; 32],
) -> Result<Option<IdempotentAnswer>, ApiError> {
    let inventory = state.inventory();
    let Some(record) = inventory.idempotency.get(key) else {
        return Ok(None);
    };
    if record.fingerprint == *fingerprint {
        return Ok(Some(record.answer.clone()));
    }
    Err(ApiError::new(
        Code::KeyReused,
        "this Idempotency-Key was used for another request: use a fresh key for each piece of work",
    ))
}

fn fingerprint(post: &Post) -> [u8; 32] {
    let mut hash = Sha256::new();
    let target = post
        .uri
        .path_and_query()
        .map_or("", |target| target.as_str());
    for part in [
        post.method.as_str().as_bytes(),
        target.as_bytes(),
        &post.bytes,
    ] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// What was made under the key is gone by now.
pub(crate) fn result_gone(what: &str) -> ApiError {
    ApiError::new(
        Code::KeyResultGone,
        format!(
            "this request was carried out before, and the {what} it made is gone since: \
                 use a fresh Idempotency-Key to make another"
        ),
    )
}
