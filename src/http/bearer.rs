//! Bearer tokens: how one is made, taken from a request, and judged.
//!
//! A token is `vman_<id>_<secret>`: the id is public and finds the record, the secret is 256 random
//! bits of which only the SHA-256 is kept. Must not: tell a secret to anybody but its maker, once.
//! Look next: `auth.rs` for what a token's scope lets in, `vman_actors::tokens` for the rows.

use super::error::{ApiError, Code};
use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Mutex, PoisonError},
};
use vman_actors::{ports::Clock, store::Inventory, tokens::MAX_TOKENS};
use vman_model::{TokenId, TokenRecord, TokenScope, UnixMs};

/// What every token begins with, so that scanners for leaked secrets know it.
const PREFIX: &str = "vman_";
/// A use is recorded at most this often, in milliseconds: each is a commit.
const USE_EVERY_MS: u64 = 60_000;

/// A token's public part, its secret's hash, and itself: all that is ever made of its secret.
pub(crate) struct Minted {
    pub(crate) id: TokenId,
    pub(crate) hash: [u8; 32],
    pub(crate) token: String,
}

/// Makes a token from the host's randomness.
pub(crate) fn mint(clock: &dyn Clock) -> Minted {
    let id = hex(&clock.random()[..8]);
    let secret = hex(&clock.random()) + &hex(&clock.random());
    Minted {
        hash: hash(&secret),
        token: format!("{PREFIX}{id}_{secret}"),
        id: TokenId::parse(&id).expect("hex is an id"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// Whom a token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) id: TokenId,
    /// `token:<name>`
    pub(crate) principal: String,
    pub(crate) scope: TokenScope,
    /// When a use was recorded last.
    pub(crate) last_used_at: Option<UnixMs>,
}

/// Whose token the request shows. One sentence for every wrong token: which part of it is wrong is
/// nobody's business.
pub(crate) fn holder(
    inventory: &Inventory,
    headers: &HeaderMap,
    now: UnixMs,
) -> Result<Holder, ApiError> {
    let Some(shown) = shown(headers) else {
        return Err(ApiError::new(
            Code::Unauthorized,
            "the caller is not known: send Authorization: Bearer with a token \
             (`vman token create` makes one), or call over the UNIX socket",
        ));
    };
    let row = find(inventory, shown).filter(|row| !row.is_expired(now));
    let row = row.ok_or_else(|| {
        ApiError::new(
            Code::Unauthorized,
            "the token is not one of this daemon's, has expired or was revoked: \
             `vman token list` over the UNIX socket names those that are good",
        )
    })?;
    Ok(Holder {
        id: row.id.clone(),
        principal: format!("token:{}", row.name),
        scope: row.scope,
        last_used_at: row.last_used_at,
    })
}

fn shown(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let only = all.next().filter(|_| all.next().is_none())?;
    let (scheme, token) = only.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn find<'a>(inventory: &'a Inventory, token: &str) -> Option<&'a TokenRecord> {
    let (id, secret) = token.strip_prefix(PREFIX)?.split_once('_')?;
    let row = inventory.tokens.get(id)?;
    row.value.has_hash(&hash(secret)).then_some(&row.value)
}

/// When each token's use was last sent to the store.
#[derive(Default)]
pub(crate) struct TokenUses(Mutex<BTreeMap<TokenId, UnixMs>>);

impl TokenUses {
    /// Whether this use is to be recorded: once a minute for each token.
    pub(crate) fn is_due(&self, holder: &Holder, now: UnixMs) -> bool {
        let recent = |at: UnixMs| now.since(at) < USE_EVERY_MS && at <= now;
        if holder.last_used_at.is_some_and(recent) {
            return false;
        }
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sent.get(&holder.id).copied().is_some_and(recent) {
            return false;
        }
        if sent.len() > MAX_TOKENS {
            // Those of revoked tokens are never looked up again.
            sent.retain(|_, at| recent(*at));
        }
        sent.insert(holder.id.clone(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use vman_actors::{fakes::FakeHost, store::Versioned};
    use vman_model::{Revision, TokenName};

    fn issued(expires_at: Option<UnixMs>) -> (Inventory, String) {
        let minted = mint(FakeHost::new().clock());
        let row = TokenRecord {
            id: minted.id.clone(),
            name: TokenName::parse("ci").unwrap(),
            scope: TokenScope::Read,
            hash: minted.hash,
            created_at: UnixMs(1),
            expires_at,
            last_used_at: None,
        };
        let mut inventory = Inventory::default();
        let row = Versioned::new(Revision(1), row);
        inventory.tokens.insert(minted.id, Arc::new(row));
        (inventory, minted.token)
    }

    fn ask(inventory: &Inventory, values: &[&str], now: u64) -> Result<Holder, Code> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, value.parse().unwrap());
        }
        holder(inventory, &headers, UnixMs(now)).map_err(|error| error.code)
    }

    #[test]
    fn a_token_is_known_whole_and_within_its_time_only() {
        let (inventory, token) = issued(Some(UnixMs(100)));
        let good = format!("Bearer {token}");
        assert_eq!(ask(&inventory, &[&good], 99).unwrap().principal, "token:ci");
        assert!(ask(&inventory, &[&good.replace("Bearer", "bearer")], 99).is_ok());
        assert_eq!(ask(&inventory, &[&good], 100), Err(Code::Unauthorized));
        let cut = &good[..good.len() - 1];
        let long = format!("{good}0");
        for bad in [cut, &long, &token, "Bearer ", "Bearer vman__", "Basic x"] {
            assert_eq!(ask(&inventory, &[bad], 1), Err(Code::Unauthorized), "{bad}");
        }
        assert_eq!(ask(&inventory, &[], 1), Err(Code::Unauthorized));
        assert_eq!(ask(&inventory, &[&good, &good], 1), Err(Code::Unauthorized));
    }

    #[test]
    fn a_secret_has_256_bits_and_is_not_in_the_record() {
        let (inventory, token) = issued(None);
        let secret = token.rsplit('_').next().unwrap();
        assert_eq!(secret.len(), 64);
        assert!(!format!("{:?}", inventory.tokens).contains(secret));
        let other = mint(FakeHost::new().clock());
        assert_eq!(other.token.len(), token.len());
    }

    #[test]
    fn a_use_is_recorded_once_a_minute() {
        let (inventory, token) = issued(None);
        let uses = TokenUses::default();
        let mut who = ask(&inventory, &[&format!("Bearer {token}")], 1).unwrap();
        assert!(uses.is_due(&who, UnixMs(1)));
        assert!(!uses.is_due(&who, UnixMs(60_000)));
        assert!(uses.is_due(&who, UnixMs(60_001)));
        who.last_used_at = Some(UnixMs(130_000));
        assert!(!uses.is_due(&who, UnixMs(150_000)));
    }
}
