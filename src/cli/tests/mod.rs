//! What the client commands promise, against a tiny daemon.

mod server;
mod work;

use super::{Args, Terminal};
use crate::config::Environment;
use clap::{CommandFactory as _, Parser as _};
use serde_json::{Value, json};
use server::{Buffer, Daemon, Reply, run_in};
use std::sync::{Arc, Mutex};

fn vm(id: &str, state: &str) -> Value {
    json!({
        "id": id, "state": state, "reason": "user", "local_ip": "10.0.2.15",
        "vm_template": {"name": "small", "cpu_count": 2, "ram_amount": 2, "ram_mib": 1536},
        "started_at": "2026-11-21T00:39:21.123456Z", "labels": {"team": "a"}, "disks": [],
        "pid": null, "a_field_of_the_future": [1, 2],
    })
}

fn operation(status: &str) -> Value {
    json!({"id": "op-1", "kind": "vm.start", "vm_id": "hello", "status": status, "progress": 40, "step": "launching"})
}

fn problem() -> Value {
    json!({
        "title": "Conflict", "status": 409, "code": "vm_already_running",
        "detail": "VM hello is running already\u{1b}[31m; stop it first", "vm_id": "hello",
    })
}

#[test]
fn the_command_line_is_consistent() {
    Args::command().debug_assert();
}

#[test]
fn wrong_usage_is_refused_by_the_parser() {
    let wrong: [&[&str]; 8] = [
        &["vm", "create", "hello"],
        &["vm", "start"],
        &["vm", "stop", "hello", "--force", "--timeout", "3"],
        &["vm", "create", "-t", "x", "--initrd", "i"],
        &["disk", "create", "data", "--size", "1", "--size-mib", "1"],
        &["disk", "create", "data"],
        &["disk", "set", "data", "--read-only", "perhaps"],
        &["config", "show", "--set", "nothing"],
    ];
    for line in wrong {
        let parsed = Args::try_parse_from(["vman"].iter().chain(line));
        assert_eq!(parsed.map(|_| ()).unwrap_err().exit_code(), 2, "{line:?}");
    }
}

#[tokio::test]
async fn a_list_is_a_table_for_people_and_the_answer_for_programs() {
    let daemon = Daemon::start(|_| {
        Reply::Json(
            200,
            json!([vm("hello", "running"), {"id": "other", "state": "stopped"}]),
        )
    })
    .await;
    let ran = daemon
        .run(&["vm", "list", "--state", "running", "--label", "team=a b"])
        .await;
    let expected = "\
NAME   STATE    REASON  CPUS  MEMORY   ADDRESS    TEMPLATE  STARTED
hello  running  user    2     1.5 GiB  10.0.2.15  small     2026-11-21T00:39:21Z
other  stopped
";
    assert_eq!((ran.code, ran.out.as_str()), (0, expected), "{}", ran.err);
    assert_eq!(
        daemon.lines(),
        ["GET /vms?state=running&label=team%3Da%20b"]
    );
    let json = daemon.run(&["vm", "list", "-o", "json"]).await.out;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0], vm("hello", "running"));
    let yaml = daemon.run(&["vm", "list", "-o", "yaml"]).await.out;
    assert!(
        yaml.starts_with("- ") && yaml.contains("a_field_of_the_future:\n"),
        "{yaml}"
    );
    assert_eq!(
        daemon.run(&["vm", "ls", "-o", "name"]).await.out,
        "hello\nother\n"
    );
}

#[tokio::test]
async fn one_thing_is_shown_with_every_field() {
    let daemon = Daemon::start(|_| Reply::Json(200, vm("hello", "running"))).await;
    let out = daemon.run(&["vm", "info", "hello"]).await.out;
    for line in [
        "vm_template.ram_mib:     1536",
        "labels.team:             a",
        "a_field_of_the_future:   1,2",
    ] {
        assert!(out.lines().any(|found| found == line), "{out} lacks {line}");
    }
    assert!(!out.contains("pid"), "{out}");
}

#[tokio::test]
async fn an_empty_list_says_what_to_do_and_is_an_empty_list_for_programs() {
    let daemon = Daemon::start(|_| Reply::Json(200, json!([]))).await;
    let ran = daemon.run(&["vm", "list"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, ""));
    assert!(ran.err.contains("vman vm launch"), "{}", ran.err);
    assert_eq!(daemon.run(&["vm", "list", "-o", "json"]).await.out, "[]\n");
}

