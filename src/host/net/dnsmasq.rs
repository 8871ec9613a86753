//! DHCP and DNS for the guests of one network: a `dnsmasq` that serves its bridge only.
//!
//! Owns: its files in one network's folder, its process, its restart budget. It outlives a daemon
//! that dies and is found again by its identity, as a QEMU is. Must not: give an address that is no
//! lease: it knows static ones only.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::{self, DirBuilder};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use vman_model::network::{Prefix6, host_name};
use vman_model::vm::ProcessIdentity;
use vman_model::{NetworkPlan, Pool};

use super::watch::Notice;
use crate::host::qemu::adopt;
use crate::host::qemu::process::{Inherited, Process, Spawn};

/// More deaths than this within [`WINDOW`], and it is let be until the window has passed.
const MAX_DEATHS: usize = 5;
const WINDOW: Duration = Duration::from_mins(1);

/// What it serves.
#[derive(Debug, Clone)]
pub(super) struct Served {
    pub(super) program: Option<PathBuf>,
    pub(super) folder: PathBuf,
    pub(super) bridge: String,
    pub(super) pool: Pool,
    /// None where guests have no IPv6.
    pub(super) prefix6: Option<Prefix6>,
    /// Whether guests are told that the host is a way to other networks, by IPv6.
    pub(super) way_out: bool,
    /// Who is asked for names of others; none: guests learn each other's only.
    pub(super) dns: Vec<Ipv4Addr>,
    pub(super) mtu: u16,
}

/// The process and what it was told last.
#[derive(Debug)]
pub(super) struct Dnsmasq {
    served: Served,
    process: Option<Process>,
    /// What it has read.
    hosts: Option<String>,
    deaths: VecDeque<Instant>,
    looked_for: bool,
    ran: bool,
    notices: mpsc::Sender<Notice>,
}

/// What is kept on disk of a process of ours.
#[derive(Serialize, Deserialize)]
struct Kept {
    identity: ProcessIdentity,
    /// The configuration it was started with.
    config: String,
}

impl Dnsmasq {
    pub(super) fn new(served: Served, notices: mpsc::Sender<Notice>) -> Self {
        Self {
            served,
            process: None,
            hosts: None,
            deaths: VecDeque::new(),
            looked_for: false,
            ran: false,
            notices,
        }
    }

    /// What is wrong with it, for health.
    pub(super) fn problem(&self) -> Option<String> {
        if self.served.program.is_none() {
            return Some(
                "dnsmasq is not installed: guests get no address by DHCP and no names (install dnsmasq-base)"
                    .to_owned(),
            );
        }
        (self.deaths.len() > MAX_DEATHS).then(|| {
            let log = self.served.folder.join("dnsmasq.log");
            format!(
                "dnsmasq keeps ending and is let be for a while: guests get no address by DHCP; see {}",
                log.display()
            )
        })
    }

    /// Makes it run and know the plan's guests. Answers what was repaired.
    pub(super) fn settle(&mut self, plan: &NetworkPlan) -> io::Result<Option<String>> {
        let Some(program) = self.served.program.clone() else {
            return Ok(None);
        };
        let now = Instant::now();
        while self.deaths.front().is_some_and(|at| now - *at > WINDOW) {
            self.deaths.pop_front();
        }
        let config = config(&self.served, &user(&self.served.folder));
        if !std::mem::replace(&mut self.looked_for, true) {
            self.find_again(&config)?;
        }
        let hosts = hosts(plan, self.served.prefix6);
        let news = self.hosts.as_deref() != Some(&hosts);
        if news {
            let (dhcp, names) = split(&hosts);
            replace(&self.served.folder.join("dhcp-hosts"), dhcp)?;
            replace(&self.served.folder.join("hosts"), names)?;
            self.hosts = Some(hosts);
        }
        let alive = self.process.as_ref().is_some_and(|known| !known.is_gone());
        if alive {
            if let Some(process) = self.process.as_ref().filter(|_| news) {
                process.signal(Signal::HUP)?;
            }
            return Ok(None);
        }
        let died = std::mem::take(&mut self.ran);
        if died {
            self.deaths.push_back(now);
        }
        if self.deaths.len() > MAX_DEATHS {
            return Ok(None);
        }
        self.start(&program, config)?;
        Ok(died.then(|| "dnsmasq had ended: it was started again".to_owned()))
    }

