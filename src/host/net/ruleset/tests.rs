//! What the rules say of guests, limits, other networks and IPv6.

use super::*;
use std::net::Ipv4Addr;
use vman_model::network::{ForwardPlan, Limit, NicLimits, PortPlan, Protocol};
use vman_model::{NetworkName, TapName, VmId};

fn plan() -> NetworkPlan {
    let vm = VmId::parse("web").unwrap();
    let address = Ipv4Addr::new(10, 9, 0, 2);
    NetworkPlan {
        ports: vec![PortPlan {
            tap: TapName::of(&vm, 0),
            vm,
            nic: 0,
            mac: [0x52, 0x56, 0, 0, 0, 1],
            address,
            limits: NicLimits::default(),
            network: NetworkName::default(),
        }],
        forwards: vec![ForwardPlan {
            protocol: Protocol::Tcp,
            host_port: 8080,
            address,
            guest_port: 80,
            network: NetworkName::default(),
        }],
    }
}

fn script_of(isolated: bool, plan: &NetworkPlan) -> String {
    script_with(isolated, (true, true), plan)
}

fn script_with(isolated: bool, (nat, limits): (bool, bool), plan: &NetworkPlan) -> String {
    script_around(isolated, (nat, limits), None, plan)
}

fn script_around(
    isolated: bool,
    (nat, limits): (bool, bool),
    prefix6: Option<Prefix6>,
    plan: &NetworkPlan,
) -> String {
    let pool = Pool::new(Ipv4Addr::new(10, 9, 0, 0), 24, Ipv4Addr::new(10, 9, 0, 1)).unwrap();
    let around = Surroundings {
        bridge: "br-x",
        uplink: Some("up0"),
        pool: &pool,
        prefix6,
        isolated,
        limits,
        nat,
    };
    script(&around, plan)
}

#[test]
fn a_guest_is_bound_to_its_tap_its_mac_and_its_address() {
    let script = script_of(false, &plan());
    let tap = TapName::of(&VmId::parse("web").unwrap(), 0);
    let bound = format!("\"{tap}\" . 52:56:00:00:00:01 . 10.9.0.2");
    assert!(script.contains(&bound), "{script}");
    assert!(script.contains("tcp dport 8080 dnat ip to 10.9.0.2:80"));
    assert!(!script.contains("oifname @taps drop"), "not isolated");
    assert!(script_of(true, &plan()).contains("iifname @taps oifname @taps drop"));
}

#[test]
fn what_a_guest_sends_is_limited_at_its_tap_where_the_kernel_can() {
    let mut limited = plan();
    limited.ports[0].limits.outbound = Some(Limit::new(1_000, None, Some(3_000)));
    let script = script_of(false, &limited);
    let tap = limited.ports[0].tap.as_str();
    let named = format!("limit {tap} {{\n    rate over 1000 kbytes/second burst 2000 kbytes");
    assert!(script.contains(&named), "{script}");
    assert!(script.contains(&format!("\"{tap}\" : \"{tap}\"")));
    assert!(script.contains("limit name iifname map @rates drop"));
    for unlimited in [
        script_of(false, &plan()),
        script_with(false, (true, false), &limited),
    ] {
        assert!(!unlimited.contains("limit "), "{unlimited}");
        assert!(unlimited.contains("jump guest_rate"));
    }
}

#[test]
fn the_tables_are_replaced_in_one_script_and_a_network_without_guests_has_rules_too() {
    let script = script_of(false, &NetworkPlan::default());
    for family in ["bridge", "inet"] {
        let delete = format!("delete table {family} vman-br-x");
        let make = format!("table {family} vman-br-x {{");
        assert!(script.find(&delete).unwrap() < script.find(&make).unwrap());
    }
    assert!(!script.contains("elements"), "{script}");
}

#[test]
fn without_nat_guests_answer_who_was_let_in_and_begin_nothing() {
    let begins = "iifname \"br-x\" ct state != { established, related } drop";
    let open = script_with(false, (true, true), &plan());
    assert!(
        open.contains("masquerade") && !open.contains(begins),
        "{open}"
    );
    let closed = script_with(false, (false, true), &plan());
    assert!(!closed.contains("masquerade") && closed.contains(begins));
    assert!(closed.contains("tcp dport 8080 dnat ip to 10.9.0.2:80"));
}

#[test]
fn without_ipv6_no_rule_lets_any_of_it_pass() {
    let script = script_of(true, &plan());
    for word in ["ether type ip6", "icmpv6", "ip6 "] {
        assert!(!script.contains(word), "{word}: {script}");
    }
    assert!(script.contains("iifname \"br-x\" meta nfproto ipv6 drop"));
}

#[test]
fn with_ipv6_a_guest_is_bound_to_the_addresses_of_its_lease_and_of_its_mac() {
    let prefix = Prefix6::new("fd12:3456:789a::".parse().unwrap()).unwrap();
    let script = script_around(true, (true, true), Some(prefix), &plan());
    let tap = TapName::of(&VmId::parse("web").unwrap(), 0);
    for bound in [
        format!("\"{tap}\" . fe80::5056:ff:fe00:1"),
        format!("\"{tap}\" . fd12:3456:789a::1:a09:2"),
        format!("\"{tap}\" . 0xfe80000000000000505600fffe000001"),
        format!("\"{tap}\" . 0xfd123456789a0000000000010a090002"),
        format!("\"{tap}\" . 0x525600000001"),
        "ether type ip6 jump guest_ip6".to_owned(),
        "oifname @taps icmpv6 type nd-router-advert drop".to_owned(),
        "oifname \"up0\" icmpv6 type nd-router-advert drop".to_owned(),
        "ip6 saddr fd12:3456:789a::/64 oifname != \"br-x\" masquerade".to_owned(),
        "iifname \"br-x\" ip6 saddr != fd12:3456:789a::/64 drop".to_owned(),
        "tcp dport 8080 dnat ip to 10.9.0.2:80".to_owned(),
        "tcp dport 8080 dnat ip6 to [fd12:3456:789a::1:a09:2]:80".to_owned(),
        "oifname @taps ip6 saddr fd12:3456:789a::/64 ip6 saddr != fd12:3456:789a::1 drop"
            .to_owned(),
    ] {
        assert!(script.contains(&bound), "{bound}: {script}");
    }
    let closed = script_around(false, (false, true), Some(prefix), &plan());
    assert!(!closed.contains("masquerade"), "{closed}");
}
