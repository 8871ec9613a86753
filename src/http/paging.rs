//! Lists, pages, and what is unchanged: `limit` and `cursor`, `Link`, `ETag`,
//! `If-None-Match`, `If-Match`.
//!
//! Pages go by key, so that what is made or deleted meanwhile shifts nothing.

use super::{
    error::{ApiError, Code},
    extract::Query,
    kept::KeptLists,
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
use bytes::Bytes;
use serde::Serialize;
use std::{ops::Bound, str::FromStr};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::block_in_place,
};
use vman_actors::store::Inventory;
use vman_model::Revision;

/// The most entries of a page.
const MAX_LIMIT: u64 = 1_000;
/// So many entries are written where they were asked for: to hand so little work over to another
/// thread is not worth waking it.
const SHORT: usize = 256;

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
        let write = |out: &mut Vec<u8>, row| serde_json::to_writer(out, &body(row));
        self.told(inventory.revision, || self.written(rows, write))
    }

    /// The same for a list that depends on the inventory alone: whoever asks for it
    /// in the same words gets the same bytes, until something has changed.
    pub(crate) fn answer_kept<'a, V: 'a>(
        &self,
        kept: &KeptLists,
        inventory: &Inventory,
        rows: impl Iterator<Item = (&'a K, &'a V)>,
        write: impl Fn(&mut Vec<u8>, &'a V) -> serde_json::Result<()>,
    ) -> Response
    where
        K: 'a,
    {
        let words = self.uri.query().unwrap_or_default();
        self.told(inventory.revision, || {
            kept.get(inventory.revision, words, || self.written(rows, write))
        })
    }

    fn told(
        &self,
        revision: Revision,
        list: impl FnOnce() -> serde_json::Result<WrittenList>,
    ) -> Response {
        if let Some(same) = unchanged(&self.headers, revision) {
            return same;
        }
        let list = match list() {
            Ok(list) => list,
            Err(error) => return unwritten(error).into_response(),
        };
        let mut response = json_bytes(StatusCode::OK, list.body);
        if let Some(link) = list.link {
            response.headers_mut().insert(header::LINK, link);
        }
        tagged(response, revision)
    }

    fn written<'a, V: 'a>(
        &self,
        rows: impl Iterator<Item = (&'a K, &'a V)>,
        write: impl Fn(&mut Vec<u8>, &'a V) -> serde_json::Result<()>,
    ) -> serde_json::Result<WrittenList>
    where
        K: 'a,
    {
        let limit = self.limit.unwrap_or(usize::MAX);
        let mut rows = rows.peekable();
        let (mut out, mut count, mut last) = (vec![b'['], 0, None);
        // Whether there are more.
        let mut write_to = |most: usize| -> serde_json::Result<bool> {
            while count < most
                && let Some((key, value)) = rows.next()
            {
                if count > 0 {
                    out.push(b',');
                }
                write(&mut out, value)?;
                count += 1;
                last = Some(key);
            }
            Ok(rows.peek().is_some())
        };
        let mut more = write_to(limit.min(SHORT))?;
        if more && limit > SHORT {
            more = at_length(|| write_to(limit))?;
        }
        out.push(b']');
        let next = last.filter(|_| more);
        let link = next.and_then(|key| next_link(&self.uri, "cursor", &encode(key.as_ref())));
        Ok(WrittenList {
            body: out.into(),
            link,
        })
    }
}

/// Does what takes milliseconds while another thread takes over whoever else waits for this one.
fn at_length<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(work),
        _ => work(),
    }
}

/// A list, or a page of it, as it is sent.
#[derive(Clone)]
pub(super) struct WrittenList {
    pub(super) body: Bytes,
    link: Option<HeaderValue>,
}

#[cfg(test)]
impl WrittenList {
    pub(super) fn of(body: String) -> Self {
        Self {
            body: body.into(),
            link: None,
        }
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
    match serde_json::to_vec(body) {
        Ok(bytes) => json_bytes(status, bytes.into()),
        Err(error) => unwritten(error).into_response(),
    }
}

/// An answer that is no JSON: a bug of ours.
pub(crate) fn unwritten(error: serde_json::Error) -> ApiError {
    ApiError::new(
        Code::Internal,
        format!("the answer could not be written: {error}"),
    )
}

/// An answer that is JSON already.
pub(crate) fn json_bytes(status: StatusCode, bytes: Bytes) -> Response {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, time::Duration};
    use vman_model::VmId;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn who_asks_for_little_does_not_wait_for_a_long_list() {
        let page = Page {
            uri: Uri::from_static("/vms"),
            headers: HeaderMap::new(),
            limit: None,
            after: None,
        };
        let (answered, little) = mpsc::channel();
        let asking = tokio::spawn(async move {
            // As soon as the list has been begun, which has this runtime's one thread.
            tokio::spawn(async move { answered.send(()).unwrap() });
            let ids: Vec<_> = (0..=SHORT)
                .map(|n| VmId::parse(&format!("vm{n}")).unwrap())
                .collect();
            let rows = ids.iter().map(|id| (id, id));
            let last = ids.last().unwrap();
            let list = page.written(rows, |out, id: &VmId| {
                if id == last {
                    little.recv_timeout(Duration::from_secs(5)).unwrap();
                }
                serde_json::to_writer(out, id.as_str())
            });
            list.unwrap().body
        });
        let list: Vec<String> = serde_json::from_slice(&asking.await.unwrap()).unwrap();
        assert_eq!(list.len(), SHORT + 1);
    }
}
