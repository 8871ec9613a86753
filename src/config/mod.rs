//! One validated `Config`, a part per room, made from the layers
//! defaults < `/etc/vman` (or `--config`) < `.env` < environment < flags.
//!
//! Owns: every key, its limits, and where each value came from. Must not: start anything, make directories, or
//! read the environment itself (`Environment` is captured in `main`). All faults are told at once.
//! Look next: `keys.rs` (the table), `parts.rs` (the types), `layers.rs` (where values come from), `read.rs` (what they mean),
//! `networks.rs`, `subnet.rs`, `ipv6.rs`.

mod environment;
mod fault;
mod ipv6;
pub mod keys;
mod layers;
mod networks;
mod parts;
mod read;
mod subnet;
#[cfg(test)]
mod tests;
mod uplink;

pub use environment::Environment;
pub use fault::{ConfigError, Fault, Source};
pub use ipv6::Ipv6Choice;
pub use layers::Overrides;
pub use parts::*;
pub use subnet::Subnet;

use layers::Layers;
use read::{Reader, quoted};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// The longest path that fits into a UNIX socket's address, without its closing zero.
const MAX_SOCKET_PATH: usize = 107;

/// The whole configuration, validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where things are kept.
    pub storage: StorageConfig,
    /// The listeners.
    pub http: HttpConfig,
    /// How QEMUs are confined.
    pub jail: JailConfig,
    /// How much of the host may be promised to VMs.
    pub admission: AdmissionConfig,
    /// QEMU and its tools.
    pub qemu: QemuConfig,
    /// The VMs' network.
    pub network: NetworkConfig,
    /// The observer.
    pub observer: ObserverConfig,
    /// The daemon's own log.
    pub log: LogConfig,
    /// Limits on how much is done at once.
    pub limits: Limits,
    /// Every effective value with its source, in the order of the table.
    pub settings: Vec<Setting>,
}

impl Config {
    /// Reads and validates every layer. Touches nothing but the configuration's own files.
    pub fn load(overrides: &Overrides, environment: &Environment) -> Result<Self, ConfigError> {
        let mut reader = Reader::new(Layers::collect(overrides, environment));
        let config = Self::read(&mut reader, environment);
        let mut faults = reader.faults;
        if faults.is_empty() {
            return Ok(config);
        }
        faults.dedup();
        Err(ConfigError { faults })
    }

    fn read(reader: &mut Reader, environment: &Environment) -> Self {
        let storage = read_storage(reader, environment);
        let mut http = read_http(reader, &storage.runtime);
        let qemu = read_qemu(reader, environment);
        let jail = read_jail(reader);
        let admission = AdmissionConfig {
            memory_overcommit: reader.decimal("memory_overcommit", 1.5, 0.0, 1_000.0),
            cpu_overcommit: reader.decimal("cpu_overcommit", 0.0, 0.0, 1_000.0),
        };
        let observer = read_observer(reader);
        let network = read_network(reader, environment);
        let log = read_log(reader);
        let max_vms = reader.number("max_vms", 10_000, 1, 100_000);
        http.max_inflight = reader.number("max_inflight", http.max_inflight, 1, 65_536);
        let limits = read_limits(reader, max_vms, environment.processors);
        Self {
            storage,
            http,
            jail,
            admission,
            qemu,
            network,
            observer,
            log,
            limits,
            settings: std::mem::take(&mut reader.settings),
        }
    }
}

/// The socket the client commands should try, from the same layers as the daemon's but tolerant: faults in
/// keys that do not concern a client must not keep anybody from asking a running daemon.
pub fn client_socket(overrides: &Overrides, environment: &Environment) -> PathBuf {
    let mut layers = Layers::collect(overrides, environment);
    layers.faults.clear();
    let named = ["socket", "runtime_path"]
        .iter()
        .any(|key| layers.values.contains_key(*key));
    let mut reader = Reader::new(layers);
    let storage = read_storage(&mut reader, environment);
    let own = read_http(&mut reader, &storage.runtime).socket;
    let system = Path::new("/run/vman/vman.sock");
    // An ordinary user without a daemon of their own means the host's.
    if !named && !own.exists() && system.exists() {
        return system.to_owned();
    }
    own
}

fn read_storage(reader: &mut Reader, environment: &Environment) -> StorageConfig {
    let homeless = |reader: &mut Reader, name: &str| {
        reader.fault(
            name,
            "has no default for a user without HOME: set it to an absolute path",
        );
        PathBuf::from("/nonexistent")
    };
    let path = reader.path("storage_path", |reader| {
        let default = environment.default_storage();
        default.unwrap_or_else(|| homeless(reader, "storage_path"))
    });
    let runtime = reader.path("runtime_path", |reader| {
        let default = environment.default_runtime();
        default.unwrap_or_else(|| homeless(reader, "runtime_path"))
    });
    if path == runtime {
        reader.fault("runtime_path", "must not be the storage path itself");
    }
    StorageConfig { path, runtime }
}