    fn start(&mut self, program: &Path, config: String) -> io::Result<()> {
        let folder = &self.served.folder;
        let path = folder.join("dnsmasq.conf");
        replace(&path, &config)?;
        let process = Process::spawn(Spawn {
            program,
            arguments: vec![format!("--conf-file={}", path.display()).into()],
            inherited: Inherited::default(),
            log: &folder.join("dnsmasq.log"),
            banner: "== dnsmasq ==",
            cage: None,
        })
        .map_err(|error| io::Error::other(format!("dnsmasq: {error}")))?;
        let kept = Kept {
            identity: process.identity().clone(),
            config,
        };
        let kept = serde_json::to_string(&kept).map_err(io::Error::other)?;
        replace(&folder.join("dnsmasq.json"), &kept)?;
        self.keep(process);
        Ok(())
    }

    fn keep(&mut self, process: Process) {
        let (watched, notices) = (process.clone(), self.notices.clone());
        tokio::spawn(async move {
            watched.exited().await;
            let _ = notices.send(Notice::Names).await;
        });
        self.process = Some(process);
        self.ran = true;
    }

    /// The dnsmasq of an earlier daemon, if it lives; one with another configuration is ended.
    fn find_again(&mut self, config: &str) -> io::Result<()> {
        let folder = &self.served.folder;
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)?;
        let Ok(kept) = fs::read_to_string(folder.join("dnsmasq.json")) else {
            return Ok(());
        };
        let Ok(kept) = serde_json::from_str::<Kept>(&kept) else {
            return Ok(());
        };
        let Ok(process) = adopt::attach(&kept.identity) else {
            return Ok(());
        };
        if kept.config == config {
            self.keep(process);
            return Ok(());
        }
        process.kill()
    }
}

/// It gives up root where it can read its files without: every folder above them lets others pass.
fn user(folder: &Path) -> String {
    let passes =
        |path: &Path| fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0);
    let above = folder.ancestors().skip(1);
    let mut above = above.filter(|path| !path.as_os_str().is_empty());
    let unprivileged = above.all(passes);
    if unprivileged { "nobody" } else { "root" }.to_owned()
}

fn config(served: &Served, user: &str) -> String {
    let (pool, folder) = (&served.pool, served.folder.display());
    let mut out = format!(
        "keep-in-foreground\nlog-facility=-\npid-file=\nuser={user}\n\
         interface={}\nexcept-interface=lo\nbind-dynamic\n\
         no-hosts\nno-resolv\nno-poll\ndomain-needed\nbogus-priv\naddn-hosts={folder}/hosts\n\
         dhcp-range={},static,{},12h\ndhcp-authoritative\nno-ping\nleasefile-ro\nquiet-dhcp\n\
         dhcp-lease-max=65536\ndhcp-hostsfile={folder}/dhcp-hosts\n\
         dhcp-option=option:router,{gateway}\ndhcp-option=option:dns-server,{gateway}\n\
         dhcp-option=option:mtu,{mtu}\n",
        served.bridge,
        pool.network(),
        pool.netmask(),
        gateway = pool.gateway(),
        mtu = served.mtu,
    );
    for server in &served.dns {
        let _ = writeln!(out, "server={server}");
    }
    if let Some(prefix) = served.prefix6 {
        ipv6(&mut out, served, prefix);
    }
    out
}

/// Advertisements that tell guests to ask by DHCP, and the answers.
fn ipv6(out: &mut String, served: &Served, prefix: Prefix6) {
    let (network, gateway) = (prefix.network(), prefix.gateway());
    let _ = writeln!(
        out,
        "enable-ra\ndhcp-range={network},static,64,12h\n\
         dhcp-option=option6:dns-server,[{gateway}]"
    );
    if !served.way_out {
        // In the usual interval, and as no router.
        let _ = writeln!(out, "ra-param={},0,0", served.bridge);
    }
}

/// What it is told of the guests: who gets which address, a blank line, who is called what.
fn hosts(plan: &NetworkPlan, prefix6: Option<Prefix6>) -> String {
    let (mut dhcp, mut names) = (String::new(), String::new());
    for port in &plan.ports {
        let mac = port.mac.map(|byte| format!("{byte:02x}")).join(":");
        let (address, name) = (port.address, host_name(&port.vm, port.nic));
        let address6 = prefix6.map(|prefix| prefix.guest(address));
        let and = address6.map_or_else(String::new, |address| format!(",[{address}]"));
        let _ = writeln!(dhcp, "{mac},{address}{and},{name}");
        let _ = writeln!(names, "{address} {name}");
        if let Some(address) = address6 {
            let _ = writeln!(names, "{address} {name}");
        }
    }
    format!("{dhcp}\n{names}")
}

