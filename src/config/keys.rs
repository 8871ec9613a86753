//! The table of every key VMAN knows, with its default and its meaning.
//!
//! A key lives here once; the files, the environment, the flags, `vman config show`, and the test that
//! compares `docs/configuration.md` and `contrib/` with the code all read this table.

/// What one key is called and what it means.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Name in a configuration file, `storage_path`; `VMAN_STORAGE_PATH` in the environment.
    pub name: &'static str,
    /// The default as it would be written, or a description in parentheses where it is worked out.
    pub default: &'static str,
    /// One sentence for people.
    pub about: &'static str,
}

impl Key {
    /// The name in the environment and in `.env`.
    pub fn variable(&self) -> String {
        format!("VMAN_{}", self.name.to_ascii_uppercase())
    }
}

const fn key(name: &'static str, default: &'static str, about: &'static str) -> Key {
    Key {
        name,
        default,
        about,
    }
}

/// Every key of a network's table in a file, `[network.NAME]`; `--set network.NAME.KEY=VALUE`.
pub const NETWORK_KEYS: &[Key] = &[
    key(
        "bridge",
        "(must be said)",
        "Name of its bridge, at most 15 letters; no other network's.",
    ),
    key(
        "subnet",
        "(must be said)",
        "IPv4 network its VMs get their addresses from, /8 to /30; it overlaps with no other network's.",
    ),
    key(
        "gateway",
        "(the subnet's first address)",
        "Address of the host on its bridge.",
    ),
    key(
        "dns",
        "(those of `VMAN_DNS`)",
        "DNS servers told to its guests.",
    ),
    key("vlan_id", "(no VLAN)", "VLAN of its bridge, 1 to 4094."),
    key(
        "uplink",
        "(none)",
        "Interface that carries its VLAN tagged to other hosts; no other network's.",
    ),
    key(
        "nat",
        "1",
        "`0` lets its guests begin no conversation with other networks.",
    ),
    key("isolated", "0", "`1` keeps its guests from each other."),
    key(
        "mtu",
        "1500",
        "Largest packet on its bridge in bytes, 576 to 9216.",
    ),
    key("ipv6", "0", "`1` gives its guests IPv6 beside IPv4."),
    key(
        "subnet6",
        "(follows from the installation and its name)",
        "Unique local IPv6 network of its guests, a /64 in fd00::/8; no other network's.",
    ),
];

