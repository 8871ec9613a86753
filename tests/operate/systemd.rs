//! How the daemon behaves under systemd, without one: the notifications it
//! sends, the sockets it takes over, what a reload changes; and the unit itself.

use crate::support::{
    daemon::{Daemon, PATIENCE},
    host, skip, wait_for,
};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    fs,
    os::unix::net::{UnixDatagram, UnixListener},
    path::PathBuf,
    process::Command,
};

const DRY: (&str, &str) = ("VMAN_OPERATOR_DRY_RUN", "1");

fn unit(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("contrib/systemd")
        .join(name)
}

#[test]
fn systemd_hears_ready_when_recovery_is_done_then_a_living_watchdog_then_stopping() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let notified = UnixDatagram::bind(&path).unwrap();
    notified.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut hears = {
        let mut buffer = [0; 4096];
        move || {
            let length = notified.recv(&mut buffer).expect("a notification in time");
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        }
    };
    let mut until = move |word: &str| {
        for _ in 0..1000 {
            if hears().lines().any(|line| line == word) {
                return;
            }
        }
        panic!("{word} did not come");
    };
    let mut daemon = Daemon::unstarted(&[
        DRY,
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "200000"),
    ]);
    daemon.spawn();
    until("READY=1");
    until("WATCHDOG=1");
    until("WATCHDOG=1");
    assert!(daemon.terminate().success());
    until("STOPPING=1");
}

#[test]
fn a_socket_that_systemd_made_is_served_and_no_other_is_made() {
    let mut daemon = Daemon::unstarted(&[DRY]);
    fs::create_dir(daemon.folder().join("run")).unwrap();
    let listener = UnixListener::bind(daemon.socket()).unwrap();
    let made = fs::metadata(daemon.socket()).unwrap();
    daemon.hand_over(listener);
    daemon.wait_ready();
    use std::os::unix::fs::MetadataExt as _;
    let there = fs::metadata(daemon.socket()).unwrap();
    assert_eq!(there.ino(), made.ino(), "it was made anew");
    assert!(daemon.terminate().success());
}

#[test]
fn a_reload_changes_the_log_level_at_once_and_says_what_waits_for_a_restart() {
    let mut daemon = Daemon::unstarted(&[DRY]);
    daemon.unset("VMAN_LOG_LEVEL");
    let env = daemon.folder().join(".env");
    fs::write(&env, "VMAN_LOG_LEVEL=info\n").unwrap();
    daemon.serve();
    let debug_lines = |log: &str| log.lines().filter(|line| line.contains(" DEBUG ")).count();
    daemon.get("/vms");
    assert_eq!(debug_lines(&daemon.log()), 0);
    fs::write(&env, "VMAN_LOG_LEVEL=debug\nVMAN_MAX_VMS=7\n").unwrap();
    host::signal(daemon.pid(), Signal::HUP);
    wait_for("the reload to be told", PATIENCE, || {
        let log = daemon.log();
        let told = log.contains("applied=log_level") && log.contains("waiting=max_vms");
        told.then_some(())
    });
    daemon.get("/vms");
    wait_for("a debug line", PATIENCE, || {
        (debug_lines(&daemon.log()) > 0).then_some(())
    });
    // A wrong one is told, and the daemon goes on.
    fs::write(&env, "VMAN_LOG_LEVEL=loud\n").unwrap();
    host::signal(daemon.pid(), Signal::HUP);
    wait_for("the wrong configuration to be told", PATIENCE, || {
        let log = daemon.log();
        log.contains("nothing of it is applied").then_some(())
    });
    assert_eq!(daemon.call("GET", "/live", &Value::Null).status, 200);
}

fn analyze(test: &str, arguments: &[&str]) -> Option<std::process::Output> {
    let output = Command::new("systemd-analyze").args(arguments).output();
    if output.is_err() {
        skip(test, "systemd-analyze is not installed");
    }
    output.ok()
}