#[tokio::test]
async fn a_list_goes_on_over_its_pages_but_never_to_another_host() {
    let daemon = Daemon::start(|seen| {
        let next = |link: &str| format!("<{link}>; rel=\"next\"");
        let page = |id| json!([{"id": id}]);
        match seen.line.as_str() {
            "GET /vms" => Reply::With(200, page("a"), "link", next("/vms?cursor=a")),
            "GET /vms?cursor=a" => Reply::With(200, page("b"), "link", next("http://evil/vms")),
            other => panic!("{other}"),
        }
    })
    .await;
    assert_eq!(
        daemon.run(&["vm", "list", "-o", "name"]).await.out,
        "a\nb\n"
    );
}

#[tokio::test]
async fn nobody_there_is_exit_code_3_and_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("nobody");
    let socket = socket.to_str().unwrap();
    let environment = Environment::default();
    let out = Buffer::default();
    let line = ["vm", "list", "--socket", socket];
    let ran = run_in(&line, &environment, out.clone(), |_| {}).await;
    assert_eq!((ran.code, ran.out.as_str()), (3, ""));
    let expected = format!("cannot reach the daemon at unix:{socket}");
    assert!(
        ran.err.contains(&expected) && ran.err.contains("vman serve"),
        "{}",
        ran.err
    );
    let ran = run_in(&["version", "--socket", socket], &environment, out, |_| {}).await;
    assert!(
        ran.code == 0 && ran.out.contains("not reachable"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn a_url_that_makes_no_sense_is_wrong_usage() {
    for url in [
        "https://host:1",
        "ftp://host",
        "http://",
        "unix:relative",
        "http://h/path",
        "x y",
    ] {
        let line = ["vm", "list", "--url", url];
        let ran = run_in(&line, &Environment::default(), Buffer::default(), |_| {}).await;
        assert_eq!(ran.code, 2, "{url}: {}", ran.err);
    }
}

#[tokio::test]
async fn a_problem_is_exit_code_1_with_detail_code_and_fields() {
    let daemon = Daemon::start(|seen| {
        if seen.line.starts_with("POST /templates") {
            let errors = json!([{"field": "cpu_count", "detail": "must be at least 1"}]);
            let body = json!({"detail": "the template is impossible", "code": "invalid", "errors": errors});
            return Reply::Json(422, body);
        }
        Reply::Json(409, problem())
    })
    .await;
    let ran = daemon.run(&["vm", "start", "hello"]).await;
    let expected = "vman: VM hello is running already; stop it first (vm_already_running)\n";
    assert_eq!((ran.code, ran.err.as_str()), (1, expected));
    let ran = daemon
        .run(&["template", "create", "t", "--cpus", "0", "--ram", "1"])
        .await;
    assert_eq!(ran.code, 1);
    assert!(
        ran.err
            .ends_with("(invalid)\n  cpu_count: must be at least 1\n"),
        "{}",
        ran.err
    );
    let sent = daemon.seen().last().unwrap().json();
    assert_eq!(sent, json!({"name": "t", "cpu_count": 0, "ram_amount": 1}));
}

#[tokio::test]
async fn what_is_no_vman_is_told_apart() {
    let daemon = Daemon::start(|_| Reply::Raw("text/html", b"<html>".to_vec())).await;
    let ran = daemon.run(&["vm", "list"]).await;
    assert!(
        ran.code == 1 && ran.err.contains("does not speak as VMAN"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn names_cannot_change_the_path_that_is_asked() {
    let daemon = Daemon::start(|_| Reply::Json(404, json!({"detail": "unknown"}))).await;
    daemon.run(&["vm", "info", "../templates?x=1#y"]).await;
    assert_eq!(daemon.lines(), ["GET /vms/..%2Ftemplates%3Fx%3D1%23y"]);
}

#[tokio::test]
async fn a_console_is_harmless_on_a_terminal_and_raw_elsewhere() {
    let daemon = Daemon::start(|seen| {
        if seen.line.contains("follow") {
            return Reply::Raw("text/plain", b"live\x1b[2J\r\n".to_vec());
        }
        let console = json!({"vm_id": "hello", "console": "up\u{1b}]0;evil\u{7}\r\n"});
        Reply::Json(200, console)
    })
    .await;
    let on_terminal = |terminal: &mut Terminal| terminal.out_is_terminal = true;
    let line = ["vm", "console", "hello"];
    assert_eq!(daemon.run_on(&line, on_terminal).await.out, "up\n");
    assert_eq!(daemon.run(&line).await.out, "up\u{1b}]0;evil\u{7}\r\n");
    let follow = ["vm", "console", "hello", "-f"];
    assert_eq!(daemon.run_on(&follow, on_terminal).await.out, "live\n");
    let raw = ["vm", "console", "hello", "-f", "--raw"];
    assert_eq!(
        daemon.run_on(&raw, on_terminal).await.out,
        "live\u{1b}[2J\r\n"
    );
}

#[tokio::test]
async fn log_records_are_a_line_each_and_harmless() {
    let daemon = Daemon::start(|seen| {
        let record = json!({
            "at": "2026-11-21T08:00:00.000000Z", "level": "info", "target": "vman::test",
            "message": "VM changed phase\u{1b}[2J",
            "fields": {"vm_id": "web", "phase": "running", "detail": "a b"},
        });
        if seen.line.contains("follow") {
            return Reply::Raw("application/x-ndjson", format!("{record}\n").into_bytes());
        }
        Reply::Json(200, json!([record]))
    })
    .await;
    let expected =
        "2026-11-21T08:00:00.000000Z  info VM changed phase detail=\"a b\" phase=running\n";
    let ran = daemon.run(&["vm", "logs", "web", "--since", "1h"]).await;
    assert_eq!(ran.out, expected);
    let ran = daemon.run(&["vm", "logs", "web", "-f", "-n", "5"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, expected), "{}", ran.err);
    let ran = daemon.run(&["vm", "logs", "web", "-f", "-o", "json"]).await;
    let printed: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(printed["fields"]["phase"], "running");
    assert_eq!(
        daemon.lines()[..2],
        [
            "GET /vms/web/logs?lines=200&since=1h",
            "GET /vms/web/logs?lines=5&follow=true"
        ]
    );
}

#[tokio::test]
async fn how_a_disk_behaves_is_said_when_it_is_made_and_changed_later() {
    let daemon = Daemon::start(|_| Reply::Json(200, json!({"id": "data"}))).await;
    let line = "disk create data --image debian --cache none --read-only --iops 500 -o name";
    let ran = daemon.run(&line.split(' ').collect::<Vec<_>>()).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "data\n"), "{}", ran.err);
    let line = "disk set data --iops 0 --bps 1000000 --bps-burst 2000000 --read-only=false";
    let ran = daemon.run(&line.split(' ').collect::<Vec<_>>()).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let seen = daemon.seen();
    let lines = [&seen[0].line, &seen[1].line];
    assert_eq!(lines, ["POST /disks", "PATCH /disks/data"]);
    let said =
        json!({"name": "data", "image": "debian", "cache": "none", "read_only": true, "iops": 500});
    assert_eq!(seen[0].json(), said);
    let said = json!({"iops": 0, "bps": 1_000_000, "bps_burst": 2_000_000, "read_only": false});
    assert_eq!(seen[1].json(), said);
}

#[tokio::test]
async fn an_image_is_streamed_with_its_length_kind_and_checksum() {
    let daemon = Daemon::start(|_| Reply::Json(201, json!({"name": "disk-1"}))).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("image");
    let content: Vec<u8> = (0..1_000_003_u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(&file, &content).unwrap();
    let file = file.to_str().unwrap();
    let line = [
        "image", "put", "disk-1", file, "--kind", "kernel", "--sha256", "ab12", "-o", "name",
    ];
    let ran = daemon.run(&line).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "disk-1\n"), "{}", ran.err);
    let seen = &daemon.seen()[0];
    assert_eq!(seen.line, "PUT /images/disk-1?kind=kernel");
    assert_eq!(
        (
            seen.header("content-length"),
            seen.header("x-checksum-sha256")
        ),
        ("1000003", "ab12")
    );
    assert!(seen.body == content);
    let ran = daemon.run(&["image", "put", "x", "/nonexistent"]).await;
    assert!(
        ran.code == 1 && ran.err.contains("cannot read /nonexistent"),
        "{ran:?}"
    );
    let ran = daemon
        .run(&["image", "put", "x", directory.path().to_str().unwrap()])
        .await;
    assert!(
        ran.code == 1 && ran.err.contains("not a regular file"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn events_are_followed_over_a_lost_connection_from_where_they_ended() {
    let daemon = Daemon::start(|seen| {
        let next = seen.header("last-event-id").parse::<u64>().map_or(6, |last| last + 1);
        let event = json!({"revision": next, "at": 1_000, "kind": "vm.created", "vm_id": "hello", "detail": "made\nnow"});
        Reply::Raw("text/event-stream", format!("id: {next}\ndata: {event}\n\n").into_bytes())
    })
    .await;
    let out = Buffer {
        writes_left: Some(Arc::new(Mutex::new(2))),
        ..Buffer::default()
    };
    let url = daemon.tcp_url();
    let line = ["events", "--follow", "--since", "6", "--url", &url];
    // The reader goes away after two events, which is no failure.
    let ran = run_in(&line, &Environment::default(), out, |_| {}).await;
    let expected = "7  1970-01-01T00:00:01Z  vm.created  hello  made now\n8  1970-01-01T00:00:01Z  vm.created  hello  made now\n";
    assert_eq!((ran.code, ran.out.as_str()), (0, expected), "{}", ran.err);
    let seen = daemon.seen();
    assert_eq!(seen[1].line, "GET /events?since=7");
    assert_eq!(seen[1].header("accept"), "text/event-stream");
}

#[tokio::test]
async fn over_tcp_the_token_of_the_environment_is_shown() {
    let daemon = Daemon::start(|_| Reply::Json(200, json!([]))).await;
    let mut environment = Environment::default();
    let variables = [
        ("VMAN_URL", daemon.tcp_url()),
        ("VMAN_TOKEN", "secret".to_owned()),
    ];
    for (name, value) in variables {
        environment.variables.insert(name.to_owned(), value);
    }
    run_in(&["disk", "list"], &environment, Buffer::default(), |_| {}).await;
    let seen = daemon.seen();
    assert_eq!(seen[0].header("authorization"), "Bearer secret");
    assert_eq!(
        seen[0].header("host"),
        daemon.tcp_url().trim_start_matches("http://")
    );
    // The socket needs none.
    daemon.run(&["disk", "list"]).await;
    assert_eq!(daemon.seen()[1].header("authorization"), "");
}

#[tokio::test]
async fn explain_tells_the_state_and_then_the_events() {
    let daemon = Daemon::start(|seen| match seen.line.as_str() {
        "GET /vms/hello" => Reply::Json(200, json!({"id": "hello", "state": "error", "reason": "qemu_exit", "detail": "QEMU ended"})),
        _ => Reply::Json(200, json!({"summary": "failed ← QEMU ended", "events": [{"revision": 9, "from": "Running", "to": "Failed", "cause": {"origin": "process", "input": "QemuExited"}}]})),
    })
    .await;
    let ran = daemon.run(&["vm", "explain", "hello"]).await;
    assert!(
        ran.out
            .starts_with("hello is error (qemu_exit): QEMU ended\nfailed ← QEMU ended\nREVISION"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("Running  Failed"), "{}", ran.out);
}

#[tokio::test]
async fn the_configuration_is_shown_with_sources_and_checked_with_all_faults() {
    let mut environment = Environment::default();
    environment
        .variables
        .insert("HOME".to_owned(), "/home/ada".to_owned());
    environment.uid = 1000;
    let line = ["config", "show", "--set", "vlan_id=7", "--accel", "tcg"];
    let ran = run_in(&line, &environment, Buffer::default(), |_| {}).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let row = |name: &str| {
        let line = ran.out.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        row("vlan_id"),
        "vlan_id 7 --set vlan_id on the command line"
    );
    assert_eq!(row("accel"), "accel tcg --accel on the command line");
    assert_eq!(row("max_vms"), "max_vms 10000 default");
    let line = [
        "config",
        "check",
        "--set",
        "vlan_id=0",
        "--set",
        "nonsens=1",
    ];
    let ran = run_in(&line, &environment, Buffer::default(), |_| {}).await;
    assert_eq!(ran.code, 2);
    assert!(
        ran.err.contains("2 fault(s)") && ran.err.contains("from 1 to 4094"),
        "{}",
        ran.err
    );
}

#[tokio::test]
async fn completion_scripts_are_made_for_the_usual_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let line = ["completion", shell];
        let ran = run_in(&line, &Environment::default(), Buffer::default(), |_| {}).await;
        assert!(ran.code == 0 && ran.out.contains("console"), "{shell}");
    }
}
