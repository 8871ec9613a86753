//! The parts of the configuration, one for each room. Plain values: nothing is decided here.

use super::{fault::Source, ipv6::Ipv6Choice, subnet::Subnet};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};
use vman_model::{NetworkName, Overcommit};

/// One effective value, for `vman config show`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key's name in a file; `network.lab.subnet` in a table.
    pub name: String,
    /// The value as it would be written.
    pub value: String,
    /// Where it came from.
    pub source: Source,
}

/// Where things are kept.
#[derive(Clone, Debug)]
pub struct StorageConfig {
    /// Store, images, disks, consoles: survives a reboot.
    pub path: PathBuf,
    /// Sockets: may be emptied by a reboot.
    pub runtime: PathBuf,
}

/// The listeners.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// TCP, or none.
    pub listen: Option<SocketAddr>,
    /// The UNIX socket.
    pub socket: PathBuf,
    /// Who may call over TCP.
    pub auth: AuthMode,
    /// Names by which it may be called over TCP, beside loopback's.
    pub hosts: Vec<String>,
    /// TLS over TCP, if it is configured.
    pub tls: Option<TlsConfig>,
    /// Requests worked on at once, at least 1.
    pub max_inflight: u32,
}

/// TLS over TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The server's certificate and those above it, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
    /// Who must have issued the clients' certificates; none are asked for without it.
    pub client_ca: Option<PathBuf>,
}

/// Who may call over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMode {
    /// Who shows a bearer token.
    Token,
    /// Everybody on this host: loopback listeners only.
    None,
}

/// QEMU and its tools.
#[derive(Clone, Debug)]
pub struct QemuConfig {
    /// The accelerator asked for.
    pub accel: AccelChoice,
    /// An absolute path if it was given or found on `PATH`, else the bare name (which then fails at a start).
    pub binary: PathBuf,
    /// As `binary`, for qemu-img.
    pub img: PathBuf,
    /// The whole daemon on the simulated host: no process, no link, no image is touched.
    pub dry_run: bool,
    /// Image that a new VM boots from when nothing else is said.
    pub default_boot_disk: Option<String>,
}

/// The accelerator asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccelChoice {
    /// KVM if usable, else TCG.
    Auto,
    /// KVM or nothing.
    Kvm,
    /// QEMU's own emulation.
    Tcg,
}

/// How QEMUs are confined.
#[derive(Clone, Copy, Debug)]
pub struct JailConfig {
    /// How much of it there must be.
    pub mode: JailMode,
    /// The first of the user and group ids that are for QEMUs alone; the group of all of them.
    pub first_uid: u32,
    /// How many ids there are, at least 2.
    pub uids: u32,
}

impl Default for JailConfig {
    /// Ids that no distribution gives to anybody: above the system's and systemd's own, below those
    /// that users get for containers.
    fn default() -> Self {
        Self {
            mode: JailMode::Auto,
            first_uid: 70_000,
            uids: 20_001,
        }
    }
}

/// How often memory and processors may be promised to VMs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdmissionConfig {
    /// Times the host's memory; 0 for without limit.
    pub memory_overcommit: f64,
    /// Times the host's processors; 0 for without limit.
    pub cpu_overcommit: f64,
}

impl AdmissionConfig {
    /// The same in percent.
    pub fn overcommit(&self) -> Overcommit {
        let percent = |times: f64| (times > 0.0).then(|| in_percent(times));
        Overcommit {
            memory_percent: percent(self.memory_overcommit),
            cpu_percent: percent(self.cpu_overcommit),
        }
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the configuration allows 0 to 1000"
)]
fn in_percent(times: f64) -> u64 {
    (times * 100.0).round() as u64
}

/// How much of the jail there must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JailMode {
    /// As much as the host has; what lacks is told.
    Auto,
    /// All of it, or no VM starts.
    Require,
    /// QEMU's own seccomp filters only.
    Off,
}

/// The VMs' networks.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// The kind of network asked for.
    pub mode: NetworkMode,
    /// Every network; that of VMs that ask for no other is the first.
    pub networks: Vec<NetworkSettings>,
    /// An absolute path if it was given or found on `PATH`, else the bare name.
    pub nft: PathBuf,
    /// As `nft`, for dnsmasq.
    pub dnsmasq: PathBuf,
}

/// One network. No two have the name, the bridge or an address in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSettings {
    /// Its name.
    pub name: NetworkName,
    /// A valid interface name.
    pub bridge_name: String,
    /// The interface that carries the VLAN tagged to other hosts.
    pub uplink: Option<String>,
    /// Where addresses come from.
    pub subnet: Subnet,
    /// A host address of the subnet.
    pub gateway: Ipv4Addr,
    /// IPv6 beside it.
    pub ipv6: Ipv6Choice,
    /// Told to the guests; may be empty.
    pub dns: Vec<Ipv4Addr>,
    /// 1 to 4094; none for a network without a VLAN.
    pub vlan_id: Option<u16>,
    /// Whether guests reach other networks, behind the host's address.
    pub nat: bool,
    /// Whether guests on the bridge are kept from each other.
    pub isolated: bool,
    /// The largest packet, 576 to 9216 bytes.
    pub mtu: u16,
}

/// The kind of network asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkMode {
    /// Bridge where permitted, else user.
    Auto,
    /// A bridge on this host.
    Bridge,
    /// QEMU's own user-mode network.
    User,
    /// No network card.
    None,
}

/// The observer.
#[derive(Clone, Debug)]
pub struct ObserverConfig {
    /// Time between two looks, 0.1 s to 5 s.
    pub interval: Duration,
    /// What it does about drift.
    pub policy: ObserverPolicy,
    /// A file that no record knows is left alone for so long.
    pub grace: Duration,
    /// What was put away is kept for so long.
    pub trash_retention: Duration,
}

/// What the observer does about drift.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObserverPolicy {
    /// Repairs what it safely can, and reports.
    Repair,
    /// Only reports.
    Report,
}

/// The daemon's own log.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The least important level that is written.
    pub level: LogLevel,
    /// Where and how it is written.
    pub format: LogFormat,
    /// A file beside it.
    pub file: Option<LogFile>,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// Where and how the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// journald where it is, else text; on a terminal text as well.
    Auto,
    /// journald; text while it is away.
    Journald,
    /// Lines for people on standard error.
    Text,
    /// One JSON object a line on standard error.
    Json,
}

/// A log file that is rotated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// The current file; rotated ones get `.1`, `.2`, … appended, the newest first.
    pub path: PathBuf,
    /// Size at which it is rotated, in bytes.
    pub max_bytes: u64,
    /// Rotated files that are kept; 0 truncates instead.
    pub backup_count: u32,
}

/// Limits on how much is done at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// VMs that may be recorded.
    pub max_vms: u32,
    /// VMs that may be starting at once, at least 1.
    pub max_launches: u32,
    /// Largest image that may be uploaded, in bytes.
    pub image_max_bytes: u64,
    /// Size at which a console log is cut, in bytes.
    pub console_max_bytes: u64,
    /// Longest time an ordered stop takes.
    pub shutdown_timeout: Duration,
}
