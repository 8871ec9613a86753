//! Lists, pages, and what is unchanged: `limit` and `cursor`, `Link`, `ETag`,
//! `If-None-Match`, `If-Match`.
//!
//! Pages go by key, so that what is made or deleted meanwhile shifts nothing.

use super::{
    error::{ApiError, Code},
    extract::Query,
    refusal::stale,
    state::HttpState,
};
use axum::{
    body::Body,
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header, request::Parts},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;
use std::{ops::Bound, str::FromStr};
use vman_actors::store::Inventory;
use vman_model::Revision;

/// The most entries of a page.
const MAX_LIMIT: u64 = 1_000;

/// A GET of a list: which part of it, what narrows it, and what the client has of it.
pub(crate) struct List<K> {
    /// What narrows it is read from here.
    pub(crate) query: Query,
    page: Page<K>,
}

/// Which part of a list is asked for.
pub(crate) struct Page<K> {
    uri: Uri,
    headers: HeaderMap,
    limit: Option<usize>,
    after: Option<K>,
}

impl<K: FromStr + AsRef<str> + Send> FromRequestParts<HttpState> for List<K> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &HttpState) -> Result<Self, ApiError> {
        let mut query = Query::of(&parts.uri)?;
        let limit = query.whole("limit", 1..=MAX_LIMIT);
        let limit = limit.and_then(|limit| usize::try_from(limit).ok());
        let cursor = query.one("cursor");
        let after = cursor.map(|cursor| decode(&cursor)).transpose()?;
        let page = Page {
            uri: parts.uri.clone(),
            headers: parts.headers.clone(),
            limit,
            after,
        };
        Ok(Self { query, page })
    }
}

impl<K> List<K> {
    /// The page, once all parameters are read.
    pub(crate) fn finish(self) -> Result<Page<K>, ApiError> {
        self.query.finish()?;
        Ok(self.page)
    }
}

impl<K: AsRef<str>> Page<K> {
    /// The keys after the cursor, upwards.
    pub(crate) fn upwards(&self) -> (Bound<&K>, Bound<&K>) {
        (
            self.after
                .as_ref()
                .map_or(Bound::Unbounded, Bound::Excluded),
            Bound::Unbounded,
        )
    }

    /// The keys after the cursor in a list that goes downwards.
    pub(crate) fn downwards(&self) -> (Bound<&K>, Bound<&K>) {
        (
            Bound::Unbounded,
            self.after
                .as_ref()
                .map_or(Bound::Unbounded, Bound::Excluded),
        )
    }

    /// The page of `rows`, which begin after the cursor, and the link to the next; or
    /// 304 where the client has it as of this inventory.
    pub(crate) fn answer<'a, V: 'a, B: Serialize>(
        &self,
        inventory: &Inventory,
        rows: impl Iterator<Item = (&'a K, &'a V)>,
        body: impl Fn(&'a V) -> B,
    ) -> Response
    where
        K: 'a,
    {
        if let Some(same) = unchanged(&self.headers, inventory.revision) {
            return same;
        }
        let limit = self.limit.unwrap_or(usize::MAX);
        let mut rows = rows.peekable();
        let (mut page, mut last) = (Vec::new(), None);
        while page.len() < limit
            && let Some((key, value)) = rows.next()
        {
            page.push(body(value));
            last = Some(key);
        }
        let next = last.filter(|_| rows.peek().is_some());
        let mut response = json(StatusCode::OK, &page);
        let link = next.and_then(|key| next_link(&self.uri, "cursor", &encode(key.as_ref())));
        if let Some(link) = link {
            response.headers_mut().insert(header::LINK, link);
        }
        tagged(response, inventory.revision)
    }
}

fn encode(key: &str) -> String {
    URL_SAFE_NO_PAD.encode(key)
}

fn decode<K: FromStr>(cursor: &str) -> Result<K, ApiError> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    text.and_then(|text| text.parse().ok()).ok_or_else(|| {
        ApiError::new(
            Code::BadCursor,
            "the cursor is not one that a Link header gave: begin without it",
        )
    })
}

/// The same request with another value of `name`, as a `Link` header.
pub(crate) fn next_link(uri: &Uri, name: &str, value: &str) -> Option<HeaderValue> {
    let is_it = |pair: &&str| pair.split('=').next() != Some(name) && !pair.is_empty();
    let kept = uri.query().unwrap_or_default().split('&').filter(is_it);
    let mut query: Vec<String> = kept.map(str::to_owned).collect();
    query.push(format!("{name}={value}"));
    let link = format!("<{}?{}>; rel=\"next\"", uri.path(), query.join("&"));
    HeaderValue::from_str(&link).ok()
}

/// An answer in JSON.
pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let Ok(bytes) = serde_json::to_vec(body) else {
        return ApiError::new(Code::Internal, "the answer could not be written").into_response();
    };
    let json = (
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    (status, [json], Body::from(bytes)).into_response()
}

/// Adds a header to an answer.
pub(crate) fn with_header(mut response: Response, name: HeaderName, value: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
    response
}

fn etag(revision: Revision) -> String {
    format!("\"{revision}\"")
}

/// Adds the revision as `ETag`.
pub(crate) fn tagged(response: Response, revision: Revision) -> Response {
    with_header(response, header::ETAG, &etag(revision))
}

/// 304 if the client has this revision already.
pub(crate) fn unchanged(headers: &HeaderMap, revision: Revision) -> Option<Response> {
    let known = tags(headers, &header::IF_NONE_MATCH);
    let tag = etag(revision);
    let same = known
        .iter()
        .any(|known| *known == "*" || known.trim_start_matches("W/") == tag);
    same.then(|| tagged(StatusCode::NOT_MODIFIED.into_response(), revision))
}

fn tags<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    let values = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect()
}

/// What `If-Match` asks for, checked against the present revision: the revision
/// that must still hold when the change is committed.
pub(crate) fn if_match(
    headers: &HeaderMap,
    present: Revision,
    what: &str,
) -> Result<Option<Revision>, ApiError> {
    if !headers.contains_key(header::IF_MATCH) {
        return Ok(None);
    }
    let wanted = tags(headers, &header::IF_MATCH);
    if wanted.contains(&"*") {
        return Ok(None);
    }
    let tag = etag(present);
    if wanted.contains(&tag.as_str()) {
        return Ok(Some(present));
    }
    Err(stale(what))
}
