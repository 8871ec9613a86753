//! `make bench`: what VMAN adds to bare QEMU, measured in one run.
//!
//! Each figure stands beside its floor: the same QEMU with the same arguments,
//! started and ended by this program. The two are measured in turn, so that a
//! machine that gets slower or faster does so for both.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    missing_docs
)]

#[path = "parts/disks.rs"]
mod disks;
#[path = "../tests/support/mod.rs"]
mod support;

#[path = "load/mod.rs"]
mod load;
#[path = "net/mod.rs"]
mod net;
#[path = "scale/mod.rs"]
mod scale;

use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use support::{
    daemon::{Daemon, PATIENCE},
    host,
    http::request,
    wait_for,
};

const STARTS: usize = 40;
const ADOPTED: usize = 100;
const ADOPTIONS: usize = 5;
const DEATHS: usize = 100;
/// The observer's checks: over so many simulated VMs, so many times.
const CHECKED: usize = 1_000;
const CHECKS: u32 = 20;
/// How long a daemon with [`ADOPTED`] QEMUs is watched doing nothing.
const IDLE: Duration = Duration::from_secs(30);
const HUNG_ROUNDS: usize = 10;
const HUNG_LISTS: usize = 20;

fn main() {
    if load::floor::serve_if_asked() {
        return;
    }
    // `cargo test --benches` and `cargo bench -- --list` are not asking for figures.
    let asked = |what: &str| std::env::args().any(|arg| arg == what);
    if asked("--list") || asked("--test") {
        return;
    }
    if !support::can_run("bench") {
        return;
    }
    // `cargo bench --bench vman -- scale`, `disks`, `starts` or `network`: those rows alone.
    if asked("scale") {
        return scale::measure();
    }
    println!(
        "VMAN beside bare QEMU, accel {}, times in ms\n",
        support::accel()
    );
    println!(
        "{:<44} {:>8} {:>8} {:>8}   {:>8} {:>8} {:>8}   against the floor",
        "", "median", "p10", "p99", "floor", "p10", "p99"
    );
    let parts: [(&str, fn()); 3] = [
        ("disks", disks::measure),
        ("starts", starts_and_stops),
        ("network", net::bridge),
    ];
    if let Some((_, measure)) = parts.into_iter().find(|(name, _)| asked(name)) {
        return measure();
    }
    starts_and_stops();
    adoption();
    deaths();
    checks();
    hung();
    disks::measure();
    net::bridge();
    println!();
    scale::measure();
}

/// Measured times of one thing, in milliseconds.
#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    fn add(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1_000.0);
        self.0.sort_by(f64::total_cmp);
    }

    fn at(&self, quantile: f64) -> f64 {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let index = ((self.0.len() - 1) as f64 * quantile).round() as usize;
        self.0[index]
    }
}

fn row(what: &str, times: &Times, floor: Option<&Times>, against: &str) {
    let cells = |t: &Times| format!("{:>8.1} {:>8.1} {:>8.1}", t.at(0.5), t.at(0.1), t.at(0.99));
    let floor = floor.map_or_else(|| " ".repeat(26), cells);
    println!("{what:<44} {}   {floor}   {against}", cells(times));
}

/// The arguments of a QEMU that VMAN started, with its inherited descriptors
/// replaced by files and sockets below `folder`.
fn arguments_of(pid: u32, folder: &Path) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let words = line.split(|b| *b == 0).filter(|word| !word.is_empty());
    words
        .map(|word| bare_word(&String::from_utf8_lossy(word), folder))
        .collect()
}

fn bare_word(word: &str, folder: &Path) -> String {
    let mut parts: Vec<String> = word.split(',').map(str::to_owned).collect();
    let id = parts
        .iter()
        .find_map(|part| part.strip_prefix("id="))
        .unwrap_or("x")
        .to_owned();
    if word.starts_with("socket,") {
        for part in &mut parts {
            if part.starts_with("fd=") {
                *part = format!("path={}/{id}.sock", folder.display());
            } else if part.starts_with("logfile=") {
                *part = format!("logfile={}/{id}.log", folder.display());
            }
        }
    }
    parts.join(",")
}

/// A QEMU that this program started itself.
struct Bare {
    child: Child,
    _qmp: UnixStream,
}

