//! What a client may get wrong: a problem that says what, and nothing changed.

use crate::support::{Answer, Api, IMAGE};
use axum::body::Body;
use base64::Engine;
use bytes::Bytes;
use futures_util::stream;
use proptest::{prelude::*, test_runner::TestRunner};
use serde_json::{Value, json};
use std::io;

/// Every path that takes a JSON body.
const POSTS: [&str; 4] = [
    "/templates",
    "/vms",
    "/vms/a/actions/stop",
    "/observer/check",
];

async fn with_vm() -> Api {
    let api = Api::start().await;
    api.small_template().await;
    api.small_vm("a").await;
    api
}

fn fields(problem: &Value) -> Vec<&str> {
    let errors = problem["errors"].as_array().unwrap();
    let mut fields: Vec<_> = errors
        .iter()
        .map(|error| error["field"].as_str().unwrap())
        .collect();
    fields.sort_unstable();
    fields
}

#[tokio::test]
async fn unknown_fields_are_refused_with_their_names() {
    let api = with_vm().await;
    let before = api.revision();
    let template = json!({"name": "x", "cpu_count": 1, "ram_mib": 1, "colour": 1, "boot": {"kernel": "linux", "shoe": 2}});
    let problem = api
        .post("/templates", &template)
        .await
        .problem(422, "unknown_field");
    assert_eq!(fields(&problem), ["boot.shoe", "colour"]);
    let vm =
        json!({"template_name": "small", "restart": {"policy": "never", "often": true}, "vm": 1});
    let problem = api.post("/vms", &vm).await.problem(422, "unknown_field");
    assert_eq!(fields(&problem), ["restart.often", "vm"]);
    let problem = api
        .post("/vms/a/actions/start", &json!({"force": true}))
        .await
        .problem(422, "unknown_field");
    assert_eq!(fields(&problem), ["force"]);
    let problem = api
        .post("/vms/a/actions/stop", &json!({"forse": true}))
        .await
        .problem(422, "unknown_field");
    assert_eq!(fields(&problem), ["forse"]);
    assert_eq!(api.revision(), before);
}

#[tokio::test]
async fn all_wrong_fields_are_told_at_once() {
    let api = with_vm().await;
    let before = api.revision();
    let template = json!({
        "name": 7, "cpu_count": "two", "ram_amount": [], "image": {}, "boot": "linux",
        "firmware": 1, "disk_gib": 1.5, "labels": ["a"], "extra": null, "more": 1,
    });
    let problem = api
        .post("/templates", &template)
        .await
        .problem(422, "invalid_fields");
    let wrong = [
        "boot",
        "cpu_count",
        "disk_gib",
        "extra",
        "firmware",
        "image",
        "labels",
        "more",
        "name",
        "ram_amount",
    ];
    assert_eq!(fields(&problem), wrong);
    let vm = json!({
        "template_name": "small", "name": "-", "cpu_count": 0, "ram_mib": 0, "ram_amount": 99999,
        "image": "absent", "boot": {"initrd": "linux", "cmdline": "a\nb"}, "firmware": "efi",
        "disk_gib": -1, "labels": {"a b": "c", "ok": 1},
        "restart": {"policy": "sometimes", "max_restarts": 101, "window_s": 0},
        "cpu_quota": 0, "cpu_weight": 10001, "io_weight": "much",
    });
    let problem = api.post("/vms", &vm).await.problem(422, "invalid_fields");
    let wrong = [
        "boot.cmdline",
        "boot.kernel",
        "cpu_count",
        "cpu_quota",
        "cpu_weight",
        "disk_gib",
        "firmware",
        "image",
        "io_weight",
        "labels.a b",
        "labels.ok",
        "name",
        "ram_amount",
        "ram_mib",
        "ram_mib",
        "restart.max_restarts",
        "restart.policy",
        "restart.window_s",
    ];
    assert_eq!(fields(&problem), wrong);
    let problem = api
        .post("/templates", &json!({}))
        .await
        .problem(422, "invalid_fields");
    assert_eq!(fields(&problem), ["cpu_count", "name", "ram_amount"]);
    let problem = api
        .post("/vms", &json!({}))
        .await
        .problem(422, "invalid_fields");
    assert_eq!(fields(&problem), ["template_name"]);
    assert_eq!(api.revision(), before);
}

