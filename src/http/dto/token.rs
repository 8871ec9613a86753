//! Tokens in the API. The hash is told to nobody.

use super::Time;
use crate::http::{error::ApiError, extract::Post};
use serde::Serialize;
use utoipa::ToSchema;
use vman_actors::store::Versioned;
use vman_model::{TokenName, TokenRecord, TokenScope};

/// The longest a token may be good for, in seconds (100 years).
const MAX_EXPIRY_S: u64 = 100 * 366 * 86_400;

/// A token, without its secret.
#[derive(Serialize, ToSchema)]
#[schema(as = Token)]
pub(crate) struct TokenBody<'a> {
    /// Its name.
    name: &'a str,
    /// Its public part.
    id: &'a str,
    /// `read` or `admin`.
    scope: &'static str,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    /// From when on it is refused; never if null.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Time>,
    /// When it was used last, to about a minute.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_used_at: Option<Time>,
    /// The token itself; only in the answer that makes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
}

impl<'a> TokenBody<'a> {
    pub(crate) fn of(row: &'a Versioned<TokenRecord>) -> Self {
        let record = &row.value;
        Self {
            name: record.name.as_str(),
            id: record.id.as_str(),
            scope: record.scope.as_str(),
            created_at: Time(record.created_at),
            expires_at: record.expires_at.map(Time),
            last_used_at: record.last_used_at.map(Time),
            token: None,
        }
    }

    /// With the secret, for its maker.
    pub(crate) fn with_secret(mut self, token: &'a str) -> Self {
        self.token = Some(token);
        self
    }
}

/// A token to be made.
#[derive(ToSchema)]
#[allow(
    dead_code,
    reason = "its fields are the document; `read` reads them one by one"
)]
pub(crate) struct NewToken {
    /// Its name, told in events and logs.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    name: String,
    /// `read` (the default) or `admin`.
    scope: Option<String>,
    /// Seconds until it expires; never if not given.
    #[schema(minimum = 1, maximum = 3_162_240_000_u64)]
    expires_in_s: Option<u64>,
}

/// What a [`NewToken`] asks for.
pub(crate) struct Wanted {
    pub(crate) name: TokenName,
    pub(crate) scope: TokenScope,
    pub(crate) expires_in_s: Option<u64>,
}

impl Wanted {
    /// Reads a [`NewToken`].
    pub(crate) fn read(post: &mut Post) -> Result<Self, ApiError> {
        let mut fields = post.fields();
        fields.require("name");
        let name: Option<TokenName> = fields.name("name");
        let words = [("read", TokenScope::Read), ("admin", TokenScope::Admin)];
        let scope = fields.word("scope", &words).unwrap_or(TokenScope::Read);
        let expires_in_s = fields.whole("expires_in_s", 1..=MAX_EXPIRY_S);
        fields.finish()?;
        let name = name.ok_or_else(|| ApiError::field("name", "is required"))?;
        Ok(Self {
            name,
            scope,
            expires_in_s,
        })
    }
}