fn start_bare(arguments: &[String], folder: &Path) -> (Bare, Duration) {
    let socket = folder.join("qmp0.sock");
    let _ = fs::remove_file(&socket);
    let began = Instant::now();
    let child = Command::new(&arguments[0])
        .args(&arguments[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = began + PATIENCE;
    let mut qmp = loop {
        match UnixStream::connect(&socket) {
            Ok(qmp) => break qmp,
            Err(_) => assert!(Instant::now() < deadline, "bare QEMU made no socket"),
        }
        std::thread::yield_now();
    };
    qmp.write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"cont\",\"id\":7}\n")
        .unwrap();
    let mut lines = BufReader::new(qmp.try_clone().unwrap());
    loop {
        let mut line = String::new();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "bare QEMU ended");
        let answer: Value = serde_json::from_str(&line).unwrap();
        if answer["id"] == 7 {
            assert!(answer.get("return").is_some(), "{answer}");
            break;
        }
    }
    (Bare { child, _qmp: qmp }, began.elapsed())
}

fn stop_bare(mut bare: Bare) -> Duration {
    let began = Instant::now();
    host::signal(bare.child.id(), rustix::process::Signal::TERM);
    bare.child.wait().unwrap();
    began.elapsed()
}

fn timed(daemon: &Daemon, id: &str, action: &str) -> Duration {
    let began = Instant::now();
    let operation = daemon.act(id, action);
    assert_eq!(operation["status"], "succeeded", "{operation}");
    began.elapsed()
}

fn starts_and_stops() {
    let daemon = Daemon::start_with(&[("VMAN_LOG_LEVEL", "info")]);
    daemon.tiny_vms(&["a"]);
    timed(&daemon, "a", "start");
    let folder = daemon.folder().join("bare");
    fs::create_dir(&folder).unwrap();
    let arguments = arguments_of(daemon.pid_of("a"), &folder);
    timed(&daemon, "a", "stop?force=true");
    let [mut start, mut bare_start, mut stop, mut bare_stop]: [Times; 4] = Default::default();
    for _ in 0..STARTS {
        start.add(timed(&daemon, "a", "start"));
        stop.add(timed(&daemon, "a", "stop?force=true"));
        let (bare, time) = start_bare(&arguments, &folder);
        bare_start.add(time);
        bare_stop.add(stop_bare(bare));
    }
    let ratio = start.at(0.5) / bare_start.at(0.5);
    row(
        "start: request to Running / exec to cont",
        &start,
        Some(&bare_start),
        &format!("{ratio:.2} times (aim 1.25)"),
    );
    let more = stop.at(0.5) - bare_stop.at(0.5);
    row(
        "forced stop: request to released / SIGTERM",
        &stop,
        Some(&bare_stop),
        &format!("{more:+.1} ms (aim +15)"),
    );
}

fn time_to_ready(daemon: &mut Daemon) -> Duration {
    let began = Instant::now();
    daemon.spawn();
    let socket = daemon.socket();
    let deadline = began + PATIENCE;
    loop {
        if request(&socket, "GET", "/ready", &[], b"").is_ok_and(|answer| answer.status == 200) {
            return began.elapsed();
        }
        assert!(Instant::now() < deadline, "not ready:\n{}", daemon.log());
        std::thread::park_timeout(Duration::from_micros(200));
    }
}

fn adoption() {
    let quiet = [("VMAN_LOG_LEVEL", "info"), ("VMAN_MAX_LAUNCHES", "8")];
    let mut daemon = Daemon::start_with(&quiet);
    let names: Vec<_> = (0..ADOPTED).map(|n| format!("vm{n}")).collect();
    daemon.tiny_vms(&names.iter().map(String::as_str).collect::<Vec<_>>());
    for name in &names {
        daemon
            .post(&format!("/vms/{name}/actions/start"), &Value::Null)
            .expect(202);
    }
    for name in &names {
        daemon.wait_state(name, "running");
    }
    let mut empty = Daemon::start_with(&quiet);
    let [mut full_times, mut empty_times]: [Times; 2] = Default::default();
    for _ in 0..ADOPTIONS {
        daemon.kill();
        full_times.add(time_to_ready(&mut daemon));
        let vms = daemon.get("/vms");
        let found = vms
            .as_array()
            .unwrap()
            .iter()
            .filter(|vm| vm["state"] == "running" && vm["unresponsive"] == false);
        assert_eq!(found.count(), ADOPTED);
        empty.kill();
        empty_times.add(time_to_ready(&mut empty));
    }
    let more = full_times.at(0.5) - empty_times.at(0.5);
    row(
        &format!("{ADOPTED} QEMUs adopted: exec to ready / empty"),
        &full_times,
        Some(&empty_times),
        &format!("{more:+.1} ms (aim +150)"),
    );
    let before = cpu_of(daemon.pid());
    std::thread::sleep(IDLE);
    let mut idle = Times::default();
    idle.add(cpu_of(daemon.pid()).saturating_sub(before));
    row(
        &format!("{ADOPTED} QEMUs, idle for {} s: CPU", IDLE.as_secs()),
        &idle,
        None,
        "aim 100",
    );
}