fn read_http(reader: &mut Reader, runtime: &Path) -> HttpConfig {
    let listen = reader.value(
        "listen",
        |_| Some(SocketAddr::from(([127, 0, 0, 1], 8000))),
        |text| match text {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                let given = quoted(text);
                format!("must be ADDRESS:PORT with a numeric address, or empty; it is {given}")
            }),
        },
        |listen| listen.map_or_else(String::new, |listen| listen.to_string()),
    );
    let socket = reader.path("socket", |_| runtime.join("vman.sock"));
    if socket.as_os_str().len() > MAX_SOCKET_PATH {
        let length = socket.as_os_str().len();
        let what = format!(
            "is a path of {length} bytes, a UNIX socket takes {MAX_SOCKET_PATH}: choose a shorter runtime_path or socket"
        );
        reader.fault("socket", what);
    }
    let words = [("token", AuthMode::Token), ("none", AuthMode::None)];
    let auth = reader.word("auth", AuthMode::Token, &words);
    let hosts = reader.value(
        "hosts",
        |_| Vec::new(),
        parse_hosts,
        |hosts: &Vec<String>| hosts.join(","),
    );
    let tls = read_tls(reader);
    let open = listen.filter(|listen| !listen.ip().is_loopback());
    if let Some(listen) = open.filter(|_| tls.is_none() || auth == AuthMode::None) {
        let what = if auth == AuthMode::None {
            format!("{listen} is reachable from outside, and auth = none is for loopback only")
        } else {
            format!(
                "{listen} is reachable from outside without TLS, so tokens could be read on the way: set tls_certificate and tls_key, or listen on 127.0.0.1"
            )
        };
        reader.fault("listen", what);
    }
    HttpConfig {
        listen,
        socket,
        auth,
        hosts,
        tls,
        max_inflight: 1024,
    }
}

fn parse_hosts(text: &str) -> Result<Vec<String>, String> {
    const MOST: usize = 32;
    let parts = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    let hosts: Vec<String> = parts.map(str::to_owned).collect();
    // A name or an address, without port and brackets.
    let valid = |host: &String| {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '_');
        host.len() <= 253 && host.chars().all(known)
    };
    if hosts.len() <= MOST && hosts.iter().all(valid) {
        return Ok(hosts);
    }
    let given = quoted(text);
    Err(format!(
        "must be at most {MOST} names or addresses without port, separated by commas; it is {given}"
    ))
}

fn read_tls(reader: &mut Reader) -> Option<TlsConfig> {
    let certificate = reader.optional_path("tls_certificate");
    let key = reader.optional_path("tls_key");
    let client_ca = reader.optional_path("tls_client_ca");
    match (certificate, key) {
        (Some(certificate), Some(key)) => Some(TlsConfig {
            certificate,
            key,
            client_ca,
        }),
        (Some(_), None) => {
            reader.fault("tls_certificate", "needs tls_key beside it");
            None
        }
        (None, Some(_)) => {
            reader.fault("tls_key", "needs tls_certificate beside it");
            None
        }
        (None, None) => {
            if client_ca.is_some() {
                reader.fault(
                    "tls_client_ca",
                    "needs tls_certificate and tls_key beside it",
                );
            }
            None
        }
    }
}

fn read_qemu(reader: &mut Reader, environment: &Environment) -> QemuConfig {
    let words = [
        ("auto", AccelChoice::Auto),
        ("kvm", AccelChoice::Kvm),
        ("tcg", AccelChoice::Tcg),
    ];
    let accel = reader.word("accel", AccelChoice::Auto, &words);
    let binary = read_program(reader, environment, "qemu_binary", "qemu-system-x86_64");
    let img = read_program(reader, environment, "qemu_img", "qemu-img");
    let words = [("0", false), ("1", true), ("false", false), ("true", true)];
    let dry_run = reader.word("operator_dry_run", false, &words);
    let default_boot_disk = reader.value(
        "default_boot_disk",
        |_| None,
        |text| match text {
            "" => Ok(None),
            text if is_name(text) => Ok(Some(text.to_owned())),
            text => Err(format!(
                "must be an image's name (letters, digits, `.`, `_`, `-`, at most 63); it is {}",
                quoted(text)
            )),
        },
        |name| name.clone().unwrap_or_default(),
    );
    QemuConfig {
        accel,
        binary,
        img,
        dry_run,
        default_boot_disk,
    }
}

fn read_jail(reader: &mut Reader) -> JailConfig {
    let words = [
        ("auto", JailMode::Auto),
        ("require", JailMode::Require),
        ("off", JailMode::Off),
    ];
    let default = JailConfig::default();
    JailConfig {
        mode: reader.word("jail", default.mode, &words),
        // Root's and the system's own ids are never QEMU's; 2^31 is beyond what tools take.
        first_uid: reader.number("jail_first_uid", default.first_uid, 1_000, 2_000_000_000),
        uids: reader.number("jail_uids", default.uids, 2, 1_000_000),
    }
}

