//! What clients are told when the host fails: whether it was done, and what to do.

use crate::support::{Answer, Api, PATIENCE};
use axum::body::Body;
use serde_json::{Value, json};
use vman_actors::fakes::NextCommit;
use vman_model::VmId;

const KEY: [(&str, &str); 1] = [("idempotency-key", "key-1")];

/// The request, as a client repeats it: until the daemon knows an answer.
async fn repeat(api: &Api, target: &str, body: &Value) -> Answer {
    let repeating = async {
        loop {
            let answer = api.post_with(target, &KEY, body).await;
            if answer.status != 503 {
                return answer;
            }
            assert!(!answer.header("retry-after").is_empty());
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, repeating)
        .await
        .expect("an answer in time")
}

#[tokio::test]
async fn a_full_or_read_only_storage_is_507_and_nothing_was_changed() {
    let api = Api::start().await;
    api.small_template().await;
    api.small_vm("a").await;
    let template = json!({"name": "t", "cpu_count": 1, "ram_mib": 64});
    for (fault, status, code) in [
        (NextCommit::NoSpace, 507, "storage_full"),
        (NextCommit::ReadOnly, 507, "storage_read_only"),
        (NextCommit::Refused, 503, "host_failed"),
    ] {
        let before = api.revision();
        let requests = [
            ("/templates", &template),
            ("/vms/a/actions/start", &json!({})),
        ];
        for (target, body) in requests {
            api.host.storage().then(fault.clone());
            api.post(target, body).await.problem(status, code);
        }
        api.host.storage().then(fault.clone());
        api.delete("/vms/a").await.problem(status, code);
        api.host.storage().then(fault.clone());
        let target = "/images/i?kind=kernel";
        let image = api.send("PUT", target, &[], Body::from("x")).await;
        image.problem(status, code);
        assert_eq!(api.revision(), before);
    }
    api.get("/vms/a").await.expect(200);
    api.post("/templates", &template).await.expect(201);
    api.act("a", "start").await.expect(200);
}

#[tokio::test]
async fn after_an_unknown_outcome_the_same_key_tells_what_became_of_it() {
    for fault in [NextCommit::UnknownButWritten, NextCommit::UnknownNotWritten] {
        let api = Api::start().await;
        let template = json!({"name": "t", "cpu_count": 1, "ram_mib": 64});
        api.host.storage().then(fault.clone());
        let unknown = api.post_with("/templates", &KEY, &template).await;
        unknown.problem(503, "outcome_unknown");
        let again = repeat(&api, "/templates", &template).await;
        assert_eq!(again.expect(201)["name"], "t");
        let replayed = again.header("idempotency-replayed") == "true";
        assert_eq!(replayed, fault == NextCommit::UnknownButWritten);
    }
}

#[tokio::test]
async fn a_start_whose_commit_is_unknown_is_begun_once_under_its_key() {
    for fault in [NextCommit::UnknownButWritten, NextCommit::UnknownNotWritten] {
        let api = Api::start().await;
        api.small_template().await;
        api.small_vm("a").await;
        api.host.storage().then(fault);
        let target = "/vms/a/actions/start?wait_s=20";
        let unknown = api.post_with(target, &KEY, &json!({})).await;
        assert_eq!(unknown.problem(503, "outcome_unknown")["vm_id"], "a");
        let operation = repeat(&api, target, &json!({})).await.expect(200);
        assert_eq!(operation["status"], "succeeded", "{operation}");
        api.until_state("a", "running").await;
        assert_eq!(api.host.launched(), 1);
        assert_eq!(api.host.violations(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_hung_qemu_delays_nobody_and_is_stopped_by_force() {
    let api = Api::start().await;
    api.small_template().await;
    for name in ["hung", "other"] {
        api.small_vm(name).await;
    }
    api.act("hung", "start").await.expect(200);
    api.host.hang(&VmId::parse("hung").unwrap(), true);
    let pause = api
        .send("POST", "/vms/hung/actions/pause", &[], Body::empty())
        .await;
    pause.expect(202);
    assert_eq!(
        api.get("/vms").await.expect(200).as_array().unwrap().len(),
        2
    );
    api.act("other", "start").await.expect(200);
    let stop = json!({"force": true});
    api.post("/vms/hung/actions/stop?wait_s=20", &stop)
        .await
        .expect(200);
    api.until_state("hung", "stopped").await;
}
