//! Who may call, and under which name what they did is recorded.
//!
//! Over the UNIX socket the kernel says who calls: root, the daemon's own user
//! and the group `vman` may. Over TCP a loopback listener may be open to all
//! (`VMAN_AUTH=none`); otherwise a bearer token is asked for beyond the open
//! paths, and its scope says what it lets in. `Host` and `Origin` are checked so that a web page in the
//! operator's browser can drive nothing (DNS rebinding, cross-site requests).
//! Look next: `bearer.rs` for tokens; `docs/security.md` has the table of
//! callers and answers, which `tests/api/matrix.rs` goes through.

use super::{
    bearer::Holder,
    error::{ApiError, Code},
};
use crate::config::AuthMode;
use axum::http::{HeaderMap, Method, Uri, header};
use std::{collections::BTreeSet, net::SocketAddr};
use vman_model::TokenScope;

/// Who is at the other end of a connection; set by `serve.rs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A process on this host, over the UNIX socket.
    Local {
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// A TCP connection.
    Tcp {
        /// From where.
        remote: SocketAddr,
        /// To which of our addresses.
        local: SocketAddr,
    },
}

impl Peer {
    /// The address at the other end, over TCP.
    pub(crate) fn address(&self) -> Option<std::net::IpAddr> {
        match self {
            Peer::Local { .. } => None,
            Peer::Tcp { remote, .. } => Some(remote.ip()),
        }
    }
}

/// Who may call over the UNIX socket besides root.
#[derive(Clone, Debug, Default)]
pub struct LocalCallers {
    /// The daemon's own user.
    pub own_uid: u32,
    /// The group `vman`, where it exists.
    pub group: Option<u32>,
    /// Its members, who may have another primary group.
    pub members: BTreeSet<u32>,
}

/// Who may call.
#[derive(Clone, Debug)]
pub struct Access {
    /// What TCP callers must show.
    pub mode: AuthMode,
    /// Who may call over the UNIX socket; where it is not said, whoever the
    /// socket's owner and mode let in.
    pub local: Option<LocalCallers>,
    /// Names besides `localhost` and the loopback addresses by which a listener
    /// may be called (without port). Beyond loopback any will do where none is
    /// said.
    pub hosts: Vec<String>,
}

/// What is known of a request before it is read.
pub(crate) struct Call<'a> {
    /// Who is at the other end.
    pub(crate) peer: Option<&'a Peer>,
    /// What it asks to do.
    pub(crate) method: &'a Method,
    /// With what.
    pub(crate) uri: &'a Uri,
    /// Its headers.
    pub(crate) headers: &'a HeaderMap,
}

/// Who was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    /// The name under which the caller's changes are recorded.
    pub(crate) principal: String,
    /// The token that let it in.
    pub(crate) token: Option<Holder>,
}

impl Admitted {
    fn as_named(principal: impl Into<String>) -> Self {
        Self {
            principal: principal.into(),
            token: None,
        }
    }
}

/// What a token of scope `read` may do: look at everything but the tokens, and the whole store.
fn reads(call: &Call<'_>) -> bool {
    let path = call.uri.path();
    let of_admins = path == "/tokens" || path.starts_with("/tokens/") || path == "/store/export";
    matches!(*call.method, Method::GET | Method::HEAD | Method::OPTIONS) && !of_admins
}

/// What anybody may read.
fn is_open(path: &str) -> bool {
    matches!(
        path,
        "/live" | "/ready" | "/health" | "/openapi.yaml" | "/openapi.json" | "/docs"
    ) || path.starts_with("/docs/")
}

impl Access {
    /// With nothing but what TCP callers must show.
    pub fn new(mode: AuthMode) -> Self {
        Self {
            mode,
            local: None,
            hosts: Vec::new(),
        }
    }

    /// With the callers that the socket is for.
    #[must_use]
    pub fn with_local(mut self, local: LocalCallers) -> Self {
        self.local = Some(local);
        self
    }