#[test]
fn systemd_finds_no_fault_in_the_units() {
    let test = "systemd_finds_no_fault_in_the_units";
    // Verification asks for the binary the unit names: the one just built stands in.
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "vman.service",
        "vman.socket",
        "vman-tcp.socket",
        "drain/vman-drain.service",
    ] {
        let text = fs::read_to_string(unit(name)).unwrap();
        let text = text.replace("/usr/bin/vman", env!("CARGO_BIN_EXE_vman"));
        let name = name.rsplit('/').next().unwrap();
        fs::write(folder.path().join(name), text).unwrap();
    }
    let service = folder.path().join("vman.service");
    let socket = folder.path().join("vman.socket");
    let drain = folder.path().join("vman-drain.service");
    let all = [&service, &socket, &drain].map(|path| path.to_str().unwrap());
    let Some(output) = analyze(test, &["verify", "--man=no", all[0], all[1], all[2]]) else {
        return;
    };
    let told = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<_> = told.lines().filter(|line| line.contains("vman")).collect();
    assert!(output.status.success() && ours.is_empty(), "{told}");
}

#[test]
fn the_service_is_confined_as_far_as_its_work_allows() {
    let test = "the_service_is_confined_as_far_as_its_work_allows";
    let service = unit("vman.service");
    let service = service.to_str().unwrap();
    // Tenths. What is left is listed with its reason in docs/security.md.
    let arguments = ["security", "--offline=true", "--threshold=30", service];
    let Some(output) = analyze(test, &arguments) else {
        return;
    };
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}");
}

/// What keeps guests running over `systemctl restart vman` must stay in the unit.
#[test]
fn the_unit_keeps_what_guests_live_by() {
    let text = fs::read_to_string(unit("vman.service")).unwrap();
    for line in [
        "Type=notify",
        "KillMode=process",
        "Restart=always",
        "RestartPreventExitStatus=2 4",
        "RuntimeDirectoryPreserve=yes",
    ] {
        assert!(text.lines().any(|there| there == line), "{line}");
    }
}

/// The order of a shutdown is the reverse of this one, and only a shutdown may stop guests.
#[test]
fn the_drain_comes_before_everything_guests_need_and_only_on_the_way_down() {
    let text = fs::read_to_string(unit("drain/vman-drain.service")).unwrap();
    let after = text.lines().find_map(|line| line.strip_prefix("After="));
    let after: Vec<_> = after.unwrap().split(' ').collect();
    for needed in [
        "vman.service",
        "network.target",
        "local-fs.target",
        "remote-fs.target",
    ] {
        assert!(after.contains(&needed), "{needed}");
    }
    for bound in ["Requires=", "BindsTo=", "PartOf="] {
        assert!(
            !text.contains(bound),
            "a restart of vman.service would drain: {bound}"
        );
    }
    // The very command, with a systemctl that says what state the host is in.
    let stop = text
        .lines()
        .find_map(|line| line.strip_prefix("ExecStop=/bin/sh -c '"));
    let stop = stop.unwrap().trim_end_matches('\'').replace("$$", "$");
    let folder = tempfile::tempdir().unwrap();
    let script = |name: &str, body: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        let path = folder.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    script("systemctl", "echo $STATE");
    let asked = folder.path().join("asked");
    script("vman", &format!("echo \"$@\" >>{}", asked.display()));
    let stop = stop.replace("/usr/bin/", "");
    for (state, drained) in [("running", false), ("degraded", false), ("stopping", true)] {
        let path = format!("{}:/bin:/usr/bin", folder.path().display());
        let ended = Command::new("/bin/sh")
            .args(["-c", &stop])
            .env("PATH", path)
            .env("STATE", state)
            .status()
            .unwrap();
        assert!(ended.success(), "{state}");
        assert_eq!(asked.exists(), drained, "{state}");
        let words = fs::read_to_string(&asked).unwrap_or_default();
        assert_eq!(words.starts_with("host drain "), drained, "{words}");
    }
}