fn split(hosts: &str) -> (&str, &str) {
    match hosts.strip_prefix('\n') {
        Some(names) => ("", names),
        None => hosts.split_once("\n\n").unwrap_or((hosts, "")),
    }
}

/// Replaces a file as a whole, readable for everybody: it holds what every guest may ask.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o644)
        .open(&new)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vman_model::network::PortPlan;
    use vman_model::{TapName, VmId};

    /// A network of addresses from 10.9.0.0, with a way out and no DNS of its own.
    fn lab() -> Served {
        let at = |last| Ipv4Addr::new(10, 9, 0, last);
        Served {
            program: None,
            folder: PathBuf::from("/run/vman/network-lab"),
            bridge: "br-lab".to_owned(),
            pool: Pool::new(at(0), 24, at(1)).unwrap(),
            prefix6: None,
            way_out: true,
            dns: Vec::new(),
            mtu: 1500,
        }
    }

    fn one_guest(name: &str, address: Ipv4Addr) -> NetworkPlan {
        let vm = VmId::parse(name).unwrap();
        let port = PortPlan {
            tap: TapName::of(&vm, 0),
            vm,
            nic: 0,
            mac: [0x52, 0x56, 0, 0, 0, 0x0a],
            address,
            limits: vman_model::network::NicLimits::default(),
            network: vman_model::NetworkName::default(),
        };
        NetworkPlan {
            ports: vec![port],
            forwards: vec![],
        }
    }

    #[test]
    fn a_guest_is_told_its_lease_and_its_name() {
        let plan = one_guest("Web_1", Ipv4Addr::new(10, 0, 0, 2));
        let hosts = hosts(&plan, None);
        let (dhcp, names) = split(&hosts);
        assert_eq!(dhcp.trim_end(), "52:56:00:00:00:0a,10.0.0.2,web-1");
        assert_eq!(names, "10.0.0.2 web-1\n");
        assert_eq!(
            split(&super::hosts(&NetworkPlan::default(), None)),
            ("", "")
        );
    }

    #[test]
    fn a_network_of_its_own_is_served_on_its_bridge_and_without_dns_asks_nobody() {
        let mut served = Served {
            dns: vec![Ipv4Addr::new(9, 9, 9, 9)],
            mtu: 9000,
            ..lab()
        };
        let said = config(&served, "nobody");
        for line in [
            "interface=br-lab",
            "addn-hosts=/run/vman/network-lab/hosts",
            "dhcp-option=option:mtu,9000",
            "server=9.9.9.9",
        ] {
            assert!(said.lines().any(|said| said == line), "{line}: {said}");
        }
        served.dns.clear();
        let said = config(&served, "nobody");
        assert!(
            !said.contains("server=9") && said.contains("no-resolv"),
            "{said}"
        );
    }

    #[test]
    fn with_ipv6_guests_are_told_to_ask_and_are_given_the_address_of_their_lease() {
        let prefix = Prefix6::new("fd12:3456:789a::".parse().unwrap()).unwrap();
        let mut served = Served {
            prefix6: Some(prefix),
            ..lab()
        };
        let said = config(&served, "nobody");
        for line in [
            "enable-ra",
            "dhcp-range=fd12:3456:789a::,static,64,12h",
            "dhcp-option=option6:dns-server,[fd12:3456:789a::1]",
        ] {
            assert!(said.lines().any(|said| said == line), "{line}: {said}");
        }
        assert!(!said.contains("ra-param"), "{said}");
        served.way_out = false;
        let said = config(&served, "nobody");
        assert!(said.contains("ra-param=br-lab,0,0\n"), "{said}");
        served.prefix6 = None;
        let said = config(&served, "nobody");
        assert!(!said.contains("enable-ra") && !said.contains("ra-param"));

        let plan = one_guest("web", Ipv4Addr::new(10, 9, 0, 2));
        let hosts = hosts(&plan, Some(prefix));
        let (dhcp, names) = split(&hosts);
        let told = "52:56:00:00:00:0a,10.9.0.2,[fd12:3456:789a::1:a09:2],web";
        assert_eq!(dhcp.trim_end(), told);
        assert_eq!(names, "10.9.0.2 web\nfd12:3456:789a::1:a09:2 web\n");
    }
}
