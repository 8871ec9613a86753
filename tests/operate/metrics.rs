//! `/metrics` of the real daemon, and what is written about it.

use crate::support::{
    can_run,
    daemon::{Daemon, PATIENCE},
    host, wait_for,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    process::{Command, Stdio},
};
use vman::http::METRICS;

fn text_of(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn scrape(daemon: &Daemon) -> String {
    let answer = daemon.call("GET", "/metrics", &Value::Null);
    assert_eq!(answer.status, 200);
    let kind = answer.header("content-type").unwrap().to_owned();
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    String::from_utf8(answer.body).unwrap()
}

/// A scrape as samples by name and labels; panics where it breaks the format.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    let mut families = BTreeSet::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            rest.split(' ').next().unwrap().clone_into(&mut family);
            assert!(families.insert(family.clone()), "{family} is there twice");
        } else if !line.starts_with('#') {
            let (sample, value) = line.rsplit_once(' ').expect(line);
            let name = sample.split('{').next().unwrap();
            assert!(name.starts_with(&family), "{line} is outside of its family");
            let value: f64 = value.parse().expect(line);
            let twice = found.insert(sample.to_owned(), value).is_some();
            assert!(!twice, "{sample} is there twice");
        }
    }
    found
}

/// What promtool says against it, where it is installed.
fn promtool(text: &str) {
    let started = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut checker) = started else {
        crate::support::skip(
            "promtool_accepts_the_metrics",
            "promtool (Debian: prometheus) is not installed; this crate's own checker ran",
        );
        return;
    };
    let mut input = checker.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    let said = checker.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.success() && told.is_empty(), "{told}");
}

#[test]
fn a_running_vm_is_seen_in_the_metrics_also_while_its_qemu_hangs() {
    if !can_run("a_running_vm_is_seen_in_the_metrics_also_while_its_qemu_hangs") {
        return;
    }
    let daemon = Daemon::start();
    daemon.tiny_vms(&["web"]);
    let disk = json!({"name": "data", "size_mib": 64});
    daemon.post("/disks", &disk).expect(201);
    daemon
        .post("/disks/data/attach", &json!({"vm_id": "web"}))
        .expect(200);
    daemon.act("web", "start");
    let pid = daemon.pid_of("web");
    let balloon = "vman_vm_memory_balloon_bytes{vm=\"web\"}";
    let sampled = wait_for("what its QEMU counts", PATIENCE, || {
        let seen = samples(&scrape(&daemon));
        seen.contains_key(balloon).then_some(seen)
    });
    assert_eq!(sampled[balloon], f64::from(32 << 20));
    for figure in [
        "read_bytes",
        "written_bytes",
        "read_requests",
        "flush_requests",
    ] {
        let sample = format!("vman_vm_disk_{figure}_total{{vm=\"web\",disk=\"data\"}}");
        assert!(sampled.contains_key(&sample), "{sample}: {sampled:#?}");
    }
    host::signal(pid, Signal::STOP);
    let seen = wait_for("the VM's memory in the metrics", PATIENCE, || {
        let seen = samples(&scrape(&daemon));
        let there = seen.contains_key("vman_vm_memory_rss_bytes{vm=\"web\"}");
        there.then_some(seen)
    });
    assert!(seen.contains_key(balloon), "what it said last still stands");
    host::signal(pid, Signal::CONT);
    let value = |sample: &str| {
        *seen
            .get(sample)
            .unwrap_or_else(|| panic!("no {sample}: {seen:#?}"))
    };
    assert!(value("vman_vm_memory_rss_bytes{vm=\"web\"}") > 1e6);
    assert!(value("vman_vm_cpu_seconds_total{vm=\"web\"}") >= 0.0);
    assert_eq!(
        value("vman_vm_memory_configured_bytes{vm=\"web\"}"),
        f64::from(32 << 20)
    );
    assert_eq!(value("vman_vms{state=\"running\"}"), 1.0);
    assert_eq!(value("vman_ready"), 1.0);
    assert!(value("vman_recovery_seconds") > 0.0);
    let ended = "vman_operation_duration_seconds_count{kind=\"vm.start\",status=\"succeeded\"}";
    assert_eq!(value(ended), 1.0);
    let route = "vman_http_requests_total{method=\"POST\",route=\"/vms/{id}/actions/{action}\",status=\"200\"}";
    assert_eq!(value(route), 1.0);
    assert!(value("vman_store_commit_duration_seconds_count") > 0.0);
    for actor in [
        "root",
        "store",
        "vm_supervisor",
        "vm",
        "network",
        "observer",
    ] {
        value(&format!("vman_actor_mailbox_depth{{actor=\"{actor}\"}}"));
        let handled = format!("vman_actor_handler_duration_seconds_count{{actor=\"{actor}\"}}");
        assert!(value(&handled) >= 0.0);
    }
    let handled = "vman_actor_handler_duration_seconds_count{actor=\"vm\"}";
    assert!(value(handled) > 3.0, "a start is more messages than these");
    assert_eq!(
        value("vman_host_memory_promised_bytes"),
        f64::from(32 << 20)
    );
    assert_eq!(value("vman_host_cpus_promised"), 1.0);
    assert!(value("vman_host_memory_bytes") > f64::from(32 << 20));
    assert!(value("vman_host_cpus") >= 1.0);
    assert!(value("process_resident_memory_bytes") > 1e6);
    promtool(&scrape(&daemon));
}

