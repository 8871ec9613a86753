//! The networks: `default` from the flat keys, the others from the tables `[network.NAME]`.
//!
//! Owns: what a network's values may be, and that no two networks get in each other's way.
//! Look next: `keys.rs` for both tables of keys.

use super::{
    Ipv6Choice, NetworkSettings, ipv6, is_name,
    keys::NETWORK_KEYS,
    read::{Reader, quoted, within},
    subnet::Subnet,
    uplink,
};
use std::net::Ipv4Addr;
use vman_model::NetworkName;

/// The most networks: each has a bridge, two tables of rules and a dnsmasq.
const MOST: usize = 64;

const LEAST_MTU: u16 = 576;
const MOST_MTU: u16 = 9216;
const DEFAULT_MTU: u16 = 1500;

pub(super) const FLAGS: [(&str, bool); 4] =
    [("0", false), ("1", true), ("false", false), ("true", true)];

/// Every network, the default one first.
pub(super) fn read(reader: &mut Reader) -> Vec<NetworkSettings> {
    let before = reader.faults.len();
    let default = read_default(reader);
    // What stands in the place of a wrong value could seem to get in another's way.
    let judged = reader.faults.len() == before;
    let names = reader.named_networks();
    if names.len() >= MOST {
        let what = format!("is one network too many: there may be {MOST} with the default one");
        reader.fault(&first_key(names.last(), reader), what);
    }
    let mut networks = vec![default];
    for name in &names {
        let before = reader.faults.len();
        let network = read_further(reader, name, &networks[0].dns);
        let Some(network) = network.filter(|_| reader.faults.len() == before) else {
            continue;
        };
        let others = networks.iter().skip(usize::from(!judged));
        let clashes: Vec<_> = others.flat_map(|other| clashes(&network, other)).collect();
        for (key, what) in clashes {
            reader.fault(&format!("network.{name}.{key}"), what);
        }
        networks.push(network);
    }
    networks
}

fn read_default(reader: &mut Reader) -> NetworkSettings {
    let vlan_id = reader.number("vlan_id", 100, 1, 4094);
    let bridge_name = reader.value(
        "bridge_name",
        |_| "br-vman".to_owned(),
        parse_bridge,
        Clone::clone,
    );
    let before = reader.faults.len();
    let subnet = read_subnet(reader, "subnet");
    let gateway = read_gateway(reader, "gateway", subnet, before);
    let mtu = reader.number("network_mtu", DEFAULT_MTU, LEAST_MTU, MOST_MTU);
    let keys = ["ipv6", "subnet6", "network_mtu"].map(str::to_owned);
    let public = || vec![Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(8, 8, 4, 4)];
    NetworkSettings {
        name: NetworkName::default(),
        uplink: uplink::read(reader, "uplink", &bridge_name),
        bridge_name,
        subnet,
        gateway,
        dns: reader.value("dns", |_| public(), parse_dns, |dns| show_dns(dns)),
        vlan_id: Some(vlan_id),
        isolated: reader.word("network_isolated", false, &FLAGS),
        nat: reader.word("network_nat", true, &FLAGS),
        ipv6: ipv6::read(reader, &keys.into(), mtu),
        mtu,
    }
}

/// One that is wrong has left a fault; whether it is answered then says nothing.
fn read_further(reader: &mut Reader, name: &str, dns: &[Ipv4Addr]) -> Option<NetworkSettings> {
    let key = |key: &str| format!("network.{name}.{key}");
    let name_of = match NetworkName::parse(name) {
        Ok(name_of) if name_of != NetworkName::default() => name_of,
        Ok(_) => {
            let what = "is said at the top level: the network `default` has no table";
            reader.fault(&first_key(Some(name), reader), what);
            return None;
        }
        Err(error) => {
            let what = format!("is of a network whose name {error}");
            reader.fault(&first_key(Some(name), reader), what);
            return None;
        }
    };
    for needed in ["bridge", "subnet"] {
        if !reader.said(&key(needed)) {
            let what = format!("needs {} beside it", key(needed));
            reader.fault(&first_key(Some(name), reader), what);
        }
    }
    let bridge = |_: &mut Reader| format!("br-{name}");
    let bridge_name = reader.value(&key("bridge"), bridge, parse_bridge, Clone::clone);
    let before = reader.faults.len();
    let subnet = read_subnet(reader, &key("subnet"));
    let gateway = read_gateway(reader, &key("gateway"), subnet, before);
    let same = |_: &mut Reader| dns.to_vec();
    let parse_vlan = |text: &str| within(text, 1, 4094).map(Some);
    let show_vlan = |vlan: &Option<u16>| vlan.map_or_else(String::new, |vlan| vlan.to_string());
    let vlan_id = reader.value(&key("vlan_id"), |_| None, parse_vlan, show_vlan);
    let uplink = uplink::read(reader, &key("uplink"), &bridge_name);
    if uplink.is_some() && vlan_id.is_none() {
        let what = "carries the network's VLAN tagged: say its vlan_id as well";
        reader.fault(&key("uplink"), what);
    }
    let mtu = reader.number(&key("mtu"), DEFAULT_MTU, LEAST_MTU, MOST_MTU);
    let keys = ["ipv6", "subnet6", "mtu"].map(key);
    Some(NetworkSettings {
        name: name_of,
        bridge_name,
        uplink,
        subnet,
        gateway,
        dns: reader.value(&key("dns"), same, parse_dns, |dns| show_dns(dns)),
        vlan_id,
        nat: reader.word(&key("nat"), true, &FLAGS),
        isolated: reader.word(&key("isolated"), false, &FLAGS),
        ipv6: ipv6::read(reader, &keys.into(), mtu),
        mtu,
    })
}

