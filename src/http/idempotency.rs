//! `Idempotency-Key`: the same key and request gives the same answer again.
//!
//! The key is committed together with its effect, so a client that lost the
//! answer (its network, or the daemon, went away) may simply ask again.
//! Must not: remember anything that is not in the store but the keys of
//! requests under way.

use super::{
    error::{ApiError, Code},
    extract::Post,
    paging::with_header,
    refusal::key_in_flight,
    state::HttpState,
};
use axum::{http::HeaderName, response::Response};
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

/// Answers a POST once under its key: a request that was answered before gets that
/// answer `again`; `work` does what is new, and commits the key together with it.
pub(crate) async fn once<A, W>(
    state: &HttpState,
    post: Post,
    again: impl FnOnce(IdempotentAnswer) -> A,
    work: impl FnOnce(Post, Option<Key>) -> W,
) -> Result<Response, ApiError>
where
    A: Future<Output = Result<Response, ApiError>>,
    W: Future<Output = Result<Response, ApiError>>,
{
    let turn = match look(state, &post)? {
        Keyed::Replay(answer) => return again(answer).await.map(replayed),
        Keyed::First(turn) => Some(turn),
        Keyed::Without => None,
    };
    let answer = work(post, turn.as_ref().map(|turn| turn.key.clone())).await;
    match (answer, turn) {
        // The store says that the key was used between our look and the commit.
        (Err(error), Some(turn)) if error.code == Code::KeyInFlight => {
            again(turn.used_meanwhile(state)?).await.map(replayed)
        }
        (answer, _) => answer,
    }
}

/// Marks an answer as given before.
fn replayed(response: Response) -> Response {
    let name = HeaderName::from_static("idempotency-replayed");
    with_header(response, name, "true")
}

/// A client's key with the fingerprint of its request.
#[derive(Clone)]
pub(crate) struct Key {
    key: IdempotencyKey,
    fingerprint: [u8; 32],
}

impl Key {
    /// Both, for whoever commits them.
    pub(crate) fn pair(self) -> (IdempotencyKey, [u8; 32]) {
        (self.key, self.fingerprint)
    }

    /// What is committed with the effect.
    pub(crate) fn record(self, answer: IdempotentAnswer, now: UnixMs) -> IdempotencyRecord {
        IdempotencyRecord {
            key: self.key,
            fingerprint: self.fingerprint,
            answer,
            created_at: now,
        }
    }
}

/// A key that this request is the first to use.
struct KeyTurn {
    key: Key,
    keys: KeysInFlight,
}

impl Drop for KeyTurn {
    fn drop(&mut self) {
        self.keys.lock().remove(&self.key.key);
    }
}

impl KeyTurn {
    /// What the key answers by now, if it was used meanwhile.
    fn used_meanwhile(&self, state: &HttpState) -> Result<IdempotentAnswer, ApiError> {
        remembered(state, &self.key)?.ok_or_else(key_in_flight)
    }
}

/// What a request's key says.
enum Keyed {
    /// It has none.
    Without,
    /// It is the first under its key.
    First(KeyTurn),
    /// It was answered before.
    Replay(IdempotentAnswer),
}

/// Looks at a request's key.
fn look(state: &HttpState, post: &Post) -> Result<Keyed, ApiError> {
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
    let key = Key {
        key,
        fingerprint: fingerprint(post),
    };
    // First the turn, then the look: the other way round an answer that comes
    // in between would be missed.
    if !state.keys.lock().insert(key.key.clone()) {
        return Err(key_in_flight());
    }
    let turn = KeyTurn {
        key,
        keys: state.keys.clone(),
    };
    let answer = remembered(state, &turn.key)?;
    Ok(answer.map_or_else(|| Keyed::First(turn), Keyed::Replay))
}

fn remembered(state: &HttpState, key: &Key) -> Result<Option<IdempotentAnswer>, ApiError> {
    let inventory = state.inventory();
    let Some(record) = inventory.idempotency.get(&key.key) else {
        return Ok(None);
    };
    if record.fingerprint == key.fingerprint {
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
