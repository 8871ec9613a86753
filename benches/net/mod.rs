//! What a bridge adds to a start, and how fast addresses and rules are given, in a network namespace
//! of the benchmark's own.

use super::{Times, row};
use crate::support::{
    daemon::{Daemon, PATIENCE},
    skip, wait_for,
};
use serde_json::{Value, json};
use std::{
    process::{Command, Output},
    time::Instant,
};

const STARTS: usize = 40;
const LEASES: usize = 200;
const GUESTS: usize = 500;
const FORWARDS: u16 = 15;

struct Namespace(String);

impl Namespace {
    fn new() -> Option<Self> {
        let name = format!("vmbench{}", std::process::id());
        let made = ip(&["netns", "add", &name])?;
        let space = Self(name);
        if !made.status.success() {
            return None;
        }
        ip(&["-n", &space.0, "link", "set", "lo", "up"])?;
        Some(space)
    }

    fn nft(&self, arguments: &[&str]) -> String {
        let mut all = vec!["netns", "exec", &self.0, "nft"];
        all.extend(arguments);
        let output = ip(&all).map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).into_owned()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let pids = ip(&["netns", "pids", &self.0]).map(|output| output.stdout);
        for pid in String::from_utf8_lossy(&pids.unwrap_or_default()).split_whitespace() {
            if let Ok(pid) = pid.parse() {
                super::host::signal(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = ip(&["netns", "del", &self.0]);
    }
}

fn ip(arguments: &[&str]) -> Option<Output> {
    Command::new("ip").args(arguments).output().ok()
}

pub(super) fn bridge() {
    bridge_with("0");
    println!("with IPv6 too:");
    bridge_with("1");
}

fn bridge_with(ipv6: &str) {
    let Some(space) = Namespace::new() else {
        return skip("bench of the bridge", "network namespaces cannot be made");
    };
    let subnet = ("VMAN_SUBNET", "10.99.0.0/16");
    let mode = ("VMAN_NETWORK_MODE", "bridge");
    let quiet = ("VMAN_LOG_LEVEL", "warn");
    let mut bridged =
        Daemon::unstarted(&[mode, subnet, quiet, ("VMAN_IPV6", ipv6)]).inside(&space.0);
    bridged.serve();
    let user = Daemon::start_with(&[quiet]);
    starts(&bridged, &user);
    leases(&bridged);
    rules(&bridged, &space);
}

fn starts(bridged: &Daemon, user: &Daemon) {
    for daemon in [bridged, user] {
        daemon.tiny_vms(&["first"]);
    }
    let start = |daemon: &Daemon, times: &mut Times| {
        let began = Instant::now();
        assert_eq!(daemon.act("first", "start")["status"], "succeeded");
        times.add(began.elapsed());
        daemon.act("first", "stop?force=true");
    };
    let (mut with, mut without) = (Times::default(), Times::default());
    for _ in 0..STARTS {
        start(user, &mut without);
        start(bridged, &mut with);
    }
    let added = with.at(0.5) - without.at(0.5);
    let against = format!("{added:+.1} ms beside user mode (at most 5)");
    row(
        "start with a TAP attached and up",
        &with,
        Some(&without),
        &against,
    );
}

fn make(daemon: &Daemon, name: &str) {
    let vm = json!({"template_name": "tiny", "name": name});
    daemon.post("/vms", &vm).expect(201);
}

fn leases(daemon: &Daemon) {
    let mut all = Times::default();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for part in 0..8 {
            scope.spawn(move || {
                for n in (part..LEASES).step_by(8) {
                    make(daemon, &format!("vm{n}"));
                }
            });
        }
    });
    all.add(began.elapsed());
    row(
        "200 VMs made, each with its lease",
        &all,
        None,
        "at most 1000 ms",
    );
}

/// From the request to the rule in the kernel, with the rules of 500 guests replaced as a whole.
fn rules(daemon: &Daemon, space: &Namespace) {
    for n in LEASES..GUESTS {
        make(daemon, &format!("vm{n}"));
    }
    let mut times = Times::default();
    for port in 9_000..9_000 + FORWARDS {
        let forward = json!({"vm_id": "vm1", "host_port": port});
        let began = Instant::now();
        daemon.post("/network/forwards", &forward).expect(201);
        let text = format!("dport {port} ");
        wait_for("the rule in the kernel", PATIENCE, || {
            let chain = ["list", "chain", "inet", "vman-br-vman", "forwarded"];
            space.nft(&chain).contains(&text).then_some(())
        });
        times.add(began.elapsed());
    }
    let leases: Value = daemon.get("/network/config")["allocated_ips"].clone();
    let against = format!("the rules of {leases} guests replaced as a whole");
    row(
        "a forward, until its rule is in the kernel",
        &times,
        None,
        &against,
    );
}