/// Every key of the daemon, in the order in which `vman config show` lists them.
pub const KEYS: &[Key] = &[
    key(
        "storage_path",
        "(/var/lib/vman, or the user's state directory)",
        "Where the store, images, disks and logs of the VMs are kept.",
    ),
    key(
        "runtime_path",
        "(/run/vman, or the user's runtime directory)",
        "Where sockets are kept; may be emptied by a reboot.",
    ),
    key(
        "listen",
        "127.0.0.1:8000",
        "TCP address of the API; empty for none.",
    ),
    key(
        "socket",
        "(<runtime_path>/vman.sock)",
        "UNIX socket of the API.",
    ),
    key(
        "auth",
        "token",
        "Who may call over TCP: `token`, or `none` on a loopback address.",
    ),
    key(
        "hosts",
        "",
        "Names, separated by commas, by which the API may be called over TCP beside loopback's; none: any name beyond loopback.",
    ),
    key(
        "tls_certificate",
        "",
        "Certificate chain in PEM with which the TCP listener speaks TLS; needs tls_key.",
    ),
    key(
        "tls_key",
        "",
        "Private key of that certificate in PEM, not readable by every user.",
    ),
    key(
        "tls_client_ca",
        "",
        "Certificates in PEM of which one must have issued each TCP client's; a token is needed all the same.",
    ),
    key(
        "accel",
        "auto",
        "`auto` (KVM if usable, else TCG), `kvm` or `tcg`.",
    ),
    key(
        "qemu_binary",
        "(qemu-system-x86_64 on PATH)",
        "The QEMU that runs the VMs.",
    ),
    key(
        "qemu_img",
        "(qemu-img on PATH)",
        "The qemu-img that makes and inspects images.",
    ),
    key(
        "jail",
        "auto",
        "How QEMU is confined: `auto` (as far as the host can, told in health), `require` or `off`.",
    ),
    key(
        "jail_first_uid",
        "70000",
        "First of the user and group ids that are for QEMUs alone.",
    ),
    key(
        "jail_uids",
        "20001",
        "How many such ids there are; each running VM has one, and all share the first as group.",
    ),
    key(
        "memory_overcommit",
        "1.5",
        "How often the host's memory may be promised to VMs that run, 0 to 1000; 0 is without limit.",
    ),
    key(
        "cpu_overcommit",
        "0.0",
        "How often the host's processors may be promised to VMs that run, 0 to 1000; 0 is without limit.",
    ),
    key(
        "operator_dry_run",
        "0",
        "`1` runs the whole daemon on a simulated host.",
    ),
    key(
        "default_boot_disk",
        "",
        "Image that a new VM boots from when nothing else is said.",
    ),
    key(
        "observer_interval",
        "5.0",
        "Seconds between two looks of the observer, 0.1 to 5.",
    ),
    key(
        "observer_policy",
        "repair",
        "What the observer does about drift: `repair` or `report`.",
    ),
    key(
        "observer_grace",
        "600.0",
        "Seconds for which a file that no record knows is left alone, 0 to 2592000.",
    ),
    key(
        "trash_retention",
        "604800.0",
        "Seconds for which what was put away is kept, 60 to 31536000.",
    ),
    key(
        "network_mode",
        "auto",
        "`auto` (bridge where permitted, else user), `bridge`, `user` or `none`.",
    ),
    key("vlan_id", "100", "VLAN of the bridge, 1 to 4094."),
    key(
        "uplink",
        "",
        "Interface that carries the VLAN tagged to other hosts: it becomes a port of the bridge.",
    ),
    key(
        "bridge_name",
        "br-vman",
        "Name of the bridge, at most 15 letters.",
    ),
    key(
        "subnet",
        "192.168.100.0/24",
        "IPv4 network the VMs get their addresses from, /8 to /30.",
    ),
    key(
        "gateway",
        "(the subnet's first address)",
        "Address of the host on the bridge.",
    ),
    key(
        "dns",
        "8.8.8.8,8.8.4.4",
        "DNS servers told to the guests, separated by commas.",
    ),
    key(
        "network_isolated",
        "0",
        "`1` keeps guests on the bridge from each other.",
    ),
    key(
        "network_nat",
        "1",
        "`0` lets guests begin no conversation with other networks; forwarded ports lead in all the same.",
    ),
    key(
        "network_mtu",
        "1500",
        "Largest packet on the bridge in bytes, 576 to 9216.",
    ),
    key(
        "ipv6",
        "0",
        "`1` gives guests on the bridge IPv6 beside IPv4.",
    ),
    key(
        "subnet6",
        "(follows from the installation)",
        "Unique local IPv6 network of the guests, a /64 in fd00::/8.",
    ),
    key(
        "nft",
        "(nft on PATH)",
        "The nft that writes the firewall of the bridge.",
    ),
    key(
        "dnsmasq",
        "(dnsmasq on PATH)",
        "The dnsmasq that gives the guests on the bridge their addresses and names.",
    ),
    key(
        "log_level",
        "info",
        "`trace`, `debug`, `info`, `warn` or `error`.",
    ),
    key(
        "log_format",
        "auto",
        "`auto` (journald where it is, else text), `journald`, `text` or `json`.",
    ),
    key(
        "log_file",
        "",
        "Also write the log to this file; excludes log_dir.",
    ),
    key(
        "log_dir",
        "",
        "Also write the log to vman.log in this directory; excludes log_file.",
    ),
    key(
        "log_max_bytes",
        "10485760",
        "Size in bytes at which the log file is rotated.",
    ),
    key(
        "log_backup_count",
        "5",
        "How many rotated log files are kept.",
    ),
    key("max_vms", "10000", "How many VMs may be recorded."),
    key(
        "max_inflight",
        "1024",
        "How many requests may be worked on at once.",
    ),
    key(
        "max_launches",
        "auto",
        "How many VMs may be starting at once; `auto` is twice the processors.",
    ),
    key(
        "image_max_bytes",
        "68719476736",
        "Largest image that may be uploaded, in bytes.",
    ),
    key(
        "console_max_bytes",
        "8388608",
        "Size in bytes at which a VM's console log is cut.",
    ),
    key(
        "shutdown_timeout",
        "5.0",
        "Seconds the daemon takes at most to finish requests when it is stopped, 0.1 to 60.",
    ),
];

/// Variables that the client commands read; the daemon accepts and ignores them.
pub const CLIENT_VARIABLES: &[&str] = &["VMAN_URL", "VMAN_TOKEN"];

/// Variables with these prefixes belong to the project's own tests, test guest and demo; the daemon ignores them.
pub const FOREIGN_PREFIXES: &[&str] = &["VMAN_TEST_", "VMAN_GUEST_", "VMAN_DEMO_"];

/// The key with this file name.
pub fn find(name: &str) -> Option<&'static Key> {
    if let Some((_, key)) = split_network(name) {
        return NETWORK_KEYS.iter().find(|known| known.name == key);
    }
    KEYS.iter().find(|key| key.name == name)
}

/// The network and the key that `network.lab.subnet` names. A network's name may have dots.
pub fn split_network(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("network.")?.rsplit_once('.')
}

/// What was probably meant by `name`, as it would be written in a file.
pub fn hint(name: &str) -> Option<String> {
    match split_network(name) {
        Some((network, key)) => {
            let key = closest(NETWORK_KEYS, key)?;
            Some(format!("network.{network}.{}", key.name))
        }
        None => nearest(name).map(|key| key.name.to_owned()),
    }
}

/// The known key closest to `name`, if one is close enough to be what was meant.
pub fn nearest(name: &str) -> Option<&'static Key> {
    closest(KEYS, name)
}

fn closest(keys: &'static [Key], name: &str) -> Option<&'static Key> {
    // A longer name would make the comparison expensive, and is no typing mistake.
    if name.len() > 64 {
        return None;
    }
    let name = name.to_ascii_lowercase();
    keys.iter()
        .map(|key| (distance(&name, key.name), key))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, key)| *distance <= key.name.len().div_ceil(3))
        .map(|(_, key)| key)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
