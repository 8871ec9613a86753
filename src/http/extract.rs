//! What handlers take from a request: path ids, the query, the body, the
//! caller. Every rejection is a problem of the API.

use super::{
    error::{ApiError, Code, FieldError},
    fields::{Fields, parse_object, seconds_to_ms},
    refusal::too_large,
    state::HttpState,
};
use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Path, Request},
    http::{HeaderMap, Method, Uri, header, request::Parts},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde_json::{Map, Value};
use std::{net::IpAddr, ops::RangeInclusive, str::FromStr, time::Duration};
use vman_model::{Origin, RequestId, ids::IdError};

/// How long what a refused client still sends is read and thrown away, so that
/// it sees the answer rather than a reset connection.
const DISCARD_FOR: Duration = Duration::from_secs(2);
/// How long a JSON body may take to come.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// Who calls; set by the edge.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) request_id: RequestId,
    pub(crate) principal: String,
    /// From where, over TCP.
    pub(crate) remote: Option<IpAddr>,
}

impl Caller {
    /// The caller as the cause of a change.
    pub(crate) fn origin(&self) -> Origin {
        Origin::Request {
            request_id: self.request_id.clone(),
            principal: self.principal.clone(),
            remote: self.remote,
        }
    }

    fn of(parts: &Parts) -> Result<Self, ApiError> {
        let unknown = || ApiError::new(Code::Internal, "the request passed no edge");
        parts.extensions.get::<Self>().cloned().ok_or_else(unknown)
    }
}

impl FromRequestParts<HttpState> for Caller {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &HttpState) -> Result<Self, ApiError> {
        Caller::of(parts)
    }
}

/// An id in the path. One that is no valid id names nothing: 404.
pub(crate) struct Id<T>(pub(crate) T);

impl<T: FromStr<Err = IdError> + Send> FromRequestParts<HttpState> for Id<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, ApiError> {
        let no_such = |why: String| {
            ApiError::new(
                Code::NotFound,
                format!("the path names nothing: the id {why}"),
            )
        };
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| no_such("cannot be read".to_owned()))?;
        text.parse()
            .map(Id)
            .map_err(|error: IdError| no_such(error.to_string()))
    }
}

/// The parameters of a query, read one by one; what is unknown, repeated or
/// wrong is told all at once.
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
    errors: Vec<FieldError>,
}

impl Query {
    /// The query of a request.
    pub(crate) fn of(uri: &Uri) -> Result<Self, ApiError> {
        let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| ApiError::new(Code::MalformedQuery, error.body_text()))?;
        Ok(Self {
            pairs: pairs.0,
            errors: Vec::new(),
        })
    }

    /// Tells that a parameter is wrong.
    pub(crate) fn wrong(&mut self, name: &str, detail: impl Into<String>) {
        self.errors.push(FieldError {
            field: name.to_owned(),
            detail: detail.into(),
        });
    }

    /// Every value of a parameter.
    pub(crate) fn all(&mut self, name: &str) -> Vec<String> {
        let of_name = |pair: &mut (String, String)| pair.0 == name;
        self.pairs
            .extract_if(.., of_name)
            .map(|pair| pair.1)
            .collect()
    }

    /// The one value of a parameter.
    pub(crate) fn one(&mut self, name: &str) -> Option<String> {
        let mut all = self.all(name);
        if all.len() > 1 {
            self.wrong(name, "is given more than once");
        }
        all.pop()
    }

    /// A value of a type, or why it is none.
    pub(crate) fn parsed<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str) -> Option<T>,
        must: &str,
    ) -> Option<T> {
        let text = self.one(name)?;
        let value = read(&text);
        if value.is_none() {
            self.wrong(name, format!("must be {must}"));
        }
        value
    }

    /// A whole number within a range.
    pub(crate) fn whole(&mut self, name: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let must = format!("a whole number from {} to {}", range.start(), range.end());
        let read = |text: &str| text.parse().ok().filter(|n| range.contains(n));
        self.parsed(name, read, &must)
    }

    /// Seconds, with a fraction if wanted, as milliseconds.
    pub(crate) fn seconds(&mut self, name: &str, max_s: f64) -> Option<u64> {
        let read = |text: &str| text.parse().ok().and_then(|s| seconds_to_ms(s, max_s));
        self.parsed(name, read, &format!("seconds from 0 to {max_s}"))
    }

    /// True or false; a bare name is true.
    pub(crate) fn flag(&mut self, name: &str) -> Option<bool> {
        let read = |text: &str| match text {
            "true" | "1" | "" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        };
        self.parsed(name, read, "true or false")
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> Option<T> {
        let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let must = format!("one of {}", known.join(", "));
        let read = |text: &str| {
            words
                .iter()
                .find(|(word, _)| *word == text)
                .map(|(_, value)| *value)
        };
        self.parsed(name, read, &must)
    }

    /// Everything that is wrong, or nothing.
    pub(crate) fn finish(mut self) -> Result<(), ApiError> {
        for (name, _) in std::mem::take(&mut self.pairs) {
            let told: String = name.chars().take(64).collect();
            self.wrong(&told, "is not a parameter of this path");
        }
        if self.errors.is_empty() {
            return Ok(());
        }
        self.errors.truncate(20);
        Err(ApiError::fields(Code::MalformedQuery, self.errors))
    }
}

