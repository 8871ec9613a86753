//! Events and consoles as they happen.

use crate::support::{Api, PATIENCE};
use axum::{body::Body, response::Response};
use http_body_util::BodyExt;
use serde_json::Value;
use vman_model::VmId;

/// Reads a stream until what has come satisfies `enough`.
async fn read_until(response: &mut Response, enough: impl Fn(&str) -> bool) -> String {
    let mut text = String::new();
    let reading = async {
        while !enough(&text) {
            let frame = response
                .body_mut()
                .frame()
                .await
                .expect("more of the stream")
                .unwrap();
            if let Ok(data) = frame.into_data() {
                text.push_str(&String::from_utf8_lossy(&data));
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading)
        .await
        .expect("the stream in time");
    text
}

async fn ends(response: Response) {
    let rest = response.into_body().collect();
    tokio::time::timeout(PATIENCE, rest)
        .await
        .expect("the stream to end")
        .unwrap();
}

fn field<'a>(event: &'a str, name: &str) -> Option<&'a str> {
    event
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[tokio::test]
async fn events_come_as_they_happen_and_a_client_resumes_where_it_was() {
    let api = Api::start().await;
    let mut live = api.open("GET", "/events", &[], Body::empty()).await;
    assert_eq!(live.headers()["content-type"], "text/event-stream");
    // The stream begins at what was there when it was asked for.
    api.small_template().await;
    let text = read_until(&mut live, |text| text.contains("template.created")).await;
    let first = text.split("\n\n").next().unwrap();
    assert_eq!(field(first, "event"), Some("image.created"));
    let data: Value = serde_json::from_str(field(first, "data").unwrap()).unwrap();
    assert_eq!(data["image_name"], "linux");
    let id = field(first, "id").unwrap().to_owned();
    assert_eq!(data["revision"].to_string(), id);
    drop(live);

    api.small_vm("a").await;
    let from = [("last-event-id", id.as_str())];
    let mut resumed = api
        .open("GET", "/events?since=0", &from, Body::empty())
        .await;
    let text = read_until(&mut resumed, |text| text.contains("vm.created")).await;
    assert!(
        !text.contains("image.created") && text.contains("template.created"),
        "{text}"
    );

    let mut all = api
        .open("GET", "/events?since=0&vm_id=a", &[], Body::empty())
        .await;
    let text = read_until(&mut all, |text| text.contains("vm.created")).await;
    assert!(!text.contains("template.created"), "{text}");

    api.shutdown.cancel();
    ends(resumed).await;
    ends(all).await;
}

#[tokio::test]
async fn events_are_an_array_for_who_accepts_json() {
    let api = Api::start().await;
    api.small_template().await;
    api.small_vm("a").await;
    let json = [("accept", "application/json")];
    let list = api
        .send("GET", "/events", &json, Body::empty())
        .await
        .expect(200);
    let kinds: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["image.created", "template.created", "vm.created"]);
    assert_eq!(list[2]["cause"]["origin"], "request");
    assert_eq!(list[2]["cause"]["principal"], "local:0");
    let first = api
        .send("GET", "/events?limit=1", &json, Body::empty())
        .await;
    let link = first.header("link");
    assert!(
        link.contains(&format!("since={}", list[0]["revision"])),
        "{link}"
    );
    let since = format!("/events?since={}", list[1]["revision"]);
    let rest = api
        .send("GET", &since, &json, Body::empty())
        .await
        .expect(200);
    assert_eq!(rest.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_client_that_reads_nothing_costs_a_bounded_space_and_misses_nothing() {
    let api = Api::start().await;
    api.small_template().await;
    let mut lazy = api.open("GET", "/events?since=0", &[], Body::empty()).await;
    for i in 0..200 {
        api.small_vm(&format!("vm-{i:03}")).await;
        if i >= 99 {
            break;
        }
    }
    let text = read_until(&mut lazy, |text| text.contains("\"vm-099\"")).await;
    for i in 0..100 {
        assert!(text.contains(&format!("\"vm-{i:03}\"")), "vm-{i:03}");
    }
}

#[tokio::test]
async fn a_console_is_told_and_followed_until_its_vm_is_gone() {
    let api = Api::start().await;
    api.small_template().await;
    api.small_vm("a").await;
    let vm = VmId::parse("a").unwrap();
    let empty = api.get("/vms/a/console").await.expect(200);
    assert_eq!((&empty["console"], &empty["size"]), (&"".into(), &0.into()));
    api.act("a", "start").await.expect(200);
    api.host.print(&vm, b"hello \xff\n");
    let console = api.get("/vms/a/console").await.expect(200);
    assert!(
        console["console"]
            .as_str()
            .unwrap()
            .ends_with("hello \u{fffd}\n"),
        "{console}"
    );
    assert_eq!(console["vm_id"], "a");
    let mut follow = api
        .open("GET", "/vms/a/console?follow=true", &[], Body::empty())
        .await;
    assert!(
        follow.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/plain")
    );
    read_until(&mut follow, |text| text.contains("hello")).await;
    api.host.print(&vm, b"world\n");
    read_until(&mut follow, |text| text.contains("world")).await;
    api.delete("/vms/a").await.expect(204);
    ends(follow).await;
    api.get("/vms/a/console").await.problem(404, "not_found");
}

#[tokio::test]
async fn long_waits_end_at_once_when_the_daemon_stops() {
    let api = Api::start().await;
    api.small_template().await;
    api.small_vm("a").await;
    api.act("a", "start").await.expect(200);
    api.host
        .script(|script| script.powerdown = vman_actors::fakes::Powerdown::Ignored);
    let body = serde_json::json!({"timeout_s": 3600});
    let waiting = api.post("/vms/a/actions/stop?wait_s=300", &body);
    let stopping = async {
        api.until_state("a", "stopping").await;
        api.shutdown.cancel();
    };
    let (answer, ()) = tokio::join!(waiting, stopping);
    assert_eq!(answer.expect(202)["status"], "running");
}

/// A daemon that is called over TCP, with a stream open by a token that lasts so long.
async fn streaming_with_a_token(expires_in_s: Option<u64>) -> (Api, Response) {
    let mut api = Api::with(crate::support::Setup {
        access: vman::http::Access::new(vman::config::AuthMode::Token),
        ..crate::support::Setup::default()
    })
    .await;
    let wanted = serde_json::json!({"name": "ci", "expires_in_s": expires_in_s});
    let token = api.post("/tokens", &wanted).await.expect(201)["token"].clone();
    let local = api.peer.replace(vman::http::Peer::Tcp {
        remote: "127.0.0.1:9".parse().unwrap(),
        local: "127.0.0.1:8000".parse().unwrap(),
    });
    let bearer = format!("Bearer {}", token.as_str().unwrap());
    let headers = [("host", "localhost"), ("authorization", bearer.as_str())];
    let live = api.open("GET", "/events", &headers, Body::empty()).await;
    assert_eq!(live.status(), 200);
    api.peer = local;
    (api, live)
}

#[tokio::test]
async fn a_stream_ends_when_its_token_is_revoked() {
    let (api, mut live) = streaming_with_a_token(None).await;
    api.small_template().await;
    read_until(&mut live, |text| text.contains("template.created")).await;
    api.delete("/tokens/ci").await.expect(204);
    ends(live).await;
}

#[tokio::test]
async fn a_stream_ends_when_its_token_expires() {
    let (api, live) = streaming_with_a_token(Some(1)).await;
    api.host.clock().advance_ms(1_000);
    ends(live).await;
}