    /// Who calls, if it may do this. `holder` judges the token that is shown.
    pub(crate) fn admit(
        &self,
        call: &Call<'_>,
        holder: impl FnOnce() -> Result<Holder, ApiError>,
    ) -> Result<Admitted, ApiError> {
        self.check_site(call.peer, call.uri, call.headers)?;
        let admitted = self.principal(call, holder);
        if admitted.is_err() && is_open(call.uri.path()) {
            return Ok(Admitted::as_named("anonymous"));
        }
        admitted
    }

    fn principal(
        &self,
        call: &Call<'_>,
        holder: impl FnOnce() -> Result<Holder, ApiError>,
    ) -> Result<Admitted, ApiError> {
        match call.peer {
            Some(Peer::Local { uid, gid })
                if self
                    .local
                    .as_ref()
                    .is_none_or(|local| local.may_call(*uid, *gid)) =>
            {
                Ok(Admitted::as_named(format!("local:{uid}")))
            }
            Some(Peer::Local { uid, .. }) => Err(ApiError::new(
                Code::Forbidden,
                format!(
                    "user {uid} may not call VMAN: use root, the daemon's own user, or a member of the group vman"
                ),
            )),
            Some(Peer::Tcp { .. }) if self.mode == AuthMode::None => {
                Ok(Admitted::as_named("anonymous"))
            }
            Some(Peer::Tcp { .. }) => {
                let holder = holder()?;
                if holder.scope == TokenScope::Read && !reads(call) {
                    return Err(ApiError::new(
                        Code::InsufficientScope,
                        format!(
                            "{} may only look: this takes a token of scope admin",
                            holder.principal
                        ),
                    ));
                }
                Ok(Admitted {
                    principal: holder.principal.clone(),
                    token: Some(holder),
                })
            }
            None => Err(ApiError::new(
                Code::Unauthorized,
                "the caller is not known: call over the UNIX socket or TCP",
            )),
        }
    }

    fn check_site(
        &self,
        peer: Option<&Peer>,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), ApiError> {
        let host = headers
            .get(header::HOST)
            .map(|host| host.to_str().unwrap_or("?"));
        let host = uri
            .authority()
            .map(axum::http::uri::Authority::as_str)
            .or(host);
        if let Some(Peer::Tcp { local, .. }) = peer
            && (local.ip().is_loopback() || !self.hosts.is_empty())
            && !host.is_some_and(|host| self.is_ours(host))
        {
            return Err(ApiError::new(
                Code::ForbiddenHost,
                "the Host header is not a name of this listener: \
                 call it as localhost, 127.0.0.1, [::1] or one of VMAN_HOSTS",
            ));
        }
        let Some(origin) = headers.get(header::ORIGIN) else {
            return Ok(());
        };
        let origin = origin.to_str().unwrap_or("?");
        let site = origin
            .strip_prefix("http://")
            .or_else(|| origin.strip_prefix("https://"));
        if site.is_some() && site == host {
            return Ok(());
        }
        Err(ApiError::new(
            Code::ForbiddenOrigin,
            "the request comes from a page of another site, which VMAN does not serve",
        ))
    }

    fn is_ours(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(v6) => v6.split(']').next().unwrap_or_default(),
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        let loopback = ["localhost", "127.0.0.1", "::1"];
        let configured = self.hosts.iter().map(String::as_str);
        loopback
            .into_iter()
            .chain(configured)
            .any(|known| known.eq_ignore_ascii_case(name))
    }
}

