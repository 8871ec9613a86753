//! An answer that goes on for long ends when the token that asked for it is good no more.
//!
//! Must not: touch answers of a known length, which end by themselves.

use super::state::HttpState;
use axum::{
    body::{Body, HttpBody as _},
    response::Response,
};
use futures_util::StreamExt;
use std::time::Duration;
use vman_model::TokenId;

/// A clock may be set: an expiry is looked at again after so long at most.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Cuts a stream when its token is revoked or has expired.
pub(crate) fn hold(response: Response, token: TokenId, state: HttpState) -> Response {
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    response.map(|body| Body::from_stream(body.into_data_stream().take_until(gone(state, token))))
}

/// Until the token is gone, or its time is over.
async fn gone(state: HttpState, token: TokenId) {
    let store = &state.handles().store;
    let mut revision = store.watch();
    loop {
        let now = state.handles().clock.now();
        let inventory = store.inventory();
        let Some(row) = inventory.tokens.get(&token) else {
            return;
        };
        if row.value.is_expired(now) {
            return;
        }
        let left = row.value.expires_at.map(|end| end.since(now));
        let pause = left.map_or(LOOK_AGAIN, |left| {
            Duration::from_millis(left).min(LOOK_AGAIN)
        });
        tokio::select! {
            changed = revision.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}
