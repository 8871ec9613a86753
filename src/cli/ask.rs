//! One request, as a value that can be sent again.

use hyper::Method;
use serde_json::Value;
use std::{fmt::Write as _, time::Duration};

/// Longest time to the head of an answer, beyond what the request itself asks the daemon to wait.
pub(super) const ANSWER_DEADLINE: Duration = Duration::from_mins(1);

/// What is asked.
#[derive(Clone, Debug)]
#[must_use]
pub struct Ask {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: Vec<(String, String)>,
    pub(super) json: Option<Value>,
    pub(super) accept: &'static str,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) patience: Duration,
}

impl Ask {
    fn new(method: Method, segments: &[&str]) -> Self {
        let path = segments
            .iter()
            .fold(String::new(), |path, segment| path + "/" + &encode(segment));
        Self {
            method,
            path,
            query: Vec::new(),
            json: None,
            accept: "application/json",
            headers: Vec::new(),
            patience: ANSWER_DEADLINE,
        }
    }

    /// GET of the path made of these segments.
    pub fn get(segments: &[&str]) -> Self {
        Self::new(Method::GET, segments)
    }

    /// POST, under a fresh idempotency key.
    pub fn post(segments: &[&str]) -> Self {
        Self::new(Method::POST, segments).header("idempotency-key", random_key())
    }

    /// PUT.
    pub fn put(segments: &[&str]) -> Self {
        Self::new(Method::PUT, segments)
    }

    /// PATCH.
    pub fn patch(segments: &[&str]) -> Self {
        Self::new(Method::PATCH, segments)
    }

    /// DELETE.
    pub fn delete(segments: &[&str]) -> Self {
        Self::new(Method::DELETE, segments)
    }

    /// With a query parameter.
    pub fn query(mut self, name: &str, value: impl ToString) -> Self {
        self.query.push((name.to_owned(), value.to_string()));
        self
    }

    /// With a JSON body.
    pub fn json(mut self, body: Value) -> Self {
        self.json = Some(body);
        self
    }

    /// With a header.
    pub fn header(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Asks for another media type than JSON.
    pub fn accept(mut self, accept: &'static str) -> Self {
        self.accept = accept;
        self
    }

    /// The daemon was asked to wait so long before it answers.
    pub fn patience(mut self, seconds: u64) -> Self {
        self.patience = ANSWER_DEADLINE + Duration::from_secs(seconds);
        self
    }

    pub(super) fn repeatable(&self) -> bool {
        // Every POST made here carries a key.
        matches!(self.method, Method::GET | Method::POST)
    }

    pub(super) fn changing(&self) -> bool {
        self.method != Method::GET
    }

    pub(super) fn target(&self) -> String {
        let query: Vec<String> = self
            .query
            .iter()
            .map(|(name, value)| format!("{}={}", encode(name), encode(value)))
            .collect();
        match query.join("&") {
            query if query.is_empty() => self.path.clone(),
            query => format!("{}?{query}", self.path),
        }
    }
}

/// Percent-encodes what is not unreserved in RFC 3986.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// 128 random bits in hexadecimal.
fn random_key() -> String {
    let mut bytes = [0_u8; 16];
    if getrandom::fill(&mut bytes).is_err() {
        // No key at all would be worse than a poor one: it is unique on this host, which is what matters.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let nanos = now.map_or(0, |now| now.as_nanos());
        bytes = (nanos ^ (u128::from(std::process::id()) << 96)).to_le_bytes();
    }
    bytes
        .iter()
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}
