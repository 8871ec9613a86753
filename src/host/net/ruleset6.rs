//! The firewall's rules for IPv6, beside those for IPv4 in `ruleset.rs`.
//!
//! A guest has two addresses: its network's, which follows from its lease, and the link-local one
//! that follows from its MAC address. What it says of neighbours has to be about one of these two
//! and about its own MAC address. A neighbour's message has one option in one place or none, so
//! that the kernel, which looks at fixed places only, sees what the receiver sees.

use std::fmt::Write;

use vman_model::NetworkPlan;
use vman_model::network::{PortPlan, Prefix6, link_local};

use super::ruleset::{Surroundings, set};
use super::settle::bridge_mac;

/// The sets by which guests are known.
pub(super) fn ports(out: &mut String, prefix: Prefix6, plan: &NetworkPlan) {
    let own = |port: &PortPlan| [link_local(port.mac), prefix.guest(port.address)];
    let addresses = plan.ports.iter().flat_map(|port| {
        let pair = |address| format!("\"{}\" . {address}", port.tap);
        own(port).map(pair)
    });
    let kind = "type ifname . ipv6_addr";
    set(out, "addresses6", kind, addresses.collect());
    // The same as nft has them of a message's bytes: the address that is asked for or told, and
    // the MAC address that is told with it.
    let targets = plan.ports.iter().flat_map(|port| {
        let pair =
            |address: std::net::Ipv6Addr| format!("\"{}\" . {:#034x}", port.tap, address.to_bits());
        own(port).map(pair)
    });
    let kind = "typeof iifname . @th,64,128";
    set(out, "targets6", kind, targets.collect());
    let told = plan.ports.iter().map(|port| {
        let mac = port.mac.map(|byte| format!("{byte:02x}")).concat();
        format!("\"{}\" . 0x{mac}", port.tap)
    });
    let kind = "typeof iifname . @th,208,48";
    set(out, "told_macs6", kind, told.collect());
}

/// Who is told of routers: guests, by this host. Other hosts behind the uplink are none of ours, and
/// what routers there tell would give guests addresses that are not theirs. (Every chain here sees
/// the frames of every bridge: it speaks of ports of this one.)
pub(super) fn routers(out: &mut String, uplink: Option<&str>) {
    out.push_str(
        r"
  chain forward6 {
    type filter hook forward priority 0; policy accept;
    oifname @taps icmpv6 type nd-router-advert drop
  }
",
    );
    if let Some(uplink) = uplink {
        let _ = writeln!(
            out,
            r#"
  chain output6 {{
    type filter hook output priority 0; policy accept;
    oifname "{uplink}" icmpv6 type nd-router-advert drop
  }}"#
        );
    }
}

/// What of a guest's IPv6 passes. Headers that can stand before others are dropped, so that the
/// next one is the one that counts; but for a fragment's, whose next one is looked at.
pub(super) const FROM_GUESTS: &str = r"
  chain guest_ip6 {
    ip6 saddr :: jump guest_nameless6
    iifname . ip6 saddr != @addresses6 drop
    ip6 nexthdr 0 jump guest_listens6
    ip6 nexthdr { 43, 51, 60, 135, 139, 140 } drop
    ip6 nexthdr 44 jump guest_fragment6
    ip6 nexthdr 17 udp sport 547 drop
    ip6 nexthdr 58 jump guest_icmp6
    accept
  }
  chain guest_nameless6 {
    ip6 nexthdr 0 jump guest_listens6
    ip6 nexthdr 58 icmpv6 type nd-router-solicit ip6 length 8 accept
    ip6 nexthdr 58 icmpv6 type nd-neighbor-solicit iifname . @th,64,128 @targets6 jump guest_looks6
    drop
  }
  chain guest_looks6 {
    ip6 length 24 accept
    ip6 length 32 @th,192,16 0x0e01 accept
    drop
  }
  chain guest_listens6 {
    icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } accept
    drop
  }
  chain guest_fragment6 {
    frag nexthdr { 0, 43, 44, 51, 60, 135, 139, 140 } drop
    frag nexthdr 17 udp sport 547 drop
    frag nexthdr 58 icmpv6 type != { echo-request, echo-reply } drop
    accept
  }
  chain guest_icmp6 {
    icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
    icmpv6 type { echo-request, echo-reply } accept
    icmpv6 type nd-router-solicit ip6 length 8 accept
    icmpv6 type nd-router-solicit ip6 length 16 @th,64,16 0x0101 iifname . @th,80,48 @told_macs6 accept
    icmpv6 type nd-neighbor-solicit ip6 length 24 accept
    icmpv6 type nd-neighbor-solicit ip6 length 32 @th,192,16 0x0101 iifname . @th,208,48 @told_macs6 accept
    icmpv6 type nd-neighbor-advert iifname . @th,64,128 @targets6 jump guest_tells6
    drop
  }
  chain guest_tells6 {
    ip6 length 24 accept
    ip6 length 32 @th,192,16 0x0201 iifname . @th,208,48 @told_macs6 accept
    drop
  }
";

/// What guests may ask of the host itself: for neighbours and routers, DHCP, DNS and an echo.
pub(super) fn host(out: &mut String, around: &Surroundings<'_>, prefix: Prefix6) {
    let (gateway, local) = (prefix.gateway(), link_local(bridge_mac(around.bridge)));
    let _ = writeln!(
        out,
        "    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }} accept\n    \
         ip6 saddr fe80::/64 udp dport 547 accept\n    \
         ip6 daddr {{ {gateway}, {local} }} meta l4proto {{ tcp, udp }} th dport 53 accept\n    \
         ip6 daddr {{ {gateway}, {local} }} icmpv6 type echo-request accept"
    );
}