/// The first key that was said of a network: the place that faults of the whole are told at.
fn first_key(network: Option<impl AsRef<str>>, reader: &Reader) -> String {
    let network = network.as_ref().map_or("", AsRef::as_ref);
    let mut keys = NETWORK_KEYS.iter();
    let mut said = keys
        .by_ref()
        .map(|key| format!("network.{network}.{}", key.name));
    said.find(|key| reader.said(key)).unwrap_or_default()
}

/// What two networks must not have in common, at the keys of the later one.
fn clashes(network: &NetworkSettings, other: &NetworkSettings) -> Vec<(&'static str, String)> {
    let name = &other.name;
    let mut clashes = Vec::new();
    if network.bridge_name == other.bridge_name {
        let what = format!("is the bridge of the network {name}: each has its own");
        clashes.push(("bridge", what));
    }
    if network.uplink.is_some() && network.uplink == other.uplink {
        let what = format!("is the uplink of the network {name}: each has its own");
        clashes.push(("uplink", what));
    }
    if network.subnet.overlaps(other.subnet) {
        let (ours, theirs) = (network.subnet, other.subnet);
        let what = format!("{ours} overlaps with {theirs} of the network {name}");
        clashes.push(("subnet", what));
    }
    if matches!(network.ipv6, Ipv6Choice::Said(_)) && network.ipv6 == other.ipv6 {
        let what = format!("is the IPv6 network of the network {name}: each has its own");
        clashes.push(("subnet6", what));
    }
    clashes
}

fn parse_bridge(text: &str) -> Result<String, String> {
    let valid = (1..=15).contains(&text.len()) && is_name(text);
    valid.then(|| text.to_owned()).ok_or_else(|| {
        let given = quoted(text);
        format!(
            "must be an interface name of 1 to 15 letters, digits, `.`, `_`, `-`; it is {given}"
        )
    })
}

fn read_subnet(reader: &mut Reader, key: &str) -> Subnet {
    reader.value(
        key,
        |_| Subnet::default(),
        Subnet::parse,
        ToString::to_string,
    )
}

fn read_gateway(reader: &mut Reader, key: &str, subnet: Subnet, before: usize) -> Ipv4Addr {
    let gateway = reader.address(key, subnet.first_host());
    // A wrong subnet or gateway has been told already: what stands here then is the default.
    if reader.faults.len() == before && !subnet.holds_host(gateway) {
        let what = format!("must be a host address of {subnet}; it is {gateway}");
        reader.fault(key, what);
    }
    gateway
}

fn parse_dns(text: &str) -> Result<Vec<Ipv4Addr>, String> {
    // A DHCP answer has room for few, and resolvers use three.
    const MOST: usize = 8;
    let parts = text.split(',').map(str::trim);
    let parsed: Result<Vec<Ipv4Addr>, _> = parts
        .filter(|part| !part.is_empty())
        .map(str::parse)
        .collect();
    parsed.ok().filter(|dns| dns.len() <= MOST).ok_or_else(|| {
        let given = quoted(text);
        format!("must be at most {MOST} IPv4 addresses separated by commas; it is {given}")
    })
}

fn show_dns(dns: &[Ipv4Addr]) -> String {
    let all: Vec<String> = dns.iter().map(ToString::to_string).collect();
    all.join(",")
}
