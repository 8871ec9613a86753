//! The workflows of the original, by plain HTTP, and what surrounds them.

use crate::support::{Api, Setup};
use axum::body::Body;
use serde_json::json;
use vman_actors::fakes::{Launch, Powerdown};
use vman_actors::ports::LaunchError;
use vman_model::{VmId, vm::RunState};

#[tokio::test]
async fn the_original_workflow_goes_from_template_to_deletion() {
    let api = Api::start().await;
    let template = json!({"name": "t1", "cpu_count": 2, "ram_amount": 4});
    let made = api.post("/templates", &template).await;
    assert_eq!(made.header("location"), "/templates/t1");
    let made = made.expect(201);
    assert_eq!(
        (&made["ram_amount"], &made["ram_mib"]),
        (&json!(4), &json!(4096))
    );
    let vm = api
        .post("/vms", &json!({"template_name": "t1", "name": "web-1"}))
        .await;
    assert_eq!(vm.header("location"), "/vms/web-1");
    let vm = vm.expect(201);
    assert_eq!(vm["id"], "web-1");
    assert_eq!(vm["state"], "stopped");
    assert_eq!(vm["reason"], "created");
    assert_eq!(
        vm["vm_template"],
        json!({"name": "t1", "cpu_count": 2, "ram_amount": 4, "ram_mib": 4096})
    );

    let operation = api.act("web-1", "start").await.expect(200);
    assert_eq!(
        (&operation["status"], &operation["kind"]),
        (&json!("succeeded"), &json!("vm.start"))
    );
    let running = api.get("/vms/web-1").await.expect(200);
    assert_eq!(running["state"], "running");
    assert_eq!(running["reason"], "user");
    assert!(
        running["pid"].is_u64() && running["started_at"].is_string(),
        "{running}"
    );
    let again = api
        .act("web-1", "start")
        .await
        .problem(409, "vm_already_running");
    assert_eq!(again["vm_id"], "web-1");

    let restarted = api.act("web-1", "restart").await.expect(200);
    assert_eq!(restarted["status"], "succeeded", "{restarted}");
    assert_eq!(api.get("/vms/web-1").await.expect(200)["incarnation"], 2);

    api.act("web-1", "stop").await.expect(200);
    let stopped = api.get("/vms/web-1").await.expect(200);
    assert_eq!(
        (&stopped["state"], &stopped["pid"]),
        (&json!("stopped"), &json!(null))
    );
    api.act("web-1", "stop")
        .await
        .problem(409, "vm_not_running");

    api.delete("/templates/t1")
        .await
        .problem(409, "template_in_use");
    api.delete("/vms/web-1").await.expect(204);
    api.get("/vms/web-1").await.problem(404, "not_found");
    api.delete("/vms/web-1").await.problem(404, "not_found");
    api.delete("/templates/t1").await.expect(204);
    assert_eq!(api.get("/vms").await.expect(200), json!([]));
}