impl LocalCallers {
    fn may_call(&self, uid: u32, gid: u32) -> bool {
        uid == 0 || uid == self.own_uid || self.group == Some(gid) || self.members.contains(&uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(mode: AuthMode) -> Access {
        Access {
            mode,
            local: Some(LocalCallers {
                own_uid: 500,
                group: Some(600),
                members: BTreeSet::from([700]),
            }),
            hosts: vec!["vman.test".to_owned()],
        }
    }

    fn ask(
        access: &Access,
        peer: &Peer,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<String, Code> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: header::HeaderName = name.parse().unwrap();
            map.insert(name, value.parse().unwrap());
        }
        let uri: Uri = path.parse().unwrap();
        let call = Call {
            peer: Some(peer),
            method: &Method::GET,
            uri: &uri,
            headers: &map,
        };
        access
            .admit(&call, || Err(ApiError::new(Code::Unauthorized, "no token")))
            .map(|admitted| admitted.principal)
            .map_err(|error| error.code)
    }

    fn tcp() -> Peer {
        Peer::Tcp {
            remote: "127.0.0.1:9".parse().unwrap(),
            local: "127.0.0.1:8000".parse().unwrap(),
        }
    }

    #[test]
    fn the_socket_lets_in_root_the_own_user_and_the_group_only() {
        let access = access(AuthMode::Token);
        for (uid, gid) in [(0, 0), (500, 1), (1, 600), (700, 1)] {
            let name = ask(&access, &Peer::Local { uid, gid }, "/vms", &[]);
            assert_eq!(name, Ok(format!("local:{uid}")));
        }
        let stranger = Peer::Local { uid: 1, gid: 1 };
        assert_eq!(ask(&access, &stranger, "/vms", &[]), Err(Code::Forbidden));
    }

    #[test]
    fn beyond_loopback_the_names_that_are_said_are_the_only_ones() {
        let outside = Peer::Tcp {
            remote: "192.0.2.7:9".parse().unwrap(),
            local: "192.0.2.1:8000".parse().unwrap(),
        };
        let by = |access: &Access, name| ask(access, &outside, "/live", &[("host", name)]);
        let some = access(AuthMode::Token);
        assert!(by(&some, "vman.test:8000").is_ok());
        assert_eq!(by(&some, "rebound.test"), Err(Code::ForbiddenHost));
        let none = Access {
            hosts: Vec::new(),
            ..some
        };
        assert!(by(&none, "rebound.test").is_ok());
    }

    #[test]
    fn over_tcp_a_token_is_asked_for_except_on_open_paths() {
        let access = access(AuthMode::Token);
        let host = [("host", "localhost:8000")];
        assert_eq!(ask(&access, &tcp(), "/vms", &host), Err(Code::Unauthorized));
        assert_eq!(
            ask(&access, &tcp(), "/docsx", &host),
            Err(Code::Unauthorized)
        );
        for open in [
            "/live",
            "/ready",
            "/health",
            "/docs/index.html",
            "/openapi.json",
        ] {
            assert!(ask(&access, &tcp(), open, &host).is_ok(), "{open}");
        }
    }

    #[test]
    fn a_page_of_another_site_is_refused() {
        let access = access(AuthMode::None);
        for good in [
            "localhost:8000",
            "127.0.0.1:8000",
            "[::1]:8000",
            "LOCALHOST",
            "vman.test:1",
        ] {
            assert!(
                ask(&access, &tcp(), "/vms", &[("host", good)]).is_ok(),
                "{good}"
            );
        }
        for bad in [
            "evil.test",
            "localhost.evil.test:8000",
            "",
            "127.0.0.1.evil.test",
        ] {
            let answer = ask(&access, &tcp(), "/live", &[("host", bad)]);
            assert_eq!(answer, Err(Code::ForbiddenHost), "{bad}");
        }
        let from = |origin| {
            ask(
                &access,
                &tcp(),
                "/vms",
                &[("host", "localhost:8000"), ("origin", origin)],
            )
        };
        assert!(from("http://localhost:8000").is_ok());
        assert_eq!(from("http://evil.test"), Err(Code::ForbiddenOrigin));
        assert_eq!(from("null"), Err(Code::ForbiddenOrigin));
    }
}
