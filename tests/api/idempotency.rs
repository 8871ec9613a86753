//! The same key and request: the same answer, once done.

use crate::support::{Api, Setup};
use serde_json::json;
use std::time::Duration;
use vman_actors::fakes::{FakeHost, NextCommit};

const KEY: [(&str, &str); 1] = [("idempotency-key", "key-1")];

#[tokio::test]
async fn a_repeated_creation_answers_the_same_and_makes_nothing() {
    let api = Api::start().await;
    let template = json!({"name": "t", "cpu_count": 1, "ram_mib": 64});
    let first = api.post_with("/templates", &KEY, &template).await;
    let again = api.post_with("/templates", &KEY, &template).await;
    assert_eq!(again.expect(201), first.expect(201));
    assert_eq!(first.header("idempotency-replayed"), "");
    assert_eq!(again.header("idempotency-replayed"), "true");
    let other = json!({"name": "u", "cpu_count": 1, "ram_mib": 64});
    api.post_with("/templates", &KEY, &other)
        .await
        .problem(422, "idempotency_key_reused");
    api.post_with("/vms", &KEY, &json!({"template_name": "t"}))
        .await
        .problem(422, "idempotency_key_reused");

    let key = [("idempotency-key", "key-2")];
    let vm = json!({"template_name": "t"});
    let first = api.post_with("/vms", &key, &vm).await.expect(201);
    let again = api.post_with("/vms", &key, &vm).await.expect(201);
    assert_eq!(first["id"], again["id"]);
    assert_eq!(
        api.get("/vms").await.expect(200).as_array().unwrap().len(),
        1
    );

    api.delete(&format!("/vms/{}", first["id"].as_str().unwrap()))
        .await
        .expect(204);
    api.post_with("/vms", &key, &vm)
        .await
        .problem(409, "idempotency_result_gone");
}

#[tokio::test]
async fn a_repeated_action_is_the_same_operation_also_after_a_restart_of_the_daemon() {
    let host = FakeHost::new();
    let api = Api::on(host.clone(), Setup::default()).await;
    api.small_template().await;
    api.small_vm("a").await;
    let target = "/vms/a/actions/start?wait_s=20";
    let first = api.post_with(target, &KEY, &json!({})).await.expect(200);
    let again = api.post_with(target, &KEY, &json!({})).await;
    assert_eq!(again.expect(200)["id"], first["id"]);
    assert_eq!(again.header("idempotency-replayed"), "true");
    api.post("/vms/a/actions/start", &json!({}))
        .await
        .problem(409, "vm_already_running");

    api.tree.stop().await;
    let api = Api::on(host, Setup::default()).await;
    let again = api.post_with(target, &KEY, &json!({})).await.expect(200);
    assert_eq!(again["id"], first["id"]);
    api.post_with("/vms/a/actions/stop", &KEY, &json!({}))
        .await
        .problem(422, "idempotency_key_reused");
}

#[tokio::test]
async fn a_refused_request_leaves_its_key_free() {
    let api = Api::start().await;
    api.small_template().await;
    let vm = json!({"template_name": "small", "name": "a", "image": "later"});
    api.post_with("/vms", &KEY, &vm)
        .await
        .problem(422, "invalid_fields");
    api.put_image("later", "disk").await;
    api.post_with("/vms", &KEY, &vm).await.expect(201);
}

#[tokio::test]
async fn of_many_at_once_under_one_key_one_is_done() {
    let api = Api::start().await;
    api.small_template().await;
    let vm = json!({"template_name": "small"});
    // The first is being written while the others come.
    let slow = NextCommit::Slow(Duration::from_millis(300));
    api.host.storage().then(slow);
    let all = (0..20).map(|_| api.post_with("/vms", &KEY, &vm));
    let answers = futures_util::future::join_all(all).await;
    for answer in &answers {
        match answer.status {
            201 => {}
            409 => drop(answer.problem(409, "idempotency_key_in_flight")),
            other => panic!("{other}"),
        }
    }
    let done = answers.iter().filter(|answer| answer.status == 201);
    assert_eq!(done.count(), 1);
    assert_eq!(
        api.get("/vms").await.expect(200).as_array().unwrap().len(),
        1
    );
}

#[tokio::test]
async fn a_key_that_cannot_be_read_is_refused() {
    let api = Api::start().await;
    let long = "k".repeat(129);
    for key in ["", "a b", &long] {
        let headers = [("idempotency-key", key)];
        let template = json!({"name": "t", "cpu_count": 1, "ram_mib": 64});
        api.post_with("/templates", &headers, &template)
            .await
            .problem(400, "malformed_header");
    }
    let twice = [("idempotency-key", "a"), ("idempotency-key", "b")];
    api.post_with("/templates", &twice, &json!({}))
        .await
        .problem(400, "malformed_header");
}