#[tokio::test]
async fn a_running_vm_pauses_resumes_resets_and_is_deleted_by_force() {
    let api = Api::start().await;
    api.small_template().await;
    api.small_vm("a").await;
    api.act("a", "pause").await.problem(409, "vm_not_running");
    api.act("a", "start").await.expect(200);
    api.act("a", "resume").await.problem(409, "vm_not_paused");
    api.act("a", "pause").await.expect(200);
    assert_eq!(api.until_state("a", "paused").await["desired"], "running");
    api.act("a", "pause")
        .await
        .problem(409, "vm_already_paused");
    api.act("a", "resume").await.expect(200);
    api.until_state("a", "running").await;
    api.act("a", "reset").await.expect(200);
    api.act("a", "launch").await.problem(404, "not_found");
    api.act("nobody", "start").await.problem(404, "not_found");
    api.delete("/vms/a").await.expect(204);
    assert!(api.host.live().is_empty());
    assert_eq!(api.host.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn an_action_answers_202_with_an_operation_that_can_be_waited_for() {
    let api = Api::start().await;
    api.small_template().await;
    api.small_vm("a").await;
    let accepted = api
        .send("POST", "/vms/a/actions/start", &[], Body::empty())
        .await;
    let operation = accepted.expect(202);
    let id = operation["id"].as_str().unwrap();
    assert_eq!(accepted.header("location"), format!("/operations/{id}"));
    assert_eq!(operation["vm_id"], "a");
    assert_eq!(operation["request_id"], accepted.header("x-request-id"));
    let ended = api
        .get(&format!("/operations/{id}/wait?timeout_s=20"))
        .await
        .expect(200);
    assert_eq!(ended["status"], "succeeded");
    assert!(ended["finished_at"].is_string());
    assert_eq!(
        api.get(&format!("/operations/{id}")).await.expect(200),
        ended
    );
    api.delete(&format!("/operations/{id}"))
        .await
        .problem(409, "operation_finished");

    api.host
        .script(|script| script.powerdown = Powerdown::Ignored);
    let stop = json!({"timeout_s": 3600});
    let operation = api
        .post("/vms/a/actions/stop?wait_s=0.05", &stop)
        .await
        .expect(202);
    assert_eq!(operation["status"], "running");
    let id = operation["id"].as_str().unwrap();
    api.get(&format!("/operations/{id}/wait?timeout_s=0.05"))
        .await
        .expect(202);
    assert_eq!(api.get("/vms/a").await.expect(200)["operation"], id);
    let refused = api.delete(&format!("/operations/{id}")).await;
    refused.problem(409, "operation_not_cancellable");
    api.post("/vms/a/actions/stop?wait_s=20", &json!({"force": true}))
        .await
        .expect(200);
    api.until_state("a", "stopped").await;
    let list = api.get("/operations?vm_id=a&limit=2").await.expect(200);
    assert_eq!(list.as_array().unwrap().len(), 2);
    assert_eq!(list[0]["kind"], "vm.stop", "newest first: {list}");
}

#[tokio::test]
async fn a_start_that_fails_says_why_and_holds_nothing() {
    let api = Api::start().await;
    api.small_template().await;
    let causes = [
        (
            Launch::Fails(LaunchError::NoBinary {
                binary: "/nowhere/qemu".to_owned(),
            }),
            "/nowhere/qemu",
        ),
        (
            Launch::ExitsAtOnce {
                code: 1,
                stderr: "qemu: bad machine".to_owned(),
            },
            "qemu: bad machine",
        ),
    ];
    for (number, (launch, told)) in causes.into_iter().enumerate() {
        let id = format!("vm-{number}");
        api.host
            .script_vm(&VmId::parse(&id).unwrap(), |script| script.launch = launch);
        api.small_vm(&id).await;
        let operation = api.act(&id, "start").await.expect(200);
        assert_eq!(operation["status"], "failed");
        assert_eq!(operation["error"]["code"], "start_failed");
        assert!(
            operation["error"]["detail"]
                .as_str()
                .unwrap()
                .contains(told),
            "{operation}"
        );
        let vm = api.until_state(&id, "error").await;
        assert_eq!(
            (&vm["reason"], &vm["local_ip"]),
            (&json!("start_failed"), &json!(null))
        );
    }
    assert!(api.host.networks_held().is_empty());
    assert!(api.host.live().is_empty());
    api.get("/live").await.expect(200);
}

#[tokio::test]
async fn a_guest_that_powers_itself_off_and_its_explanation_are_told() {
    let api = Api::start().await;
    api.small_template().await;
    api.small_vm("a").await;
    api.act("a", "start").await.expect(200);
    api.host
        .guest(&VmId::parse("a").unwrap(), RunState::Shutdown);
    let vm = api.until_state("a", "stopped").await;
    assert_eq!(vm["reason"], "guest_shutdown");
    let chain = api.get("/vms/a/explain").await.expect(200);
    let summary = chain["summary"].as_str().unwrap();
    assert!(summary.starts_with("stopped ← "), "{summary}");
    assert!(summary.contains("powered itself off"), "{summary}");
    let chain = chain["events"].as_array().unwrap();
    assert_eq!(chain[0]["to"], "stopped", "newest first");
    assert!(
        chain
            .iter()
            .any(|event| event["cause"]["principal"] == "local:0"),
        "{chain:?}"
    );
    assert_eq!(chain.last().unwrap()["kind"], "vm.created");
    for pair in chain.windows(2) {
        assert_eq!(pair[0]["previous"], pair[1]["revision"]);
    }
    let two = api.get("/vms/a/explain?limit=2").await.expect(200);
    assert_eq!(two["events"].as_array().unwrap().len(), 2);
    api.get("/vms/b/explain").await.problem(404, "not_found");
}

#[tokio::test]
async fn a_request_overrides_its_template_and_the_vm_keeps_its_copy() {
    let api = Api::with(Setup {
        default_boot_disk: Some("debian"),
        ..Setup::default()
    })
    .await;
    api.small_template().await;
    api.put_image("debian", "disk").await;
    api.put_image("initrd", "initrd").await;
    let vm = json!({
        "template_name": "small", "name": "a", "cpu_count": 3, "ram_amount": 2, "image": "debian",
        "boot": {"kernel": "linux", "initrd": "initrd", "cmdline": "a=b,c"}, "firmware": "uefi",
        "disk_gib": 5, "labels": {"env": "test", "tier": "x"},
        "restart": {"policy": "on-failure", "max_restarts": 2, "window_s": 60, "backoff_ms": 10},
    });
    let vm = api.post("/vms", &vm).await.expect(201);
    assert_eq!(
        vm["vm_template"],
        json!({"name": "small", "cpu_count": 3, "ram_amount": 2, "ram_mib": 2048})
    );
    assert_eq!(
        vm["boot"],
        json!({"kernel": "linux", "initrd": "initrd", "cmdline": "a=b,c"})
    );
    assert_eq!(
        vm["restart"],
        json!({
            "policy": "on-failure", "max_restarts": 2, "window_s": 60, "backoff_ms": 10,
            "backoff_max_ms": 60000, "count": 0, "total": 0,
        })
    );
    assert_eq!(
        vm["disks"],
        json!([{"id": "a-root", "mount_point": "/dev/vda"}])
    );
    let disk = api.get("/disks/a-root").await.expect(200);
    assert_eq!(
        (&disk["size"], &disk["backing_image"]),
        (&json!(5), &json!("debian"))
    );
    assert_eq!(
        (&disk["state"], &disk["vm_id"]),
        (&json!("attached"), &json!("a"))
    );
    assert_eq!(api.get("/disks").await.expect(200), json!([disk]));

    // Something to boot is said by the template: the default does not step in.
    assert_eq!(api.small_vm("b").await["image"], json!(null));
    api.post(
        "/templates",
        &json!({"name": "bare", "cpu_count": 1, "ram_amount": 1}),
    )
    .await
    .expect(201);
    let vm = api
        .post("/vms", &json!({"template_name": "bare"}))
        .await
        .expect(201);
    assert_eq!(vm["image"], "debian");
    assert!(vm["id"].as_str().is_some_and(|id| !id.is_empty()));

    api.delete("/images/debian")
        .await
        .problem(409, "image_in_use");
    api.delete("/vms/a?keep_root_disk=true").await.expect(204);
    let kept = api.get("/disks/a-root").await.expect(200);
    assert_eq!(
        (&kept["state"], &kept["vm_id"]),
        (&json!("available"), &json!(null))
    );
}

#[tokio::test]
async fn a_stale_if_match_changes_nothing_and_a_known_etag_is_answered_304() {
    let api = Api::start().await;
    api.small_template().await;
    api.small_vm("a").await;
    let seen = api.get("/vms/a").await;
    let old = seen.header("etag").to_owned();
    assert_eq!(old, format!("\"{}\"", seen.json()["revision"]));
    let known = [("if-none-match", old.as_str())];
    let same = api.send("GET", "/vms/a", &known, Body::empty()).await;
    assert_eq!((same.status, same.header("etag")), (304, old.as_str()));
    let current = [("if-match", old.as_str())];
    api.post_with("/vms/a/actions/start?wait_s=20", &current, &json!({}))
        .await
        .expect(200);
    let stale = api
        .post_with("/vms/a/actions/stop", &current, &json!({}))
        .await;
    assert_eq!(stale.problem(412, "stale_revision")["vm_id"], "a");
    api.send("DELETE", "/vms/a", &current, Body::empty())
        .await
        .problem(412, "stale_revision");
    api.send("GET", "/vms/a", &known, Body::empty())
        .await
        .expect(200);
    assert_eq!(api.get("/vms/a").await.expect(200)["state"], "running");

    let list = api.get("/vms").await.header("etag").to_owned();
    let same = api
        .send("GET", "/vms", &[("if-none-match", &list)], Body::empty())
        .await;
    assert_eq!(same.status, 304);
    api.send("DELETE", "/vms/a", &[("if-match", "*")], Body::empty())
        .await
        .expect(204);
}

#[tokio::test]
async fn limits_and_duplicates_are_conflicts() {
    let api = Api::with(Setup {
        max_vms: 1,
        ..Setup::default()
    })
    .await;
    api.small_template().await;
    api.small_vm("a").await;
    let vm = json!({"template_name": "small", "name": "a"});
    api.post("/vms", &vm).await.problem(409, "vm_exists");
    let vm = json!({"template_name": "small", "name": "b"});
    api.post("/vms", &vm).await.problem(409, "vm_limit_reached");
    let template = json!({"name": "small", "cpu_count": 1, "ram_mib": 1});
    api.post("/templates", &template)
        .await
        .problem(409, "template_exists");
    let again = api.send("PUT", "/images/linux", &[], Body::from("x")).await;
    again.problem(409, "image_exists");
}

#[tokio::test]
async fn deleting_a_vm_twice_at_once_is_one_deletion() {
    let api = Api::start().await;
    api.small_template().await;
    api.small_vm("a").await;
    api.act("a", "start").await.expect(200);
    let (one, two) = tokio::join!(api.delete("/vms/a"), api.delete("/vms/a"));
    for answer in [one, two] {
        assert!(matches!(answer.status, 204 | 404), "{answer:?}");
    }
    api.get("/vms/a").await.problem(404, "not_found");
}

#[tokio::test]
async fn the_small_paths_answer_as_the_contract_says() {
    let api = Api::start().await;
    let config = api.get("/network/config").await.expect(200);
    assert_eq!(config, json!({"status": "not_configured", "mode": "user"}));
    assert_eq!(api.get("/network/leases").await.expect(200), json!([]));
    let status = api.post("/observer/check", &json!({})).await.expect(200);
    assert_eq!(
        (&status["status"], &status["check_interval"]),
        (&json!("running"), &json!(5.0))
    );
    assert!(status["last_check_at"].is_string(), "{status}");
    let again = api.get("/observer/status").await.expect(200);
    assert_eq!(again["last_check_at"], status["last_check_at"]);
    let health = api.get("/health").await.expect(200);
    assert_eq!(
        (&health["status"], &health["service"]),
        (&json!("ok"), &json!("vman"))
    );
    for check in [
        "store", "storage", "qemu", "qemu_img", "network", "observer",
    ] {
        assert_eq!(health["checks"][check], "ok", "{health}");
    }
    assert!(health["version"].is_string());
    let yaml = api.get("/openapi.yaml").await;
    assert_eq!(
        (yaml.status, String::from_utf8(yaml.body).unwrap().as_str()),
        (200, vman::http::openapi_yaml())
    );
    assert!(api.get("/openapi.json").await.expect(200)["paths"]["/vms"].is_object());
    let page = api.get("/docs/index.html").await;
    let html = String::from_utf8(page.body.clone()).unwrap();
    assert!(page.status == 200 && !html.contains("https://"), "{html}");
    assert!(
        page.header("content-security-policy")
            .starts_with("default-src 'self'")
    );
    let script = api.get("/docs/swagger-initializer.js").await;
    let script = String::from_utf8(script.body).unwrap();
    assert!(
        script.contains("openapi.json") && !script.contains("https://"),
        "{script}"
    );
}

#[tokio::test]
async fn ready_is_told_only_when_recovery_is_done_and_live_always() {
    let api = Api::start().await;
    api.ready.send_replace(false);
    let not_yet = api.get("/ready").await;
    not_yet.problem(503, "not_ready");
    assert_eq!(not_yet.header("retry-after"), "1");
    api.get("/live").await.expect(200);
    api.ready.send_replace(true);
    api.get("/ready").await.expect(200);
    api.shutdown.cancel();
    api.get("/ready").await.problem(503, "shutting_down");
    api.get("/live").await.expect(200);
}

#[tokio::test]
async fn a_host_without_room_refuses_a_start_with_the_sum_and_tells_what_is_left() {
    let api = Api::with(Setup {
        allowance: vman_model::Allowance {
            memory_mib: Some(5_000),
            cpus: None,
        },
        ..Setup::default()
    })
    .await;
    let small = json!({"name": "small", "cpu_count": 1, "ram_amount": 1});
    api.post("/templates", &small).await.expect(201);
    for name in ["a", "b"] {
        let vm = json!({"template_name": "small", "name": name, "ram_mib": 3000, "cpu_count": 2});
        api.post("/vms", &vm).await.expect(201);
    }
    api.act("a", "start").await.expect(200);
    let refused = api.act("b", "start").await.problem(507, "host_exhausted");
    let detail = refused["detail"].as_str().unwrap();
    let sum = "it asks for 3000 MiB of memory, 3000 are promised to other VMs, and 5000 may be";
    assert!(detail.contains(sum), "{detail}");
    assert_eq!(api.get("/vms/b").await.expect(200)["state"], "stopped");
    let capacity = api.get("/host/capacity").await.expect(200);
    let expected = json!({
        "memory_mib": {"allowed": 5000, "promised": 3000, "available": 2000},
        "cpus": {"allowed": null, "promised": 2, "available": null},
    });
    assert_eq!(capacity, expected);
    api.act("a", "stop").await.expect(200);
    api.act("b", "start").await.expect(200);
}
