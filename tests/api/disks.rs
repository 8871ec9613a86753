//! Disks over HTTP, on the simulated host.

use crate::support::Api;
use axum::body::Body;
use serde_json::{Value, json};

async fn with_vm() -> Api {
    let api = Api::start().await;
    api.small_template().await;
    api.small_vm("a").await;
    api
}

async fn make(api: &Api, name: &str) -> Value {
    let body = json!({"name": name, "size": 1});
    api.post("/disks", &body).await.expect(201)
}

async fn attach(api: &Api, disk: &str, vm: &str) -> crate::support::Answer {
    let target = format!("/disks/{disk}/attach");
    api.post(&target, &json!({"vm_id": vm})).await
}

async fn detach(api: &Api, disk: &str) -> crate::support::Answer {
    let target = format!("/disks/{disk}/detach");
    api.send("POST", &target, &[], Body::empty()).await
}

#[tokio::test]
async fn a_disk_lives_from_its_creation_to_its_deletion() {
    let api = with_vm().await;
    let disk = make(&api, "data").await;
    assert_eq!(
        (
            &disk["size"],
            &disk["size_mib"],
            &disk["state"],
            &disk["serial"]
        ),
        (&json!(1), &json!(1024), &json!("available"), &json!("data"))
    );
    make_again_is_refused(&api).await;
    api.act("a", "start").await.expect(200);
    let done = attach(&api, "data", "a").await.expect(200);
    assert_eq!(done["status"], "attached");
    assert_eq!(done["disk"]["mount_point"], "/dev/vda");
    assert_eq!(
        api.get("/vms/a").await.expect(200)["disks"][0]["id"],
        "data"
    );
    let problem = attach(&api, "data", "a")
        .await
        .problem(409, "disk_attached");
    assert_eq!(
        (&problem["disk_id"], &problem["vm_id"]),
        (&json!("data"), &json!("a"))
    );
    api.delete("/disks/data")
        .await
        .problem(409, "disk_attached");
    let grown = api.post("/disks/data/resize", &json!({"size": 2})).await;
    assert_eq!(grown.expect(200)["disk"]["size"], 2);
    let done = detach(&api, "data").await.expect(200);
    assert_eq!(
        (&done["status"], &done["disk"]["vm_id"]),
        (&json!("detached"), &Value::Null)
    );
    detach(&api, "data").await.problem(409, "disk_not_attached");
    assert_eq!(api.delete("/disks/data").await.status, 204);
    api.get("/disks/data").await.problem(404, "not_found");
    assert_eq!(api.host.violations(), Vec::<String>::new());
}

async fn make_again_is_refused(api: &Api) {
    let body = json!({"name": "data", "size": 1});
    api.post("/disks", &body).await.problem(409, "disk_exists");
}

