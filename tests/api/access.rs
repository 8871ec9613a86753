//! Who may call, request ids, and how much at once.

use crate::support::{Api, Setup};
use axum::body::Body;
use vman::{
    config::AuthMode,
    http::{Access, Limits, LocalCallers, Peer},
};

fn tcp() -> Peer {
    Peer::Tcp {
        remote: "127.0.0.1:40000".parse().unwrap(),
        local: "127.0.0.1:8000".parse().unwrap(),
    }
}

#[tokio::test]
async fn over_tcp_nothing_but_the_open_paths_is_answered_without_a_token() {
    let access = Access::new(AuthMode::Token).with_local(LocalCallers::default());
    let mut api = Api::with(Setup {
        access,
        ..Setup::default()
    })
    .await;
    api.get("/vms").await.expect(200);
    api.peer = Some(tcp());
    let host = [("host", "localhost:8000")];
    let refused = api.send("GET", "/vms", &host, Body::empty()).await;
    refused.problem(401, "unauthorized");
    assert_eq!(refused.header("www-authenticate"), "Bearer");
    for open in [
        "/live",
        "/ready",
        "/health",
        "/openapi.yaml",
        "/docs/index.html",
    ] {
        assert_eq!(
            api.send("GET", open, &host, Body::empty()).await.status,
            200,
            "{open}"
        );
    }
    api.send("GET", "/nowhere", &host, Body::empty())
        .await
        .problem(401, "unauthorized");
    api.peer = Some(Peer::Local {
        uid: 12345,
        gid: 12345,
    });
    api.get("/vms").await.problem(403, "forbidden");
    api.peer = None;
    api.get("/vms").await.problem(401, "unauthorized");
}

#[tokio::test]
async fn a_web_page_in_the_operators_browser_drives_nothing() {
    let mut api = Api::start().await;
    api.peer = Some(tcp());
    let ours = [("host", "127.0.0.1:8000")];
    api.send("GET", "/vms", &ours, Body::empty())
        .await
        .expect(200);
    api.send("GET", "/vms", &[("host", "evil.test")], Body::empty())
        .await
        .problem(403, "forbidden_host");
    api.send("GET", "/vms", &[], Body::empty())
        .await
        .problem(403, "forbidden_host");
    let foreign = [("host", "127.0.0.1:8000"), ("origin", "http://evil.test")];
    api.send("GET", "/live", &foreign, Body::empty())
        .await
        .problem(403, "forbidden_origin");
    let same = [
        ("host", "127.0.0.1:8000"),
        ("origin", "http://127.0.0.1:8000"),
    ];
    api.send("GET", "/vms", &same, Body::empty())
        .await
        .expect(200);
}

#[tokio::test]
async fn every_answer_carries_the_clients_request_id_or_a_fresh_one() {
    let api = Api::start().await;
    let mine = [("x-request-id", "mine-1")];
    for target in ["/vms", "/vms/none", "/nowhere", "/live", "/docs/index.html"] {
        let answer = api.send("GET", target, &mine, Body::empty()).await;
        assert_eq!(answer.header("x-request-id"), "mine-1", "{target}");
    }
    let (one, two) = (api.get("/vms").await, api.get("/vms").await);
    assert!(one.header("x-request-id").starts_with("req-"));
    assert_ne!(one.header("x-request-id"), two.header("x-request-id"));
    let long = "x".repeat(129);
    for bad in ["a b", &long] {
        let answer = api
            .send("GET", "/vms", &[("x-request-id", bad)], Body::empty())
            .await;
        assert!(answer.header("x-request-id").starts_with("req-"), "{bad}");
    }
}

#[tokio::test]
async fn beyond_its_bound_the_daemon_says_so_and_still_tells_that_it_lives() {
    let limits = Limits {
        max_inflight: 2,
        ..Limits::default()
    };
    let api = Api::with(Setup {
        limits,
        ..Setup::default()
    })
    .await;
    // Uploads that never end hold their permits.
    let stuck =
        || Body::from_stream(futures_util::stream::pending::<std::io::Result<bytes::Bytes>>());
    let one = api.send("PUT", "/images/a", &[], stuck());
    let two = api.send("PUT", "/images/b", &[], stuck());
    let asks = async {
        loop {
            let answer = api.get("/vms").await;
            if answer.status == 503 {
                break answer;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = one => panic!("the upload ended"),
        _ = two => panic!("the upload ended"),
        refused = asks => {
            refused.problem(503, "overloaded");
            assert_eq!(refused.header("retry-after"), "1");
            api.get("/live").await.expect(200);
        }
    }
    api.get("/vms").await.expect(200);
}