#[tokio::test]
async fn impossible_values_are_refused() {
    let api = with_vm().await;
    let before = api.revision();
    let wrong = [
        json!({"cpu_count": 256}),
        json!({"cpu_count": 1.5}),
        json!({"cpu_count": -1}),
        json!({"cpu_count": true}),
        json!({"ram_mib": 1_u64 << 60}),
        json!({"ram_mib": 1, "ram_amount": 1}),
        json!({"disk_gib": 0}),
        json!({"image": "linux"}),
        json!({"boot": {"kernel": "linux", "cmdline": "x".repeat(2048)}}),
        json!({"boot": {"kernel": "linux", "cmdline": "a\u{0}b"}}),
        json!({"labels": {"a": "x".repeat(256)}}),
        json!({"labels": (0..65).map(|i| (format!("k{i}"), json!("v"))).collect::<serde_json::Map<_, _>>()}),
    ];
    for mut body in wrong {
        body["template_name"] = json!("small");
        api.post("/vms", &body).await.problem(422, "invalid_fields");
    }
    let uefi = json!({"name": "bare", "cpu_count": 1, "ram_mib": 64, "firmware": "uefi"});
    api.post("/templates", &uefi).await.expect(201);
    let problem = api
        .post("/vms", &json!({"template_name": "bare"}))
        .await
        .problem(422, "invalid_fields");
    assert_eq!(fields(&problem), ["firmware"]);
    let problem = api
        .post("/vms", &json!({"template_name": "absent"}))
        .await
        .problem(400, "unknown_template");
    assert_eq!(fields(&problem), ["template_name"]);
    for timeout in [json!(-1), json!(3601), json!("1"), json!([])] {
        let stop = json!({"timeout_s": timeout});
        api.post("/vms/a/actions/stop", &stop)
            .await
            .problem(422, "invalid_fields");
    }
    let both = api
        .post("/vms/a/actions/stop?force=false", &json!({"force": true}))
        .await;
    both.problem(422, "invalid_fields");
    assert_eq!(api.revision(), before + 1, "only the template was made");
}

#[tokio::test]
async fn names_that_could_mean_something_elsewhere_are_refused() {
    let api = with_vm().await;
    let before = api.revision();
    let long = "a".repeat(10_000);
    let names = [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a,b",
        "a=b",
        "\"a\"",
        "'a'",
        "a b",
        "a\n",
        "a\u{0}",
        "a\u{1b}[1m",
        "-a",
        "ä",
        "a\\b",
        "%2e%2e",
        &"a".repeat(64),
        &long,
    ];
    for name in names {
        let template = json!({"name": name, "cpu_count": 1, "ram_mib": 1});
        let problem = api
            .post("/templates", &template)
            .await
            .problem(422, "invalid_fields");
        assert_eq!(fields(&problem), ["name"], "{name:?}");
        let vm = json!({"template_name": "small", "name": name});
        api.post("/vms", &vm).await.problem(422, "invalid_fields");
        api.post("/vms", &json!({"template_name": name}))
            .await
            .problem(422, "invalid_fields");
        api.post("/vms", &json!({"template_name": "small", "image": name}))
            .await
            .problem(422, "invalid_fields");
    }
    for path in ["..%2f", "a%2Cb", "%00", "a%0Ab", "%22", "%ff", &long] {
        for place in ["/vms", "/templates", "/disks", "/images", "/operations"] {
            api.get(&format!("{place}/{path}"))
                .await
                .problem(404, "not_found");
        }
        api.delete(&format!("/vms/{path}"))
            .await
            .problem(404, "not_found");
        let target = format!("/vms/{path}/actions/start");
        api.send("POST", &target, &[], Body::empty())
            .await
            .problem(404, "not_found");
        let target = format!("/images/{path}");
        api.send("PUT", &target, &[], Body::from(IMAGE))
            .await
            .problem(422, "invalid_fields");
    }
    assert_eq!(api.revision(), before);
}

#[tokio::test]
async fn what_is_not_json_is_malformed() {
    let api = with_vm().await;
    let before = api.revision();
    let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    let deep_object = b"{\"a\":".repeat(100_000);
    let bodies: Vec<Vec<u8>> = vec![
        deep,
        deep_object,
        b"{".to_vec(),
        b"{\"name\":1}x".to_vec(),
        b"{'name':1}".to_vec(),
        b"{\"name\":\"a\",\"name\":\"b\"}".to_vec(),
        b"{\"boot\":{\"kernel\":\"a\",\"kernel\":\"b\"}}".to_vec(),
        b"{\"name\":\"\xff\xfe\"}".to_vec(),
        b"\xff\xfe{\x00}\x00".to_vec(),
        b"{\"cpu_count\":1e999}".to_vec(),
        b"{\"cpu_count\":NaN}".to_vec(),
        b"\0".to_vec(),
    ];
    for target in POSTS {
        for body in &bodies {
            api.post_raw(target, &[], body.clone())
                .await
                .problem(400, "malformed_json");
        }
        for body in ["[]", "null", "7", "\"x\""] {
            api.post_raw(target, &[], body.into())
                .await
                .problem(422, "invalid_fields");
        }
    }
    assert_eq!(api.revision(), before);
}