#[tokio::test]
async fn what_is_unknown_is_404_and_what_is_impossible_is_422() {
    let api = with_vm().await;
    make(&api, "data").await;
    attach(&api, "nope", "a").await.problem(404, "not_found");
    attach(&api, "data", "nope").await.problem(404, "not_found");
    detach(&api, "nope").await.problem(404, "not_found");
    api.delete("/disks/nope").await.problem(404, "not_found");
    for body in [
        json!({}),
        json!({"size": 0}),
        json!({"size": "1"}),
        json!({"size": 1, "size_mib": 1}),
        json!({"size": 1, "name": "../x"}),
        json!({"size": 1, "mount_point": "/dev/sda"}),
        json!({"size": 1, "format": "vmdk"}),
        json!({"size": 1, "image": "nope"}),
        json!({"size": 1, "serial": "a,b"}),
        json!({"size": 1, "iops_burst": 5}),
    ] {
        api.post("/disks", &body)
            .await
            .problem(422, "invalid_fields");
    }
    let unknown = json!({"size": 1, "colour": "red"});
    api.post("/disks", &unknown)
        .await
        .problem(422, "unknown_field");
    api.post("/disks/data/resize", &json!({"size_mib": 1}))
        .await
        .problem(422, "invalid_fields");
    let all = api.get("/disks").await.expect(200);
    assert_eq!(all.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_disk_goes_to_one_of_those_who_want_it_at_once() {
    let api = with_vm().await;
    api.small_vm("b").await;
    make(&api, "data").await;
    for vm in ["a", "b"] {
        api.act(vm, "start").await.expect(200);
    }
    let (one, other) = tokio::join!(attach(&api, "data", "a"), attach(&api, "data", "b"));
    let mut both = [one.status, other.status];
    both.sort_unstable();
    assert_eq!(both, [200, 409]);
    assert_eq!(api.host.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn what_qemu_refuses_leaves_the_disk_free_and_what_a_guest_holds_leaves_it_attached() {
    let api = with_vm().await;
    make(&api, "data").await;
    api.act("a", "start").await.expect(200);
    api.host.script(|script| script.disk_refused = true);
    let problem = attach(&api, "data", "a")
        .await
        .problem(409, "operation_failed");
    assert!(problem["operation_id"].is_string());
    assert_eq!(
        api.get("/disks/data").await.expect(200)["state"],
        "available"
    );
    api.host.script(|script| script.disk_refused = false);
    attach(&api, "data", "a").await.expect(200);
    api.host.script(|script| script.guest_holds_disks = true);
    let operation = detach(&api, "data").await.expect(202);
    assert_eq!(operation["error"]["code"], "guest_holds_disk");
    assert_eq!(api.get("/disks/data").await.expect(200)["vm_id"], "a");
    api.host.script(|script| script.guest_holds_disks = false);
    detach(&api, "data").await.expect(200);
}

#[tokio::test]
async fn the_same_key_makes_one_disk_and_attaches_it_once() {
    let api = with_vm().await;
    let key = [("idempotency-key", "k-1")];
    let body = json!({"size": 1});
    let first = api.post_with("/disks", &key, &body).await.expect(201);
    let again = api.post_with("/disks", &key, &body).await.expect(201);
    assert_eq!(first["id"], again["id"]);
    let target = format!("/disks/{}/attach", first["id"].as_str().unwrap());
    let key = [("idempotency-key", "k-2")];
    let to = json!({"vm_id": "a"});
    for _ in 0..2 {
        let done = api.post_with(&target, &key, &to).await.expect(200);
        assert_eq!(done["status"], "attached");
    }
}

#[tokio::test]
async fn limits_are_changed_and_a_burst_needs_its_rate() {
    let api = with_vm().await;
    make(&api, "data").await;
    let body = |value: Value| Body::from(value.to_string());
    let headers = [("content-type", "application/json")];
    let changed = json!({"iops": 100, "iops_burst": 200});
    let answer = api
        .send("PATCH", "/disks/data", &headers, body(changed))
        .await;
    assert_eq!(answer.expect(200)["iops_burst"], 200);
    let wrong = json!({"iops": 300});
    let answer = api
        .send("PATCH", "/disks/data", &headers, body(wrong))
        .await;
    answer.problem(422, "invalid_fields");
}

#[tokio::test]
async fn a_stopped_vm_keeps_eight_disks_in_order_and_refuses_a_ninth() {
    let api = with_vm().await;
    for n in 0..9 {
        make(&api, &format!("d{n}")).await;
    }
    for n in 0..8 {
        let done = attach(&api, &format!("d{n}"), "a").await.expect(200);
        assert_eq!(done["disk"]["slot"], 4 + n);
    }
    let problem = attach(&api, "d8", "a")
        .await
        .problem(409, "no_free_disk_slot");
    assert!(
        problem["detail"].as_str().unwrap().contains("d0 in 4"),
        "{problem}"
    );
    detach(&api, "d2").await.expect(200);
    let done = attach(&api, "d8", "a").await.expect(200);
    assert_eq!(done["disk"]["slot"], 6, "the slot that became free");
    assert_eq!(api.delete("/vms/a").await.status, 204);
    let all = api.get("/disks").await.expect(200);
    let free = all
        .as_array()
        .unwrap()
        .iter()
        .all(|disk| disk["state"] == "available");
    assert!(free, "{all}");
}
