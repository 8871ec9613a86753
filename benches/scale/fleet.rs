//! A daemon on the simulated host with as many VMs as are wanted, and what it costs.

use crate::{
    load::{Connection, Load, Outcome, Target, request, run},
    support::{daemon::Daemon, wait_for},
};
use serde_json::{Value, json};
use std::{
    fs,
    net::TcpListener,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Connections that fill a daemon.
pub(crate) const MANY: usize = 64;
const PATIENCE: Duration = Duration::from_mins(3);

pub(crate) struct Fleet {
    pub daemon: Daemon,
    /// Over TCP, as a client from the same host calls it.
    pub target: Target,
    /// With its token.
    pub headers: String,
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Fleet {
    /// A daemon without VMs, on the simulated host.
    pub(crate) fn simulated(more: &[(&str, &str)]) -> Self {
        let dry = [("VMAN_OPERATOR_DRY_RUN", "1")];
        Self::start(&[&dry[..], more].concat())
    }

    /// A daemon without VMs.
    pub(crate) fn start(more: &[(&str, &str)]) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let own = [
            ("VMAN_LOG_LEVEL", "warn"),
            ("VMAN_MAX_VMS", "100000"),
            ("VMAN_LISTEN", address.as_str()),
        ];
        let daemon = Daemon::start_with(&[&own[..], more].concat());
        daemon.tiny_template();
        let token = json!({"name": "bench", "scope": "admin"});
        let token = daemon.post("/tokens", &token).expect(201);
        let token = token["token"].as_str().unwrap();
        Self {
            headers: format!("Authorization: Bearer {token}\r\n"),
            target: Target::Tcp(address.parse().unwrap()),
            daemon,
        }
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::open(&self.target).unwrap()
    }

    pub(crate) fn get(&self, out: &mut Vec<u8>, path: &str) {
        request(out, "GET", path, &self.headers, b"");
    }

    pub(crate) fn post(&self, out: &mut Vec<u8>, path: &str, body: &str) {
        request(out, "POST", path, &self.headers, body.as_bytes());
    }

    /// Puts a load of GETs on it; `path` names the n-th of a connection.
    pub(crate) fn reads(&self, load: Load, path: impl Fn(usize, u64) -> String + Sync) -> Outcome {
        let outcome = run(&self.target, load, |out, worker, n| {
            self.get(out, &path(worker, n));
        });
        check(&outcome);
        outcome
    }

    /// Makes the VMs of these numbers.
    pub(crate) fn fill(&self, from: usize, to: usize) {
        self.each(MANY, (from, to), 201, |out, n| {
            self.post(out, "/vms", &new_vm(&name(n)));
        });
    }

    /// Starts so many VMs, asked for over so many connections, and waits for none of them.
    pub(crate) fn ask_to_start(&self, count: usize, connections: usize) {
        self.each(connections, (0, count), 202, |out, n| {
            self.post(out, &format!("/vms/{}/actions/start", name(n)), "");
        });
    }

    /// Waits until so many VMs are in `state`.
    pub(crate) fn wait_for_all(&self, count: usize, state: &str) {
        let path = "/operations?status=running&limit=1";
        wait_for("the operations to end", PATIENCE, || {
            let open = self.daemon.get(path);
            open.as_array().unwrap().is_empty().then_some(())
        });
        let all = self.daemon.get(&format!("/vms?state={state}"));
        assert_eq!(all.as_array().map(Vec::len), Some(count), "VMs in {state}");
    }

    /// One request for each number, over so many connections.
    fn each(
        &self,
        connections: usize,
        (from, to): (usize, usize),
        status: u16,
        ask: impl Fn(&mut Vec<u8>, usize) + Sync,
    ) {
        let next = AtomicUsize::new(from);
        thread::scope(|scope| {
            for _ in 0..connections.min(to - from) {
                scope.spawn(|| {
                    let mut connection = self.connect();
                    let mut out = Vec::new();
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= to {
                            return;
                        }
                        out.clear();
                        ask(&mut out, n);
                        let got = connection.exchange(&out).unwrap();
                        let body = String::from_utf8_lossy(connection.body());
                        assert_eq!(got, status, "{body}");
                    }
                });
            }
        });
    }

    /// CPU time of the daemon's threads, to the nanosecond: what a thing costs
    /// whatever else the machine does.
    pub(crate) fn cpu(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.daemon.pid())).unwrap();
        let spent = tasks.flatten().filter_map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(spent.sum())
    }

    /// What `work` costs the daemon.
    pub(crate) fn cost(&self, work: impl FnOnce()) -> Duration {
        let before = self.cpu();
        work();
        self.cpu().saturating_sub(before)
    }

    /// The daemon's resident memory, in KiB.
    pub(crate) fn rss_kib(&self) -> u64 {
        rss_kib(self.daemon.pid())
    }

    /// Ends the daemon and starts it again; answers how long it took to be ready.
    pub(crate) fn restart(&mut self) -> Duration {
        self.daemon.terminate();
        let began = Instant::now();
        self.daemon.spawn();
        let mut ready = Vec::new();
        self.get(&mut ready, "/ready");
        loop {
            let answer = Connection::open(&self.target)
                .and_then(|mut connection| connection.exchange(&ready));
            if answer.is_ok_and(|status| status == 200) {
                return began.elapsed();
            }
            assert!(began.elapsed() < PATIENCE, "{}", self.daemon.log());
            thread::park_timeout(Duration::from_micros(500));
        }
    }

    /// The whole answer to a GET.
    pub(crate) fn value(&self, path: &str) -> Value {
        self.daemon.get(path)
    }
}

/// Resident memory of a process, in KiB.
pub(crate) fn rss_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    kib.and_then(|kib| kib.parse().ok()).unwrap()
}

/// A load that failed has measured something else.
pub(crate) fn check(outcome: &Outcome) {
    let first = outcome.first_failure.as_deref().unwrap_or_default();
    assert_eq!(outcome.failures, 0, "{first}");
}

pub(crate) fn name(n: usize) -> String {
    format!("vm{n:05}")
}

pub(crate) fn new_vm(name: &str) -> String {
    format!("{{\"template_name\":\"tiny\",\"name\":\"{name}\"}}")
}
