//! POSTs that make one thing: looked up under their key, made, answered with what
//! was made.

use super::not_found;
use crate::http::{
    error::ApiError,
    extract::{Post, Query},
    idempotency::{Key, once, result_gone},
    state::HttpState,
};
use axum::response::Response;
use std::fmt::Display;
use vman_model::{IdempotencyKey, change::IdempotentAnswer};

/// What names a thing that a POST makes.
pub(super) trait Made: Display + Sized {
    /// What it is, in sentences.
    const WHAT: &'static str;

    /// The thing that an answer under a key was about, if it is of this kind.
    fn of(answer: IdempotentAnswer) -> Option<Self>;

    /// 201 with the thing as it is now; none if it is not there any more.
    fn created(&self, state: &HttpState) -> Option<Response>;
}

/// A client's key with the fingerprint of its request.
type Pair = (IdempotencyKey, [u8; 32]);

/// Makes a thing by `make`, which commits the key it is given together with the thing.
pub(super) async fn make<M: Made, F>(
    state: &HttpState,
    post: Post,
    make: impl FnOnce(Post, Option<Pair>) -> F,
) -> Result<Response, ApiError>
where
    F: Future<Output = Result<M, ApiError>>,
{
    Query::of(&post.uri)?.finish()?;
    let again = |answer| async {
        let made = M::of(answer).and_then(|made| made.created(state));
        made.ok_or_else(|| result_gone(M::WHAT))
    };
    let first = |post, key: Option<Key>| async {
        let made = make(post, key.map(Key::pair)).await?;
        let answer = made.created(state);
        answer.ok_or_else(|| not_found(M::WHAT, made))
    };
    once(state, post, again, first).await
}
