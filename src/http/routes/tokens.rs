//! Bearer tokens: made, listed, revoked. A token is shown once, to who makes it.

use super::not_found;
use crate::http::{
    bearer,
    dto::token::{NewToken, TokenBody, Wanted},
    error::{ApiError, Code, ProblemBody},
    extract::{Caller, Id, Post, Query},
    paging::{json, with_header},
    state::HttpState,
};
use axum::{
    extract::State,
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use vman_actors::tokens;
use vman_model::{TokenName, TokenRecord, UnixMs};

/// Make a token, shown in this answer only
///
/// An `Idempotency-Key` has no effect here: the secret is not kept, so it cannot be answered again.
/// The same name again is refused.
#[utoipa::path(
    post, path = "/tokens", tag = "tokens",
    request_body(content = NewToken, example = json!({"name": "monitoring", "scope": "read"})),
    responses(
        (status = 201, description = "Made; the only answer that holds the token", body = TokenBody<'static>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn create_token(
    State(state): State<HttpState>,
    mut post: Post,
) -> Result<Response, ApiError> {
    Query::of(&post.uri)?.finish()?;
    let wanted = Wanted::read(&mut post)?;
    let handles = state.handles();
    let now = handles.clock.now();
    let minted = bearer::mint(handles.clock.as_ref());
    let record = TokenRecord {
        id: minted.id.clone(),
        name: wanted.name.clone(),
        scope: wanted.scope,
        hash: minted.hash,
        created_at: now,
        expires_at: wanted
            .expires_in_s
            .map(|s| UnixMs(now.0.saturating_add(s * 1_000))),
        last_used_at: None,
    };
    tokens::create(&handles.store, record, post.caller.origin()).await?;
    let inventory = state.inventory();
    let row = inventory
        .tokens
        .get(&minted.id)
        .ok_or_else(|| not_found("token", wanted.name))?;
    let body = TokenBody::of(row).with_secret(&minted.token);
    let response = json(StatusCode::CREATED, &body);
    Ok(with_header(response, header::CACHE_CONTROL, "no-store"))
}

/// List the tokens, without their secrets
#[utoipa::path(
    get, path = "/tokens", tag = "tokens",
    responses(
        (status = 200, description = "By name", body = Vec<TokenBody<'static>>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_tokens(
    State(state): State<HttpState>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    let inventory = state.inventory();
    // At most `MAX_TOKENS`, so there are no pages.
    let mut rows: Vec<_> = inventory.tokens.values().collect();
    rows.sort_by(|a, b| a.value.name.cmp(&b.value.name));
    let rows: Vec<_> = rows.into_iter().map(|row| TokenBody::of(row)).collect();
    Ok(json(StatusCode::OK, &rows))
}

/// Revoke a token, at once
#[utoipa::path(
    delete, path = "/tokens/{name}", tag = "tokens",
    params(("name" = String, Path, description = "The token")),
    responses(
        (status = 204, description = "Revoked"),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn revoke_token(
    State(state): State<HttpState>,
    caller: Caller,
    Id(name): Id<TokenName>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    let handles = state.handles();
    let now = handles.clock.now();
    tokens::revoke(&handles.store, name, caller.origin(), now).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

impl From<tokens::TokenError> for ApiError {
    fn from(error: tokens::TokenError) -> Self {
        use tokens::TokenError;
        let detail = error.to_string();
        match error {
            TokenError::Exists(_) => ApiError::new(
                Code::TokenExists,
                format!("{detail}: choose another name, or revoke it first"),
            ),
            TokenError::TooMany => ApiError::new(
                Code::TokenLimitReached,
                format!("{detail}: revoke those that are not needed"),
            ),
            TokenError::NotFound(name) => not_found("token", name),
            TokenError::Store(error) => error.into(),
        }
    }
}
