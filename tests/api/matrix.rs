//! Callers × endpoints: goes through the table in `docs/security.md`, and through every path of the
//! OpenAPI document for each of its cells. A new path is tested by being documented.

use crate::support::{Api, Setup};
use axum::body::Body;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use vman::{
    config::AuthMode,
    http::{Access, LocalCallers, Peer, openapi_yaml},
};
use vman_model::UnixMs;

const PAGE: &str = include_str!("../../docs/security.md");
const GROUP: u32 = 600;

struct Caller {
    peer: Peer,
    headers: Vec<(&'static str, String)>,
    body: &'static str,
}

fn tcp() -> Peer {
    Peer::Tcp {
        remote: "127.0.0.1:40000".parse().unwrap(),
        local: "127.0.0.1:8000".parse().unwrap(),
    }
}

fn local(uid: u32, gid: u32) -> Caller {
    Caller {
        peer: Peer::Local { uid, gid },
        headers: vec![],
        body: "",
    }
}

fn over_tcp(headers: &[(&'static str, &str)]) -> Caller {
    let mut all = vec![("host", "localhost:8000".to_owned())];
    for (name, value) in headers {
        if *name == "host" {
            all.clear();
        }
        all.push((name, (*value).to_owned()));
    }
    Caller {
        peer: tcp(),
        headers: all,
        body: "",
    }
}

async fn token(api: &Api, name: &str, scope: &str, expires_in_s: Option<u64>) -> String {
    let wanted = json!({"name": name, "scope": scope, "expires_in_s": expires_in_s});
    let made = api.post("/tokens", &wanted).await;
    assert_eq!(made.header("cache-control"), "no-store");
    made.expect(201)["token"].as_str().unwrap().to_owned()
}

async fn callers(api: &Api) -> BTreeMap<&'static str, Caller> {
    let admin = format!("Bearer {}", token(api, "admin", "admin", None).await);
    let read = format!("Bearer {}", token(api, "read", "read", None).await);
    let expired = format!("Bearer {}", token(api, "old", "admin", Some(60)).await);
    let revoked = format!("Bearer {}", token(api, "revoked", "admin", None).await);
    api.delete("/tokens/revoked").await.expect(204);
    api.host.clock().advance_ms(60_000);
    let mut wrong = admin.clone();
    let last = if wrong.pop() == Some('0') { '1' } else { '0' };
    wrong.push(last);
    let bearer = |token: &str| over_tcp(&[("authorization", token)]);
    let mut form = bearer(&admin);
    let kind = "application/x-www-form-urlencoded";
    form.headers.push(("content-type", kind.to_owned()));
    form.body = "name=a&cpu_count=1";
    let basic = admin.replace("Bearer", "Basic");
    BTreeMap::from([
        ("root over the socket", local(0, 0)),
        ("the group over the socket", local(12, GROUP)),
        ("another user over the socket", local(12, 12)),
        ("no token", over_tcp(&[])),
        ("read token", bearer(&read)),
        ("admin token", bearer(&admin)),
        ("expired token", bearer(&expired)),
        ("revoked token", bearer(&revoked)),
        ("wrong secret", bearer(&wrong)),
        ("wrong scheme", bearer(&basic)),
        (
            "two tokens at once",
            over_tcp(&[("authorization", &admin), ("authorization", &read)]),
        ),
        (
            "foreign host with admin token",
            over_tcp(&[("host", "evil.test"), ("authorization", &admin)]),
        ),
        (
            "foreign origin with admin token",
            over_tcp(&[("origin", "http://evil.test"), ("authorization", &admin)]),
        ),
        ("form post with admin token", form),
    ])
}

/// The rows of the page's table: the caller, and what each class answers.
fn table() -> Vec<(String, BTreeMap<String, String>)> {
    let cells = |line: &str| -> Vec<String> {
        let inner = line.trim().trim_matches('|');
        inner
            .split('|')
            .map(|cell| cell.trim().to_owned())
            .collect()
    };
    let mut lines = PAGE
        .lines()
        .skip_while(|line| !line.starts_with("| caller |"));
    let classes = cells(lines.next().expect("the table in docs/security.md"));
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|line| {
        let mut row = cells(line).into_iter();
        let caller = row.next().unwrap();
        (caller, classes.iter().skip(1).cloned().zip(row).collect())
    })
    .collect()
}

/// Every method and path of the API, with its class.
fn endpoints() -> Vec<(&'static str, String, String)> {
    let document: Value = serde_norway::from_str(openapi_yaml()).unwrap();
    let mut all = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let method = method.to_ascii_uppercase();
            let class = match (method.as_str(), path.as_str()) {
                (_, "/live" | "/ready" | "/health") => "open",
                ("POST" | "PATCH", _) => "post",
                (_, path) if path.starts_with("/tokens") || path == "/store/export" => "tokens",
                ("GET", _) => "look",
                _ => "change",
            };
            // Nothing is there of this name: who is let in is told so.
            let filled: Vec<_> = path
                .split('/')
                .map(|part| if part.starts_with('{') { "none" } else { part })
                .collect();
            all.push((class, method, filled.join("/")));
        }
    }
    for path in ["/openapi.yaml", "/openapi.json", "/docs/index.html"] {
        all.push(("open", "GET".to_owned(), path.to_owned()));
    }
    all
}

