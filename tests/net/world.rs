//! Two network namespaces: the host's, where the daemon runs, and one beyond it.

use crate::support::{can_run, daemon::Daemon, skip, wait_for};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};
use std::{
    fs::File,
    os::fd::AsFd,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime},
};

/// The address of the host in the network between the namespaces, and of the one beyond.
pub const HOST: &str = "203.0.113.1";
pub const BEYOND: &str = "203.0.113.2";

/// What heals within a second of being noticed is there again well within this.
pub const SOON: Duration = Duration::from_secs(10);

/// A notice comes at once; on a busy machine the one who hears it may come late.
const NOTICED: Duration = Duration::from_secs(1);

/// Both namespaces; they are removed at the end.
pub struct World {
    pub host: String,
    pub beyond: String,
}

/// Whether these tests can run here; if not it is told and counted.
pub fn can_make_networks(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        skip(test, "network namespaces need root");
        return false;
    }
    for program in ["ip", "nft", "dnsmasq"] {
        let asked = Command::new(program).arg("--version").output();
        if asked.is_err() {
            skip(test, &format!("{program} is not installed"));
            return false;
        }
    }
    let name = format!("vmtry{}", std::process::id());
    let made = Command::new("ip").args(["netns", "add", &name]).output();
    let _ = Command::new("ip").args(["netns", "del", &name]).output();
    if !made.is_ok_and(|made| made.status.success()) {
        skip(test, "network namespaces cannot be made");
        return false;
    }
    can_run(test)
}

pub fn run(line: &str) -> String {
    let words: Vec<_> = line.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl World {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = |what: &str| format!("vm{what}{}-{number}", std::process::id());
        let world = Self {
            host: name("h"),
            beyond: name("b"),
        };
        let (host, beyond) = (&world.host, &world.beyond);
        for line in [
            format!("ip netns add {host}"),
            format!("ip netns add {beyond}"),
            format!("ip -n {host} link set lo up"),
            format!("ip -n {beyond} link set lo up"),
            format!("ip -n {host} link add up0 type veth peer name eth0 netns {beyond}"),
            format!("ip -n {host} addr add {HOST}/24 dev up0"),
            format!("ip -n {beyond} addr add {BEYOND}/24 dev eth0"),
            format!("ip -n {host} link set up0 up"),
            format!("ip -n {beyond} link set eth0 up"),
        ] {
            run(&line);
        }
        world
    }

    /// A daemon in the host's namespace, with the guest's template.
    pub fn daemon(&self, variables: &[(&str, &str)]) -> Daemon {
        let mut daemon = self.unstarted(variables);
        daemon.serve();
        daemon
    }

    pub fn unstarted(&self, variables: &[(&str, &str)]) -> Daemon {
        let mut all = vec![
            ("VMAN_NETWORK_MODE", "bridge"),
            ("VMAN_BRIDGE_NAME", "br-t"),
        ];
        all.extend(variables);
        Daemon::unstarted(&all).inside(&self.host)
    }

    /// Runs a command in the host's namespace.
    pub fn in_host(&self, line: &str) -> String {
        run(&format!("ip netns exec {} {line}", self.host))
    }

    /// The names of the host's links.
    pub fn links(&self) -> Vec<String> {
        let list = run(&format!("ip -n {} -json link", self.host));
        let list: Value = serde_json::from_str(&list).unwrap();
        let names = list.as_array().unwrap().iter();
        names
            .map(|link| link["ifname"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The host's TAPs: those links are ours.
    pub fn taps(&self) -> Vec<String> {
        let mut links = self.links();
        links.retain(|name| vman_model::TapName::is_one(name));
        links
    }

    /// The links that are attached to the default network's bridge.
    pub fn attached(&self) -> Vec<String> {
        self.on("br-t")
    }

    /// The links that are attached to a bridge.
    pub fn on(&self, bridge: &str) -> Vec<String> {
        let list = run(&format!(
            "ip -n {} -json link show master {bridge}",
            self.host
        ));
        let list: Value = serde_json::from_str(&list).unwrap_or_default();
        let names = list.as_array().into_iter().flatten();
        names
            .filter_map(|link| Some(link["ifname"].as_str()?.to_owned()))
            .collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in [&self.host, &self.beyond] {
            // What was left in it (dnsmasq) goes with it.
            let pids = Command::new("ip").args(["netns", "pids", name]).output();
            let pids = pids.map(|output| output.stdout).unwrap_or_default();
            for pid in String::from_utf8_lossy(&pids).split_whitespace() {
                if let Ok(pid) = pid.parse() {
                    crate::support::host::signal(pid, rustix::process::Signal::KILL);
                }
            }
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

/// Runs `what` in a namespace, in a thread of its own.
pub fn within<T: Send>(namespace: &str, what: impl FnOnce() -> T + Send) -> T {
    let space = File::open(format!("/run/netns/{namespace}")).unwrap();
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                what()
            })
            .join()
            .unwrap()
    })
}

/// Makes guests `names` and starts them; answers the addresses that the API tells.
pub fn guests(daemon: &Daemon, names: &[&str]) -> Vec<String> {
    for name in names {
        let vm = json!({"template_name": "guest", "name": name});
        daemon.post("/vms", &vm).expect(201);
    }
    for name in names {
        assert_eq!(daemon.act(name, "start")["status"], "succeeded");
    }
    names.iter().map(|name| address_of(daemon, name)).collect()
}

pub fn address_of(daemon: &Daemon, name: &str) -> String {
    let vm = daemon.vm(name);
    vm["local_ip"].as_str().expect("an address").to_owned()
}

/// Waits until it is told that something was healed, and holds it to its second: what the daemon
/// says of itself, and that the kernel's notice led to it rather than the look every five seconds.
pub fn wait_healed(daemon: &Daemon, text: &str, broken: SystemTime) {
    let event = wait_event(daemon, "network.healed", text);
    let detail = event["detail"].as_str().unwrap();
    let took = detail.rsplit_once("(healed ").and_then(|(_, rest)| {
        let ms = rest.strip_suffix(" ms after it was noticed)")?;
        ms.parse::<u64>().ok()
    });
    let took = took.unwrap_or_else(|| panic!("no time in {detail:?}"));
    assert!(took <= 1_000, "{detail}");
    let at: jiff::Timestamp = event["at"].as_str().unwrap().parse().unwrap();
    let all = SystemTime::from(at).duration_since(broken);
    let all = all.unwrap_or_default();
    assert!(all < NOTICED + Duration::from_secs(1), "{all:?}: {detail}");
}

/// Waits until an event of this kind says `text`.
pub fn wait_event(daemon: &Daemon, kind: &str, text: &str) -> Value {
    let what = format!("the event {kind} with {text:?}");
    wait_for(&what, SOON, || {
        let events = daemon.get("/events?limit=1000");
        let all = events.as_array()?.iter();
        let mut all = all.filter(|event| event["kind"] == kind);
        all.find(|event| event["detail"].as_str().unwrap_or("").contains(text))
            .cloned()
    })
}