#[tokio::test]
async fn a_change_that_says_nothing_is_no_change() {
    let api = with_vm().await;
    let headers = [("content-type", "application/json"), ("if-match", "")];
    for target in ["/vms/a", "/vms/a/nics/0"] {
        let bare = api.send("PATCH", target, &[], Body::empty()).await;
        bare.problem(415, "unsupported_media_type");
        let empty = api.send("PATCH", target, &headers, Body::empty()).await;
        empty.problem(400, "malformed_json");
    }
}

#[tokio::test]
async fn a_body_of_100_mb_is_too_large() {
    let api = with_vm().await;
    let before = api.revision();
    let megabyte = Bytes::from(vec![b' '; 1 << 20]);
    for target in POSTS {
        let pieces: Vec<io::Result<Bytes>> = (0..100).map(|_| Ok(megabyte.clone())).collect();
        let body = Body::from_stream(stream::iter(pieces));
        let json = [("content-type", "application/json")];
        api.send("POST", target, &json, body)
            .await
            .problem(413, "too_large");
        let announced = [
            ("content-type", "application/json"),
            ("content-length", "104857600"),
        ];
        api.send("POST", target, &announced, Body::empty())
            .await
            .problem(413, "too_large");
    }
    assert_eq!(api.revision(), before);
}

#[tokio::test]
async fn wrong_methods_and_content_types_are_named() {
    let api = with_vm().await;
    for (method, target, allowed) in [
        ("PUT", "/vms", "POST"),
        ("PUT", "/vms/a", "DELETE"),
        ("GET", "/vms/a/actions/start", "POST"),
        ("DELETE", "/health", "GET"),
        ("POST", "/images/linux", "PUT"),
    ] {
        let answer = api.send(method, target, &[], Body::empty()).await;
        answer.problem(405, "method_not_allowed");
        assert!(
            answer.header("allow").contains(allowed),
            "{:?}",
            answer.headers
        );
    }
    let body = || Body::from("{\"name\":\"x\",\"cpu_count\":1,\"ram_mib\":1}");
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/xml",
        "multipart/form-data",
        "",
    ] {
        let answer = api
            .send("POST", "/templates", &[("content-type", kind)], body())
            .await;
        answer.problem(415, "unsupported_media_type");
    }
    api.send("POST", "/templates", &[], body())
        .await
        .problem(415, "unsupported_media_type");
    let good = [("content-type", "Application/JSON; charset=utf-8")];
    api.send("POST", "/templates", &good, body())
        .await
        .expect(201);
    for target in [
        "/",
        "/vm",
        "/vms/",
        "/vms/a/actions",
        "/disks/a/attached",
        "/metric",
    ] {
        api.get(target).await.problem(404, "not_found");
    }
}

#[tokio::test]
async fn wrong_queries_are_told_all_at_once() {
    let api = with_vm().await;
    let problem = api
        .get("/vms?limit=0&state=dead&colour=red")
        .await
        .problem(400, "malformed_query");
    assert_eq!(fields(&problem), ["colour", "limit", "state"]);
    let stop = |query: &str| format!("/vms/a/actions/stop?{query}");
    for query in [
        "forse=true",
        "force=maybe",
        "timeout_s=-1",
        "wait_s=301",
        "wait_s=1&wait_s=2",
        "wait_s=NaN",
    ] {
        api.post(&stop(query), &json!({}))
            .await
            .problem(400, "malformed_query");
    }
    api.post("/vms/a/actions/start?force=true", &json!({}))
        .await
        .problem(400, "malformed_query");
    api.get("/vms?cursor=%21").await.problem(400, "bad_cursor");
    api.get("/vms?cursor=Li4").await.problem(400, "bad_cursor");
    api.get("/events?since=999999")
        .await
        .problem(400, "bad_cursor");
    api.send("GET", "/events", &[("last-event-id", "x")], Body::empty())
        .await
        .problem(400, "bad_cursor");
    api.get("/templates/small?x=1")
        .await
        .problem(400, "malformed_query");
}

async fn put(api: &Api, headers: &[(&str, &str)], body: Body) -> Answer {
    api.send("PUT", "/images/new?kind=kernel", headers, body)
        .await
}