#[tokio::test]
async fn every_caller_is_answered_by_every_endpoint_as_the_security_page_says() {
    let access = Access::new(AuthMode::Token).with_local(LocalCallers {
        own_uid: 0,
        group: Some(GROUP),
        members: BTreeSet::new(),
    });
    let setup = Setup {
        access,
        ..Setup::default()
    };
    let mut api = Api::with(setup).await;
    let mut callers = callers(&api).await;
    let endpoints = endpoints();
    assert!(endpoints.len() > 30, "{endpoints:?}");
    for (name, expected) in table() {
        let caller = callers.remove(name.as_str());
        let caller = caller.unwrap_or_else(|| panic!("no caller is known as {name}"));
        api.peer = Some(caller.peer.clone());
        for (class, method, path) in &endpoints {
            // The event log would be streamed otherwise.
            let mut headers = vec![("accept", "application/json")];
            headers.extend(
                caller
                    .headers
                    .iter()
                    .map(|(name, value)| (*name, value.as_str())),
            );
            // A change that says nothing would be refused for that.
            let body = match (method.as_str(), caller.body) {
                ("PATCH", "") => {
                    headers.push(("content-type", "application/json"));
                    "{}"
                }
                (_, body) => body,
            };
            let answer = api.send(method, path, &headers, Body::from(body)).await;
            let seen = match answer.status {
                401 | 403 | 415 => {
                    let code = answer.json()["code"].as_str().unwrap().to_owned();
                    format!("{} {code}", answer.status)
                }
                status => {
                    assert!(status < 500, "{name}: {method} {path}: {status}");
                    "yes".to_owned()
                }
            };
            assert_eq!(seen, expected[*class], "{name}: {method} {path}");
        }
    }
    assert!(callers.is_empty(), "not in the table: {:?}", callers.keys());
}

#[tokio::test]
async fn a_token_lives_from_its_making_to_its_revoking_and_tells_its_last_use() {
    let access = Access::new(AuthMode::Token).with_local(LocalCallers::default());
    let setup = Setup {
        access,
        ..Setup::default()
    };
    let mut api = Api::with(setup).await;
    api.host.clock().set(UnixMs(1_700_000_000_000));
    let root = api.peer.clone();
    let secret = token(&api, "ci", "admin", None).await;
    let again = api.post("/tokens", &json!({"name": "ci"})).await;
    again.problem(409, "token_exists");
    let listed = api.get("/tokens").await;
    assert!(!String::from_utf8_lossy(&listed.body).contains(secret.rsplit('_').next().unwrap()));
    assert_eq!(listed.json()[0]["last_used_at"], Value::Null);

    let bearer = format!("Bearer {secret}");
    let headers = [("host", "localhost"), ("authorization", bearer.as_str())];
    api.peer = Some(tcp());
    let mut changed = api.tree.handles.store.watch();
    changed.mark_unchanged();
    api.send("GET", "/vms", &headers, Body::empty())
        .await
        .expect(200);
    changed.changed().await.unwrap();
    let listed = api.send("GET", "/tokens", &headers, Body::empty()).await;
    let used = listed.json()[0]["last_used_at"].as_str().map(str::to_owned);
    assert!(used.is_some_and(|used| used.starts_with("2023-11-14T22:13:2")));

    let headers_json = [headers[0], headers[1], ("content-type", "application/json")];
    let body = json!({"name": "t", "cpu_count": 1, "ram_mib": 64}).to_string();
    let made = api
        .send("POST", "/templates", &headers_json, Body::from(body))
        .await;
    made.expect(201);
    let revoked = api
        .send("DELETE", "/tokens/ci", &headers, Body::empty())
        .await;
    revoked.expect(204);
    let refused = api.send("GET", "/vms", &headers, Body::empty()).await;
    refused.problem(401, "unauthorized");

    api.peer = root;
    let asked = [("accept", "application/json")];
    let events = api
        .send("GET", "/events", &asked, Body::empty())
        .await
        .json();
    let told: Vec<_> = events
        .as_array()
        .unwrap()
        .iter()
        .map(|event| {
            (
                event["kind"].as_str().unwrap(),
                event["cause"]["principal"].as_str(),
            )
        })
        .collect();
    assert!(
        told.contains(&("token.created", Some("local:0"))),
        "{told:?}"
    );
    assert!(
        told.contains(&("template.created", Some("token:ci"))),
        "{told:?}"
    );
    assert!(
        told.contains(&("token.revoked", Some("token:ci"))),
        "{told:?}"
    );
    api.delete("/tokens/ci").await.problem(404, "not_found");
}
