//! What comes up and goes down with the host, as the API tells it.

use crate::support::Api;
use axum::body::Body;
use serde_json::{Value, json};

async fn patch(api: &Api, vm: &str, change: &Value) -> crate::support::Answer {
    let headers = [("content-type", "application/json")];
    let body = Body::from(change.to_string());
    api.send("PATCH", &format!("/vms/{vm}"), &headers, body)
        .await
}

async fn vms(api: &Api, names: &[&str]) {
    api.small_template().await;
    for name in names {
        let vm = json!({"template_name": "small", "name": name});
        api.post("/vms", &vm).await.expect(201);
    }
}

#[tokio::test]
async fn how_a_vm_starts_with_the_host_is_said_at_its_making_and_changed_later() {
    let api = Api::start().await;
    vms(&api, &["db"]).await;
    let web = json!({
        "template_name": "small", "name": "web", "autostart": true, "priority": 7,
        "depends_on": [{"vm": "db", "condition": "address"}],
    });
    let made = api.post("/vms", &web).await.expect(201);
    assert_eq!(made["autostart"], true);
    assert_eq!(made["depends_on"], web["depends_on"]);
    let changed = patch(&api, "web", &json!({"priority": 8}))
        .await
        .expect(200);
    assert_eq!(changed["priority"], 8);
    assert_eq!(changed["autostart"], true, "what is not said stays");
    let changed = patch(&api, "web", &json!({"depends_on": []})).await;
    assert_eq!(changed.expect(200)["depends_on"], json!([]));
}

#[tokio::test]
async fn impossible_dependencies_are_refused_by_name() {
    let api = Api::start().await;
    vms(&api, &["a", "b"]).await;
    let on = |vm: &str| json!({"depends_on": [{"vm": vm}]});
    patch(&api, "a", &on("b")).await.expect(200);
    for (vm, change, told) in [
        ("b", on("a"), "closes a circle: b waits for a"),
        ("a", on("a"), "closes a circle"),
        ("a", on("nobody"), "no VM named nobody"),
        (
            "a",
            json!({"depends_on": [{"vm": "b"}, {"vm": "b"}]}),
            "twice",
        ),
        (
            "a",
            json!({"depends_on": [{"condition": "running"}]}),
            "depends_on[0].vm",
        ),
        (
            "a",
            json!({"depends_on": [{"vm": "b", "condition": "sober"}]}),
            "condition",
        ),
        (
            "a",
            json!({"depends_on": [{"vm": "b", "when": 1}]}),
            "depends_on[0].when",
        ),
        ("a", json!({"depends_on": [7]}), "depends_on[0]"),
        ("a", json!({"depends_on": [null]}), "depends_on[0]"),
        ("a", json!({"depends_on": "b"}), "array"),
        ("a", json!({"priority": 1001}), "priority"),
        ("a", json!({"autostart": "yes"}), "autostart"),
    ] {
        let refused = patch(&api, vm, &change).await.expect(422);
        assert!(refused.to_string().contains(told), "{change}: {refused}");
    }
    patch(&api, "nobody", &json!({})).await.expect(404);
}

#[tokio::test]
async fn a_drain_is_an_operation_and_a_resume_ends_it() {
    let api = Api::start().await;
    vms(&api, &["a", "b"]).await;
    api.post("/vms/a/actions/start?wait_s=30", &json!({}))
        .await
        .expect(200);
    let none = api.post("/host/actions/resume", &json!({})).await;
    assert_eq!(none.expect(409)["code"], "host_not_drained");
    let options = json!({"timeout_s": 5});
    let drained = api.post("/host/actions/drain?wait_s=60", &options).await;
    let drained = drained.expect(200);
    assert_eq!(
        (&drained["kind"], &drained["status"]),
        (&json!("host.drain"), &json!("succeeded"))
    );
    let host = api.get("/host").await.expect(200);
    assert_eq!(
        (&host["draining"], &host["drain"]["done"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(host["drain"]["vms"], json!(["a"]));
    let refused = api.post("/vms/b/actions/start", &json!({})).await;
    assert_eq!(refused.expect(409)["code"], "host_draining");
    let again = api.post("/host/actions/drain", &json!({})).await;
    assert_eq!(again.expect(202)["id"], drained["id"]);
    let resumed = api.post("/host/actions/resume", &json!({})).await;
    assert_eq!(resumed.expect(200)["starting"], json!(["a"]));
    let wrong = api
        .post("/host/actions/drain", &json!({"timeout_s": -1}))
        .await;
    wrong.expect(422);
}