#[test]
fn a_qemu_that_is_killed_and_restarted_is_counted_with_its_reason() {
    if !can_run("a_qemu_that_is_killed_and_restarted_is_counted_with_its_reason") {
        return;
    }
    let daemon = Daemon::start();
    daemon.tiny_template();
    let vm = serde_json::json!({"template_name": "tiny", "name": "web", "restart": {"policy": "always"}});
    daemon.post("/vms", &vm).expect(201);
    daemon.act("web", "start");
    daemon.act("web", "pause");
    host::signal(daemon.pid_of("web"), Signal::KILL);
    wait_for("the restart to be counted", PATIENCE, || {
        let seen = samples(&scrape(&daemon));
        let restarts = seen.get("vman_vm_restarts_total{reason=\"qemu_signal\"}");
        let paused = "vman_qmp_command_duration_seconds_count{command=\"stop\",outcome=\"ok\"}";
        (restarts == Some(&1.0) && seen.get(paused) == Some(&1.0)).then_some(())
    });
}

#[test]
fn every_metric_is_documented_and_told_and_promtool_accepts_them() {
    let daemon = Daemon::start_with(&[("VMAN_OPERATOR_DRY_RUN", "1")]);
    daemon.tiny_vms(&["web"]);
    daemon.act("web", "start");
    daemon.get("/observer/status");
    daemon.post("/observer/check", &Value::Null).expect(200);
    let text = wait_for("a scrape after the check", PATIENCE, || {
        let text = scrape(&daemon);
        text.contains("vman_observer_last_check_time_seconds")
            .then_some(text)
    });
    samples(&text);
    promtool(&text);
    let documented = text_of("docs/metrics.md");
    for metric in METRICS {
        let kind = metric.kind.as_str();
        let told = text.contains(&format!("# TYPE {} {kind}\n", metric.name));
        assert!(told, "{} is in the catalogue and not told", metric.name);
        let labels: Vec<_> = metric.labels.iter().map(|l| format!("`{l}`")).collect();
        let row = format!(
            "| `{}` | {kind} | {} | {} |",
            metric.name,
            labels.join(", "),
            metric.help
        );
        assert!(documented.contains(&row), "docs/metrics.md lacks: {row}");
    }
    for line in documented.lines().filter(|line| line.starts_with("| `")) {
        for name in names_in(line) {
            let known = METRICS.iter().any(|metric| metric.name == name);
            assert!(known, "docs/metrics.md tells {name}, which is not there");
        }
    }
}

#[test]
fn the_dashboard_asks_for_metrics_and_labels_that_are_there() {
    let dashboard: Value = serde_json::from_str(&text_of("contrib/grafana/vman.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut asked = 0;
    for target in panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap())
    {
        let query = target["expr"].as_str().unwrap();
        let names = names_in(query);
        assert!(!names.is_empty(), "{query}");
        for name in names {
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix));
            let metric = METRICS
                .iter()
                .find(|metric| metric.name == name || Some(metric.name) == base)
                .unwrap_or_else(|| panic!("{query} asks for {name}, which is not there"));
            let legend = target["legendFormat"].as_str().unwrap();
            if let Some(label) = legend.strip_prefix("{{").and_then(|l| l.strip_suffix("}}")) {
                assert!(metric.labels.contains(&label), "{query} by {label}");
            }
            asked += 1;
        }
    }
    assert!(asked >= panels.len());
}

/// The metrics named in a text.
fn names_in(text: &str) -> Vec<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("vman_") || word.starts_with("process_"))
        .collect()
}