/// A POST with its body as a JSON object. No body at all is an object without
/// fields: what is then missing is told by name. Not so for a PATCH, whose body
/// is what it is for.
pub(crate) struct Post {
    pub(crate) caller: Caller,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    /// The body as it came, for fingerprints.
    pub(crate) bytes: Bytes,
    object: Map<String, Value>,
}

impl Post {
    /// The body's fields, once.
    pub(crate) fn fields(&mut self) -> Fields {
        Fields::new(std::mem::take(&mut self.object))
    }
}

impl FromRequest<HttpState> for Post {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &HttpState) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let caller = Caller::of(&parts)?;
        let bytes = read_body(&parts.headers, body, state.settings.limits.max_body).await?;
        let object = if bytes.is_empty() && parts.method != Method::PATCH {
            Map::new()
        } else {
            check_content_type(&parts.headers)?;
            parse_object(&bytes)?
        };
        Ok(Self {
            caller,
            method: parts.method,
            uri: parts.uri,
            headers: parts.headers,
            bytes,
            object,
        })
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = given.map(|value| value.split(';').next().unwrap_or_default().trim());
    match essence {
        Some(essence) if essence.eq_ignore_ascii_case("application/json") => Ok(()),
        Some(_) | None => Err(ApiError::new(
            Code::WrongContentType,
            "the body must be JSON: send it with Content-Type: application/json",
        )),
    }
}

/// Bytes that a Content-Length promises.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

async fn read_body(headers: &HeaderMap, mut body: Body, limit: usize) -> Result<Bytes, ApiError> {
    if content_length(headers).is_some_and(|length| length > limit as u64) {
        discard(headers, body).await;
        return Err(too_large(limit as u64));
    }
    let mut bytes = BytesMut::new();
    let read = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                ApiError::new(
                    Code::TruncatedBody,
                    "the body ended before it was complete: send it again",
                )
            })?;
            if let Ok(data) = frame.into_data() {
                if bytes.len() + data.len() > limit {
                    return Err(too_large(limit as u64));
                }
                bytes.extend_from_slice(&data);
            }
        }
        Ok(())
    };
    match tokio::time::timeout(BODY_DEADLINE, read).await {
        Ok(Ok(())) => Ok(bytes.freeze()),
        Ok(Err(error)) => {
            discard(headers, body).await;
            Err(error)
        }
        Err(_) => Err(ApiError::new(
            Code::UploadStalled,
            format!("the body did not come within {} s", BODY_DEADLINE.as_secs()),
        )),
    }
}

/// Reads what still comes and throws it away, for a while. A client that waits
/// for `100 Continue` sends nothing, and is not asked to.
pub(crate) async fn discard(headers: &HeaderMap, mut body: Body) {
    if headers.contains_key(header::EXPECT) {
        return;
    }
    let rest = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = tokio::time::timeout(DISCARD_FOR, rest).await;
}