/// The CPU time a process has used.
fn cpu_of(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks: u64 = [11, 12]
        .iter()
        .map(|n| fields[*n].parse::<u64>().unwrap())
        .sum();
    // USER_HZ is 100 on every Linux that VMAN runs on.
    Duration::from_millis(ticks * 10)
}

/// What a check over many VMs costs, without the host's own part (the scan of
/// the processes and the folders, which [`adoption`]'s idle figure has).
fn checks() {
    let daemon = Daemon::start_with(&[
        ("VMAN_LOG_LEVEL", "warn"),
        ("VMAN_OPERATOR_DRY_RUN", "1"),
        ("VMAN_MAX_LAUNCHES", "64"),
    ]);
    let names: Vec<_> = (0..CHECKED).map(|n| format!("vm{n}")).collect();
    daemon.tiny_vms(&names.iter().map(String::as_str).collect::<Vec<_>>());
    for name in &names {
        let start = format!("/vms/{name}/actions/start");
        daemon.post(&start, &Value::Null).expect(202);
    }
    for name in &names {
        daemon.wait_state(name, "running");
    }
    let before = cpu_of(daemon.pid());
    for _ in 0..CHECKS {
        daemon.post("/observer/check", &Value::Null).expect(200);
    }
    let mut each = Times::default();
    each.add(cpu_of(daemon.pid()).saturating_sub(before) / CHECKS);
    row(
        &format!("a check over {CHECKED} simulated VMs: CPU"),
        &each,
        None,
        "aim 50",
    );
}

fn deaths() {
    let daemon = Daemon::start_with(&[("VMAN_LOG_LEVEL", "info")]);
    daemon.tiny_vms(&["a"]);
    let mut seen = Times::default();
    for _ in 0..DEATHS {
        timed(&daemon, "a", "start");
        let pid = daemon.pid_of("a");
        let began = Instant::now();
        host::signal(pid, rustix::process::Signal::KILL);
        wait_for("the API to see the death", PATIENCE, || {
            (daemon.vm("a")["state"] != "running").then_some(())
        });
        seen.add(began.elapsed());
        daemon.wait_state("a", "error");
    }
    row(
        "QEMU's death: SIGKILL to seen by the API",
        &seen,
        None,
        &format!("p99 {:.1} ms (aim 50), polled every 5 ms", seen.at(0.99)),
    );
}

/// Lists and other VMs' starts, beside the same while one QEMU stands still.
fn hung() {
    let daemon = Daemon::start_with(&[("VMAN_LOG_LEVEL", "info")]);
    daemon.tiny_vms(&["hung", "fine"]);
    timed(&daemon, "hung", "start");
    let [mut list, mut bare_list, mut start, mut bare_start]: [Times; 4] = Default::default();
    let measure = |lists: &mut Times, starts: &mut Times| {
        for _ in 0..HUNG_LISTS {
            let began = Instant::now();
            daemon.get("/vms");
            lists.add(began.elapsed());
        }
        starts.add(timed(&daemon, "fine", "start"));
        timed(&daemon, "fine", "stop?force=true");
    };
    for _ in 0..HUNG_ROUNDS {
        measure(&mut bare_list, &mut bare_start);
        let pid = daemon.pid_of("hung");
        host::signal(pid, rustix::process::Signal::STOP);
        // A command waits for its answer meanwhile.
        daemon
            .post("/vms/hung/actions/pause", &Value::Null)
            .expect(202);
        measure(&mut list, &mut start);
        timed(&daemon, "hung", "stop?force=true");
        timed(&daemon, "hung", "start");
    }
    let ratio = |now: &Times, before: &Times| format!("{:.2} times", now.at(0.5) / before.at(0.5));
    row(
        "GET /vms with a hung QEMU / without",
        &list,
        Some(&bare_list),
        &ratio(&list, &bare_list),
    );
    row(
        "start with a hung QEMU / without",
        &start,
        Some(&bare_start),
        &ratio(&start, &bare_start),
    );
}
