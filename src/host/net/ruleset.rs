//! The firewall's rules as a pure function of the plan: one script that replaces our tables as a
//! whole, in one transaction of the kernel.
//!
//! Two tables of one name, `vman-<bridge>`. In the family `bridge`: what may come from a TAP (its
//! own MAC, its own address, truthful ARP, no DHCP answers, no other protocol, no VLAN tag; IPv6 in
//! `ruleset6.rs`), how
//! much of it, and whether guests reach each other. In the family `inet`: what guests may ask of this host (DHCP,
//! DNS, ping of the gateway: nothing else, so not the API), NAT, and forwarded ports.
//!
//! All names and addresses here are ours: no user's text gets into the script. The guests are in
//! sets and not in rules, so that a packet costs the same with one guest and with a thousand.

use std::fmt::Write;

use vman_model::network::{Prefix6, limits::MIN_BURST_KIB};
use vman_model::{NetworkPlan, Pool};

use super::ruleset6;

/// What the rules are made for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings<'a> {
    pub(super) bridge: &'a str,
    /// The port that leads to other hosts.
    pub(super) uplink: Option<&'a str>,
    pub(super) pool: &'a Pool,
    /// None where guests have no IPv6: then none of theirs passes.
    pub(super) prefix6: Option<Prefix6>,
    pub(super) isolated: bool,
    /// Whether the kernel can limit what guests send.
    pub(super) limits: bool,
    pub(super) nat: bool,
}

/// The name of our tables.
pub(super) fn table(bridge: &str) -> String {
    format!("vman-{bridge}")
}

