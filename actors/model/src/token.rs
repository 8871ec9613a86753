//! Bearer tokens of the API: who may call over TCP, and what for.
//!
//! Never holds a token's secret, only its SHA-256: 256 random bits need no salt and no slow hash.

use crate::{
    ids::{TokenId, TokenName},
    time::UnixMs,
};
use serde::{Deserialize, Serialize};

/// What a token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenScope {
    /// Look, but change nothing.
    Read,
    /// Everything.
    Admin,
}

impl TokenScope {
    /// The word the API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            TokenScope::Read => "read",
            TokenScope::Admin => "admin",
        }
    }
}

/// A bearer token, as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Its public part, by which it is looked up.
    pub id: TokenId,
    /// Its name, unique among tokens; told in events and logs.
    pub name: TokenName,
    /// What it allows.
    pub scope: TokenScope,
    /// SHA-256 of its secret part.
    pub hash: [u8; 32],
    /// When it was made.
    pub created_at: UnixMs,
    /// From when on it is refused; never if none.
    pub expires_at: Option<UnixMs>,
    /// When it was used last, to about a minute.
    pub last_used_at: Option<UnixMs>,
}

impl TokenRecord {
    /// Whether it is past its end.
    pub fn is_expired(&self, now: UnixMs) -> bool {
        self.expires_at.is_some_and(|end| now >= end)
    }

    /// Whether `hash` is that of its secret. Takes the same time whatever the difference is.
    pub fn has_hash(&self, hash: &[u8; 32]) -> bool {
        let differing = self.hash.iter().zip(hash).fold(0, |seen, (a, b)| {
            // The optimiser must not find out that it could stop early.
            std::hint::black_box(seen | (a ^ b))
        });
        differing == 0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_ends_at_its_end_and_knows_its_hash_alone() {
        let mut token = TokenRecord {
            id: TokenId::parse("0a").unwrap(),
            name: TokenName::parse("ci").unwrap(),
            scope: TokenScope::Read,
            hash: [7; 32],
            created_at: UnixMs(1),
            expires_at: None,
            last_used_at: None,
        };
        assert!(!token.is_expired(UnixMs(u64::MAX)));
        token.expires_at = Some(UnixMs(10));
        assert!(!token.is_expired(UnixMs(9)));
        assert!(token.is_expired(UnixMs(10)));
        assert!(token.has_hash(&[7; 32]));
        for at in 0..32 {
            let mut other = [7; 32];
            other[at] ^= 1;
            assert!(!token.has_hash(&other), "{at}");
        }
    }
}
