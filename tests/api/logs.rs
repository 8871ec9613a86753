//! The log's records about a VM, as they are told and as they come.

use crate::support::{Api, Setup};
use axum::body::Body;
use http_body_util::BodyExt;
use std::{fs::File, io::Write, path::Path};
use vman::{config::LogFile, telemetry::LogReader};

/// An API whose daemon logs to a file in `folder`, with the VMs `a` and `b`.
async fn api(folder: &Path) -> (Api, File) {
    let path = folder.join("vman.log");
    let file = File::create(&path).unwrap();
    let log = LogReader::of_file(LogFile {
        path,
        max_bytes: 1 << 20,
        backup_count: 1,
    });
    let api = Api::with(Setup {
        log,
        ..Setup::default()
    })
    .await;
    api.small_template().await;
    api.small_vm("a").await;
    api.small_vm("b").await;
    (api, file)
}

fn say(file: &mut File, vm: &str, message: &str) {
    let line =
        format!("2026-11-21T08:00:00.000000Z  INFO vman::test: {message} vm_id={vm} event=e\n");
    file.write_all(line.as_bytes()).unwrap();
}

#[tokio::test]
async fn the_records_about_a_vm_are_told_oldest_first_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let (api, mut file) = api(folder.path()).await;
    for (vm, message) in [("a", "one"), ("b", "two"), ("a", "three")] {
        say(&mut file, vm, message);
    }
    let told = api.get("/vms/a/logs").await.expect(200);
    let messages: Vec<_> = told
        .as_array()
        .unwrap()
        .iter()
        .map(|r| &r["message"])
        .collect();
    assert_eq!(messages, ["one", "three"]);
    let record = &told[0];
    assert_eq!(record["at"], "2026-11-21T08:00:00.000000Z");
    assert_eq!(
        (&record["level"], &record["target"]),
        (&"info".into(), &"vman::test".into())
    );
    assert_eq!(record["fields"]["event"], "e");
    let last = api.get("/vms/a/logs?lines=1").await.expect(200);
    assert_eq!(last[0]["message"], "three");
    let none = api
        .get("/vms/a/logs?since=2026-11-21T08:00:01Z")
        .await
        .expect(200);
    assert_eq!(none, serde_json::json!([]));
}

#[tokio::test]
async fn records_are_followed_until_the_vm_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let (api, mut file) = api(folder.path()).await;
    say(&mut file, "a", "before");
    let answer = api
        .open("GET", "/vms/a/logs?follow=true", &[], Body::empty())
        .await;
    assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
    let mut body = answer.into_body();
    for message in ["before", "after"] {
        let line = body.frame().await.unwrap().unwrap().into_data().unwrap();
        let record: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(record["message"], message);
        say(&mut file, "b", "not this one");
        say(&mut file, "a", "after");
    }
    api.delete("/vms/a").await.expect(204);
    while let Some(frame) = body.frame().await {
        frame.unwrap();
    }
}

#[tokio::test]
async fn what_cannot_be_told_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let (with_file, _file) = api(folder.path()).await;
    with_file
        .get("/vms/none/logs")
        .await
        .problem(404, "not_found");
    for query in [
        "lines=0",
        "lines=10001",
        "since=yesterday",
        "follow=maybe",
        "unit=sshd",
    ] {
        let answer = with_file.get(&format!("/vms/a/logs?{query}")).await;
        answer.problem(400, "malformed_query");
    }
    let nowhere = Api::start().await;
    nowhere.small_template().await;
    nowhere.small_vm("a").await;
    for target in ["/vms/a/logs", "/vms/a/logs?follow=true"] {
        let problem = nowhere.get(target).await.problem(409, "logs_not_kept");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("VMAN_LOG_FILE"), "{detail}");
    }
}