#[tokio::test]
async fn an_upload_that_is_not_whole_or_not_what_it_promised_leaves_nothing() {
    let api = Api::start().await;
    let before = api.revision();
    let torn = stream::iter([
        Ok(Bytes::from_static(IMAGE)),
        Err(io::Error::from(io::ErrorKind::ConnectionReset)),
    ]);
    put(&api, &[], Body::from_stream(torn))
        .await
        .problem(400, "truncated_body");
    let stuck = stream::pending::<io::Result<Bytes>>();
    put(&api, &[], Body::from_stream(stuck))
        .await
        .problem(408, "upload_stalled");
    put(&api, &[], Body::empty())
        .await
        .problem(422, "image_refused");
    put(&api, &[], Body::from(vec![0; (1 << 20) + 1]))
        .await
        .problem(413, "too_large");
    put(&api, &[("content-length", "99999999")], Body::from("x"))
        .await
        .problem(413, "too_large");
    let zeros = "0".repeat(64);
    put(&api, &[("x-checksum-sha256", &zeros)], Body::from(IMAGE))
        .await
        .problem(422, "checksum_mismatch");
    let other = "sha-512=:AAAA:, sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:";
    put(&api, &[("content-digest", other)], Body::from(IMAGE))
        .await
        .problem(422, "checksum_mismatch");
    for (name, value) in [
        ("x-checksum-sha256", "abc"),
        ("content-digest", "sha-256=abc"),
        ("repr-digest", "sha-256=:!!:"),
    ] {
        put(&api, &[(name, value)], Body::from(IMAGE))
            .await
            .problem(400, "malformed_header");
    }
    let different = [
        ("x-checksum-sha256", zeros.as_str()),
        (
            "content-digest",
            "sha-256=:LOoZ+n/KEGMPxMGZYvR1y4TBSc0kSWkYtRvVQXVsTJM=:",
        ),
    ];
    put(&api, &different, Body::from(IMAGE))
        .await
        .problem(400, "malformed_header");
    api.send("PUT", "/images/new?kind=floppy", &[], Body::from(IMAGE))
        .await
        .problem(400, "malformed_query");
    assert_eq!(api.revision(), before);
    assert_eq!(api.get("/images").await.expect(200), json!([]));

    let image = put(&api, &[], Body::from(IMAGE)).await.expect(201);
    assert_eq!(
        (&image["name"], &image["kind"], &image["size_bytes"]),
        (&json!("new"), &json!("kernel"), &json!(IMAGE.len()))
    );
    let sha256 = image["sha256"].as_str().unwrap().to_owned();
    let good = [("x-checksum-sha256", sha256.as_str())];
    api.send("PUT", "/images/again?kind=initrd", &good, Body::from(IMAGE))
        .await
        .expect(201);
    let digest = format!("sha-512=:AAAA:, sha-256=:{}:", base64_of(&sha256));
    let good = [
        ("repr-digest", digest.as_str()),
        ("x-checksum-sha256", sha256.as_str()),
    ];
    api.send("PUT", "/images/third?kind=initrd", &good, Body::from(IMAGE))
        .await
        .expect(201);
    let kinds = api.get("/images?kind=initrd").await.expect(200);
    assert_eq!(kinds[0]["name"], "again");
    api.delete("/images/new").await.expect(204);
    api.get("/images/new").await.problem(404, "not_found");
    api.delete("/images/new").await.problem(404, "not_found");
}

fn base64_of(hex: &str) -> String {
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Any JSON, mostly with names that mean something.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        Just(json!("small")),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        let key = prop_oneof![
            Just("name".to_owned()),
            Just("template_name".to_owned()),
            Just("cpu_count".to_owned()),
            Just("ram_mib".to_owned()),
            Just("boot".to_owned()),
            Just("labels".to_owned()),
            Just("restart".to_owned()),
            Just("force".to_owned()),
            ".{0,8}",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

#[test]
fn no_body_makes_the_daemon_fail() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let api = runtime.block_on(with_vm());
    let mut runner = TestRunner::default();
    let bodies = (
        0..POSTS.len(),
        prop_oneof![
            any_json().prop_map(|json| json.to_string().into_bytes()),
            prop::collection::vec(any::<u8>(), 0..64),
        ],
    );
    runner
        .run(&bodies, |(target, body)| {
            let answer = runtime.block_on(api.post_raw(POSTS[target], &[], body));
            prop_assert!(answer.status < 500, "{:?}", answer);
            Ok(())
        })
        .unwrap();
}

#[test]
fn no_target_makes_the_daemon_fail() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let api = runtime.block_on(with_vm());
    let mut runner = TestRunner::default();
    let paths = "/(vms|images|templates|operations|events|disks)(/[a%2F.~,]{0,6}){0,3}(\\?[a-z_=&%0-9]{0,30})?";
    let methods = prop::sample::select(vec![
        "GET", "PUT", "POST", "DELETE", "PATCH", "HEAD", "OPTIONS",
    ]);
    runner
        .run(&(methods, paths), |(method, target)| {
            prop_assume!(target.parse::<axum::http::Uri>().is_ok());
            // A stream does not end by itself: its head is what counts.
            let answer = runtime.block_on(api.open(method, &target, &[], Body::empty()));
            prop_assert!(
                answer.status().as_u16() < 500,
                "{} {}: {:?}",
                method,
                target,
                answer
            );
            Ok(())
        })
        .unwrap();
}