/// A program that is missing is no fault of the configuration: the daemon serves, and says `start_failed`.
fn read_program(
    reader: &mut Reader,
    environment: &Environment,
    key: &'static str,
    default: &str,
) -> PathBuf {
    let locate = |name: &str| {
        let found = environment.find_program(name);
        found.unwrap_or_else(|| PathBuf::from(name))
    };
    reader.value(
        key,
        |_| locate(default),
        |text| {
            if text.is_empty() || text.contains(char::is_control) {
                Err(format!("must name a program; it is {}", quoted(text)))
            } else if !text.contains('/') {
                Ok(locate(text))
            } else if text.starts_with('/') {
                Ok(PathBuf::from(text))
            } else {
                Err(format!(
                    "must be an absolute path or a name on PATH; it is {}",
                    quoted(text)
                ))
            }
        },
        |path| path.display().to_string(),
    )
}

fn is_name(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

fn read_observer(reader: &mut Reader) -> ObserverConfig {
    let interval = reader.seconds("observer_interval", 5.0, 0.1, 5.0);
    let words = [
        ("repair", ObserverPolicy::Repair),
        ("report", ObserverPolicy::Report),
    ];
    let policy = reader.word("observer_policy", ObserverPolicy::Repair, &words);
    // 30 days and a year: longer is a mistake in the unit.
    let grace = reader.seconds("observer_grace", 600.0, 0.0, 2_592_000.0);
    let trash_retention = reader.seconds("trash_retention", 604_800.0, 60.0, 31_536_000.0);
    ObserverConfig {
        interval,
        policy,
        grace,
        trash_retention,
    }
}

fn read_network(reader: &mut Reader, environment: &Environment) -> NetworkConfig {
    let words = [
        ("auto", NetworkMode::Auto),
        ("bridge", NetworkMode::Bridge),
        ("user", NetworkMode::User),
        ("none", NetworkMode::None),
    ];
    let mode = reader.word("network_mode", NetworkMode::Auto, &words);
    let networks = networks::read(reader);
    let nft = read_program(reader, environment, "nft", "nft");
    let dnsmasq = read_program(reader, environment, "dnsmasq", "dnsmasq");
    NetworkConfig {
        mode,
        networks,
        nft,
        dnsmasq,
    }
}

fn read_log(reader: &mut Reader) -> LogConfig {
    // The Python words come last so that a value is shown by its first name.
    let words = [
        ("trace", LogLevel::Trace),
        ("debug", LogLevel::Debug),
        ("info", LogLevel::Info),
        ("warn", LogLevel::Warn),
        ("error", LogLevel::Error),
        ("warning", LogLevel::Warn),
        ("critical", LogLevel::Error),
    ];
    let level = reader.word("log_level", LogLevel::Info, &words);
    let words = [
        ("auto", LogFormat::Auto),
        ("journald", LogFormat::Journald),
        ("text", LogFormat::Text),
        ("json", LogFormat::Json),
    ];
    let format = reader.word("log_format", LogFormat::Auto, &words);
    let file = reader.optional_path("log_file");
    let directory = reader.optional_path("log_dir");
    if file.is_some() && directory.is_some() {
        reader.fault("log_dir", "excludes log_file: set only one of the two");
    }
    let max_bytes = reader.number("log_max_bytes", 10_485_760, 4_096, 1 << 40);
    let backup_count = reader.number("log_backup_count", 5, 0, 1_000);
    let path = file.or_else(|| directory.map(|directory| directory.join("vman.log")));
    let file = path.map(|path| LogFile {
        path,
        max_bytes,
        backup_count,
    });
    LogConfig {
        level,
        format,
        file,
    }
}

fn read_limits(reader: &mut Reader, max_vms: u32, processors: u32) -> Limits {
    let max_launches = reader.value(
        "max_launches",
        |_| processors.saturating_mul(2).max(1),
        |text| match text {
            "auto" => Ok(processors.saturating_mul(2).max(1)),
            text => match text.parse() {
                Ok(number @ 1..=1024) => Ok(number),
                _ => Err(format!(
                    "must be auto or a number from 1 to 1024; it is {}",
                    quoted(text)
                )),
            },
        },
        ToString::to_string,
    );
    Limits {
        max_vms,
        max_launches,
        image_max_bytes: reader.number("image_max_bytes", 64 << 30, 1 << 20, 1 << 50),
        // A console answers its last 50 kB, so less than that would show holes.
        console_max_bytes: reader.number("console_max_bytes", 8 << 20, 64 << 10, 1 << 40),
        shutdown_timeout: reader.seconds("shutdown_timeout", 5.0, 0.1, 60.0),
    }
}