/// The script for `nft -f -`.
pub(super) fn script(around: &Surroundings<'_>, plan: &NetworkPlan) -> String {
    let table = table(around.bridge);
    let mut out = String::new();
    for family in ["bridge", "inet"] {
        // The first line makes sure that there is something to delete.
        let _ = writeln!(out, "table {family} {table}\ndelete table {family} {table}");
    }
    let _ = writeln!(out, "table bridge {table} {{");
    ports(&mut out, plan);
    rates(&mut out, around, plan);
    guests(&mut out, around.prefix6.is_some());
    if let Some(prefix) = around.prefix6 {
        ruleset6::ports(&mut out, prefix, plan);
        out.push_str(ruleset6::FROM_GUESTS);
        ruleset6::routers(&mut out, around.uplink);
    }
    if around.isolated {
        isolated(&mut out, around);
    }
    let _ = writeln!(out, "}}\ntable inet {table} {{");
    host(&mut out, around);
    routed(&mut out, around);
    forwarded(&mut out, around, plan);
    masqueraded(&mut out, around);
    out.push_str("}\n");
    out
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// A set of what its declaration says, `type` or `typeof`.
pub(super) fn set(out: &mut String, name: &str, declared: &str, elements: Vec<String>) {
    let _ = writeln!(out, "  set {name} {{\n    {declared}");
    if !elements.is_empty() {
        let _ = writeln!(out, "    elements = {{ {} }}", elements.join(", "));
    }
    out.push_str("  }\n");
}

fn ports(out: &mut String, plan: &NetworkPlan) {
    let all = || plan.ports.iter();
    let tap = |port: &vman_model::network::PortPlan| format!("\"{}\"", port.tap);
    set(out, "taps", "type ifname", all().map(tap).collect());
    let pairs = all().map(|port| format!("\"{}\" . {}", port.tap, mac(port.mac)));
    set(out, "macs", "type ifname . ether_addr", pairs.collect());
    let triples = all().map(|p| format!("\"{}\" . {} . {}", p.tap, mac(p.mac), p.address));
    let kind = "type ifname . ether_addr . ipv4_addr";
    set(out, "addresses", kind, triples.collect());
}

/// What guests may send at most. A token bucket of the kernel's holds what passes in its unit of
/// time, here a second, besides its burst.
fn rates(out: &mut String, around: &Surroundings<'_>, plan: &NetworkPlan) {
    let limited = plan.ports.iter().filter_map(|port| {
        let limit = port.limits.outbound.filter(|_| around.limits)?;
        Some((port.tap.as_str(), limit))
    });
    let (mut named, mut elements) = (String::new(), Vec::new());
    for (tap, limit) in limited {
        let (rate, burst) = (limit.average, limit.burst.saturating_sub(limit.average));
        let burst = burst.max(MIN_BURST_KIB);
        let _ = writeln!(
            named,
            "  limit {tap} {{\n    rate over {rate} kbytes/second burst {burst} kbytes\n  }}"
        );
        elements.push(format!("\"{tap}\" : \"{tap}\""));
    }
    if elements.is_empty() {
        out.push_str("  chain guest_rate {\n  }\n");
        return;
    }
    let elements = elements.join(", ");
    let _ = writeln!(
        out,
        "{named}  map rates {{\n    type ifname : limit\n    elements = {{ {elements} }}\n  }}\n  \
         chain guest_rate {{\n    limit name iifname map @rates drop\n  }}"
    );
}

/// Every frame of a guest meets these before the bridge has learned or forwarded anything.
fn guests(out: &mut String, ipv6: bool) {
    let ipv6 = if ipv6 {
        "    ether type ip6 jump guest_ip6\n"
    } else {
        ""
    };
    let _ = writeln!(
        out,
        r"
  chain prerouting {{
    type filter hook prerouting priority -300; policy accept;
    iifname @taps jump guest
  }}
  chain guest {{
    ether type {{ 8021q, 8021ad }} drop
    iifname . ether saddr != @macs drop
    jump guest_rate
    ether type arp jump guest_arp
    ether type ip jump guest_ip
{ipv6}    drop
  }}"
    );
    out.push_str(FROM_GUESTS);
}

const FROM_GUESTS: &str = r"
  chain guest_arp {
    arp htype 1 arp ptype ip iifname . arp saddr ether . arp saddr ip @addresses accept
    arp operation request arp saddr ip 0.0.0.0 iifname . arp saddr ether @macs accept
    drop
  }
  chain guest_ip {
    ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept
    udp sport 67 drop
    iifname . ether saddr . ip saddr @addresses accept
    drop
  }
";

/// Guests are kept from each other: on the bridge, and by way of the host, which would pass on what
/// one sends to the gateway's MAC address for another.
fn isolated(out: &mut String, around: &Surroundings<'_>) {
    let gateway = around.pool.gateway();
    let (network, prefix) = (around.pool.network(), around.pool.prefix());
    let ipv6 = around.prefix6.map_or_else(String::new, |prefix| {
        let gateway = prefix.gateway();
        format!("    oifname @taps ip6 saddr {prefix} ip6 saddr != {gateway} drop\n")
    });
    let _ = writeln!(
        out,
        r"
  chain forward {{
    type filter hook forward priority 0; policy accept;
    iifname @taps oifname @taps drop
  }}
  chain output {{
    type filter hook output priority 0; policy accept;
    oifname @taps ip saddr {network}/{prefix} ip saddr != {gateway} drop
{ipv6}  }}"
    );
}

/// What guests may ask of the host itself.
fn host(out: &mut String, around: &Surroundings<'_>) {
    let (bridge, gateway) = (around.bridge, around.pool.gateway());
    let _ = writeln!(
        out,
        r#"
  chain input {{
    type filter hook input priority -10; policy accept;
    iifname "{bridge}" jump from_guests
  }}
  chain from_guests {{
    ct state established,related accept
    udp sport 68 udp dport 67 accept
    ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 accept
    ip daddr {gateway} icmp type echo-request accept"#
    );
    if let Some(prefix) = around.prefix6 {
        ruleset6::host(out, around, prefix);
    }
    out.push_str("    drop\n  }\n");
}

/// What passes between the guests' network and others. Where `br_netfilter` is at work, frames from
/// guest to guest come here too: they have met the table of the bridge.
fn routed(out: &mut String, around: &Surroundings<'_>) {
    let bridge = around.bridge;
    let (network, prefix) = (around.pool.network(), around.pool.prefix());
    // Without NAT guests answer whom a forwarded port lets in, and begin nothing.
    let closed = if around.nat {
        String::new()
    } else {
        format!("    iifname \"{bridge}\" ct state != {{ established, related }} drop\n")
    };
    let theirs6 = around.prefix6.map_or_else(
        || "meta nfproto ipv6".to_owned(),
        |prefix| format!("ip6 saddr != {prefix}"),
    );
    let _ = writeln!(
        out,
        r#"
  chain forward {{
    type filter hook forward priority -10; policy accept;
    iifname "{bridge}" oifname "{bridge}" accept
    iifname "{bridge}" ip saddr != {network}/{prefix} drop
    iifname "{bridge}" {theirs6} drop
{closed}    oifname "{bridge}" ct state established,related accept
    oifname "{bridge}" ct status dnat accept
    oifname "{bridge}" drop
  }}"#
    );
}

/// Where a port of the host leads into a guest: by IPv6 too where the guests have it.
fn forwarded(out: &mut String, around: &Surroundings<'_>, plan: &NetworkPlan) {
    let bridge = around.bridge;
    let mut forwards = String::new();
    for forward in &plan.forwards {
        let (protocol, port) = (forward.protocol.as_str(), forward.host_port);
        let (address, to) = (forward.address, forward.guest_port);
        let _ = writeln!(
            forwards,
            "    {protocol} dport {port} dnat ip to {address}:{to}"
        );
        if let Some(address) = around.prefix6.map(|prefix| prefix.guest(address)) {
            let _ = writeln!(
                forwards,
                "    {protocol} dport {port} dnat ip6 to [{address}]:{to}"
            );
        }
    }
    // What this host itself sends to one of its addresses meets the output hook only. Loopback
    // addresses are left alone: the kernel would not route the answers. Nor would it route those to
    // somebody who came to a link-local address.
    let ipv4 = ("meta nfproto ipv4", "ip daddr != 127.0.0.0/8");
    let ipv6 = ("ip6 daddr != fe80::/10", "ip6 daddr != { ::1, fe80::/10 }");
    let families = [Some(ipv4), around.prefix6.map(|_| ipv6)];
    let (mut from_others, mut from_us) = (String::new(), String::new());
    for (of_others, of_us) in families.into_iter().flatten() {
        let local = "fib daddr type local jump forwarded";
        let _ = writeln!(
            from_others,
            "    iifname != \"{bridge}\" {of_others} {local}"
        );
        let _ = writeln!(from_us, "    {of_us} {local}");
    }
    let _ = writeln!(
        out,
        r"
  chain forwarded {{
{forwards}  }}
  chain prerouting {{
    type nat hook prerouting priority -100; policy accept;
{from_others}  }}
  chain output {{
    type nat hook output priority -100; policy accept;
{from_us}  }}"
    );
}

/// What goes out is from this host, as others see it.
fn masqueraded(out: &mut String, around: &Surroundings<'_>) {
    let bridge = around.bridge;
    let (network, prefix) = (around.pool.network(), around.pool.prefix());
    let mut behind_us = String::new();
    if around.nat {
        let theirs = [
            Some(format!("ip saddr {network}/{prefix}")),
            around.prefix6.map(|prefix| format!("ip6 saddr {prefix}")),
        ];
        for from in theirs.into_iter().flatten() {
            let _ = writeln!(behind_us, "    {from} oifname != \"{bridge}\" masquerade");
        }
    }
    let _ = writeln!(
        out,
        r"  chain postrouting {{
    type nat hook postrouting priority 100; policy accept;
{behind_us}  }}"
    );
}

#[cfg(test)]
mod tests;
