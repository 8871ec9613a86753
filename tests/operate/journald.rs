//! The daemon and a real journald, in a mount namespace of their own.

use crate::support::{
    daemon::{Daemon, PATIENCE},
    host, skip, wait_for,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    process::Command,
    time::{Duration, Instant},
};
use vman::telemetry::EVENT_CLASSES;

/// Starts journald away from the host's own and runs `$0 $@` beside it; 77 where that cannot be.
const IN_A_NAMESPACE: &str = r#"
mount --make-rprivate / && mkdir -p /run/systemd /run/log \
  && mount -t tmpfs tmpfs /run/systemd && mount -t tmpfs tmpfs /run/log \
  && mkdir -p /run/systemd/journal \
  && printf '[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n' > /run/systemd/j.conf \
  && mount --bind /run/systemd/j.conf /etc/systemd/journald.conf || exit 77
test -x /lib/systemd/systemd-journald || exit 77
/lib/systemd/systemd-journald & export JOURNALD=$!
trap 'kill -CONT $JOURNALD; kill -KILL $JOURNALD' EXIT
n=0; until [ -S /run/systemd/journal/socket ]; do n=$((n+1)); [ $n -gt 100 ] && exit 77; sleep 0.1; done
"$0" "$@"
"#;

/// Runs the test of this name again inside, or says why not. True inside.
fn inside(test: &str) -> bool {
    if std::env::var_os("JOURNALD").is_some() {
        return true;
    }
    let program = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", IN_A_NAMESPACE])
        .arg(program)
        .args(["--exact", test, "--nocapture", "--include-ignored"])
        .output();
    match output {
        Ok(output) if output.status.success() => {
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(told.contains("1 passed"), "nothing was run: {told}");
            eprint!("{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(output) if matches!(output.status.code(), Some(1 | 77)) && output.stdout.is_empty() => {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            skip(
                test,
                &format!("no journald of its own can be started here: {why}"),
            );
        }
        Ok(output) => panic!(
            "{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => skip(test, &format!("no unshare: {error}")),
    }
    false
}

fn journal(matches: &[&str]) -> Vec<Value> {
    let output = Command::new("journalctl")
        .args(["-q", "--all", "-o", "json"])
        .args(matches)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn id_of(event: &str) -> String {
    let class = EVENT_CLASSES.iter().find(|class| class.event == event);
    format!("MESSAGE_ID={}", class.unwrap().id)
}

fn daemon() -> Daemon {
    Daemon::start_with(&[
        ("VMAN_OPERATOR_DRY_RUN", "1"),
        ("VMAN_LOG_FORMAT", "journald"),
    ])
}

#[test]
fn a_vms_life_is_found_in_the_journal_by_its_id_its_request_and_its_message_ids() {
    if !inside(
        "journald::a_vms_life_is_found_in_the_journal_by_its_id_its_request_and_its_message_ids",
    ) {
        return;
    }
    let daemon = daemon();
    daemon.tiny_vms(&["web", "other"]);
    let operation = daemon.act("web", "start");
    let phase = id_of("vm.phase_changed");
    let phases = wait_for("the VM's phases in the journal", PATIENCE, || {
        let found = journal(&["VMAN_VM_ID=web", &phase]);
        let phases: Vec<_> = found
            .iter()
            .map(|record| record["VMAN_PHASE"].clone())
            .collect();
        phases.contains(&json!("running")).then_some(found)
    });
    let last = phases.last().unwrap();
    assert_eq!(last["MESSAGE"], "VM changed phase");
    assert_eq!(last["VMAN_EVENT"], "vm.phase_changed");
    assert_eq!(last["VMAN_INCARNATION"], "1");
    assert_eq!(last["VMAN_COMPONENT"], "vm");
    assert!(
        last["VMAN_CAUSE"].is_string() && last["VMAN_FROM"] == "launching",
        "{last}"
    );
    let request = format!(
        "VMAN_REQUEST_ID={}",
        operation["request_id"].as_str().unwrap()
    );
    let of_request = journal(&[&request]);
    let events: Vec<_> = of_request
        .iter()
        .map(|record| record["VMAN_EVENT"].clone())
        .collect();
    for event in ["vm.phase_changed", "request.answered"] {
        assert!(events.contains(&json!(event)), "{event}: {of_request:#?}");
    }
    let ready = journal(&[&id_of("daemon.ready")]);
    assert_eq!(ready.len(), 1, "{ready:?}");
    // What others write under a VM's id is not the daemon's word.
    let forged = Command::new("setpriv")
        .args(["--reuid=65534", "logger", "--journald"])
        .stdin(std::process::Stdio::piped())
        .spawn();
    if let Ok(mut forged) = forged {
        use std::io::Write as _;
        let mut entry = forged.stdin.take().unwrap();
        entry
            .write_all(b"MESSAGE=forged\nVMAN_VM_ID=web\n")
            .unwrap();
        drop(entry);
        assert!(forged.wait().unwrap().success());
        wait_for("the forged entry", PATIENCE, || {
            let there = journal(&["MESSAGE=forged"]);
            (there.len() == 1).then_some(())
        });
    }
    let told = daemon.get("/vms/web/logs?since=1h");
    let told = told.as_array().unwrap();
    let running = |record: &&Value| record["fields"]["phase"] == "running";
    let record = told.iter().find(running).expect("the record that it runs");
    assert_eq!(record["message"], "VM changed phase");
    assert_eq!(record["level"], "info");
    assert!(told.iter().all(|record| record["fields"]["vm_id"] == "web"));
    let messages: Vec<_> = told.iter().map(|record| &record["message"]).collect();
    assert!(!messages.contains(&&json!("forged")), "{messages:?}");
    let last = daemon.get("/vms/web/logs?lines=1");
    assert_eq!(last.as_array().unwrap().len(), 1, "{last}");
}

/// Records that journald did not get, as the metrics tell.
fn dropped(daemon: &Daemon) -> f64 {
    let text = daemon.call("GET", "/metrics", &Value::Null).body;
    let text = String::from_utf8(text).unwrap();
    let sample = "vman_log_dropped_records_total{destination=\"journald\"} ";
    let line = text.lines().find_map(|line| line.strip_prefix(sample));
    line.unwrap().parse().unwrap()
}

#[test]
fn a_journald_that_is_stopped_under_load_delays_no_request_and_drops_are_counted_and_told() {
    if !inside(
        "journald::a_journald_that_is_stopped_under_load_delays_no_request_and_drops_are_counted_and_told",
    ) {
        return;
    }
    let daemon = daemon();
    let journald: u32 = std::env::var("JOURNALD").unwrap().parse().unwrap();
    host::signal(journald, Signal::STOP);
    let dropped = || dropped(&daemon);
    assert_eq!(dropped(), 0.0);
    // None of these would come back if it waited for the journal, which does not read.
    wait_for("records to be dropped", 2 * PATIENCE, || {
        for _ in 0..500 {
            daemon.get("/templates");
        }
        (dropped() > 0.0).then_some(())
    });
    daemon.tiny_vms(&["web"]);
    assert_eq!(daemon.act("web", "start")["status"], "succeeded");
    host::signal(journald, Signal::CONT);
    wait_for("the drops to be told in the journal", PATIENCE, || {
        let told = journal(&[&id_of("log.dropped")]);
        let first = told.first()?;
        let count: f64 = first["VMAN_DROPPED"].as_str()?.parse().ok()?;
        (count > 0.0).then_some(())
    });
}

/// What one client met in its share of the minute.
struct Met {
    requests: u64,
    slowest: Duration,
}

fn load(daemon: &Daemon, until: Instant, client: usize) -> Met {
    let (mut requests, mut slowest) = (0, Duration::ZERO);
    let vm = format!("/vms/vm-{client}");
    while Instant::now() < until {
        for (method, target, status) in [
            ("GET", "/vms".to_owned(), 200),
            ("POST", format!("{vm}/actions/start?wait_s=20"), 200),
            ("GET", format!("{vm}/explain"), 200),
            (
                "POST",
                format!("{vm}/actions/stop?force=true&wait_s=20"),
                200,
            ),
        ] {
            let asked = Instant::now();
            let answer = daemon.call(method, &target, &Value::Null);
            slowest = slowest.max(asked.elapsed());
            assert_eq!(answer.status, status, "{method} {target}: {answer:?}");
            requests += 1;
        }
    }
    Met { requests, slowest }
}

#[test]
#[ignore = "long: journald stands still for a whole minute"]
fn a_minute_without_journald_under_load_delays_no_request_and_every_drop_is_counted() {
    if !inside(
        "journald::a_minute_without_journald_under_load_delays_no_request_and_every_drop_is_counted",
    ) {
        return;
    }
    const CLIENTS: usize = 4;
    const MINUTE: Duration = Duration::from_mins(1);
    let daemon = daemon();
    let names: Vec<_> = (0..CLIENTS).map(|number| format!("vm-{number}")).collect();
    daemon.tiny_vms(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let journald: u32 = std::env::var("JOURNALD").unwrap().parse().unwrap();
    host::signal(journald, Signal::STOP);
    let until = Instant::now() + MINUTE;
    let met: Vec<Met> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let daemon = &daemon;
                scope.spawn(move || load(daemon, until, client))
            })
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect()
    });
    let dropped_then = dropped(&daemon);
    let requests: u64 = met.iter().map(|met| met.requests).sum();
    let slowest = met.iter().map(|met| met.slowest).max().unwrap();
    eprintln!("{requests} requests, the slowest took {slowest:?}; {dropped_then} records dropped");
    assert!(dropped_then > 0.0);
    // One that waited for journald would have waited for what was left of the minute.
    assert!(slowest < MINUTE / 4, "{slowest:?}");
    host::signal(journald, Signal::CONT);
    wait_for("every drop to be told in the journal", PATIENCE, || {
        let told = journal(&[&id_of("log.dropped")]);
        let count = |record: &Value| record["VMAN_DROPPED"].as_str()?.parse::<f64>().ok();
        let told: f64 = told.iter().filter_map(count).sum();
        (told >= dropped_then).then_some(())
    });
    // And what comes now is there again.
    daemon.act("vm-0", "start");
    wait_for("the journal to go on", PATIENCE, || {
        let last = journal(&["VMAN_VM_ID=vm-0", "VMAN_PHASE=running", "-n", "1"]);
        (!last.is_empty()).then_some(())
    });
}

#[test]
fn journald_takes_the_catalogue() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("usr/lib/systemd/catalog");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::create_dir_all(root.path().join("var/lib/systemd/catalog")).unwrap();
    std::fs::write(folder.join("vman.catalog"), vman::telemetry::catalogue()).unwrap();
    let at = format!("--root={}", root.path().display());
    let Ok(updated) = Command::new("journalctl")
        .args(["--update-catalog", &at])
        .output()
    else {
        return skip(
            "journald_takes_the_catalogue",
            "journalctl is not installed",
        );
    };
    let told = String::from_utf8_lossy(&updated.stderr);
    assert!(updated.status.success() && told.is_empty(), "{told}");
    let listed = Command::new("journalctl")
        .args(["--list-catalog", &at])
        .output()
        .unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for class in EVENT_CLASSES {
        assert!(listed.contains(class.id), "{}: {listed}", class.event);
    }
}
