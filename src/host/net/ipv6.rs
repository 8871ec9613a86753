//! IPv6 of a network's bridge: whether there can be any, the kernel's switches, the host's
//! addresses, and that packets are passed on.
//!
//! A bridge without IPv6 says none, and a TAP never does: its host end has nothing to say to a
//! guest. Must not: know who has which address (`vman_model::network::ipv6` does), or make rules
//! (`ruleset6.rs`).

use std::fs::{self, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::path::Path;

use vman_model::network::{Prefix6, link_local};

use super::bridge::Inner;
use super::links::Link;
use super::settle::bridge_mac;

const SWITCHES: &str = "/proc/sys/net/ipv6/conf";

/// What is set on a bridge with IPv6, in this order. Its addresses are ours alone and nobody else
/// may have them, so they are not looked for first (the bridge has no carrier before its first
/// port); and it believes no router.
const ON: [(&str, &str); 5] = [
    ("accept_ra", "0"),
    ("autoconf", "0"),
    ("accept_dad", "0"),
    ("addr_gen_mode", "1"),
    ("disable_ipv6", "0"),
];

/// Routes to everywhere that a router advertised: flags of `/proc/net/ipv6_route`.
const RTF_ADDRCONF: u32 = 0x0004_0000;

/// Why no bridge of this host can have IPv6, in a sentence.
pub(super) fn missing() -> Option<String> {
    let off = format!("{SWITCHES}/all/disable_ipv6");
    let why = if !Path::new("/proc/net/if_inet6").exists() {
        "this kernel has none".to_owned()
    } else if fs::read_to_string(&off).is_ok_and(|text| text.trim() == "1") {
        "net.ipv6.conf.all.disable_ipv6 is 1 on this host".to_owned()
    } else {
        // Opening for writing changes nothing.
        let error = OpenOptions::new().write(true).open(&off).err()?;
        format!("{off} cannot be written: {error}")
    };
    Some(format!("guests have no IPv6: {why}"))
}

/// Switches IPv6 of a bridge on or off.
pub(super) fn keep(bridge: &str, on: bool) -> io::Result<()> {
    if !on {
        // A kernel without it has no such file.
        let _ = switch(bridge, "disable_ipv6", "1");
        return Ok(());
    }
    for (name, value) in ON {
        switch(bridge, name, value)?;
    }
    Ok(())
}

/// The host end of a TAP says nothing of its own, as it would by itself when it is set up.
pub(super) fn silence(tap: &str) {
    // A kernel without IPv6 has no such file, and says nothing either.
    let _ = switch(tap, "disable_ipv6", "1");
}

fn switch(link: &str, name: &str, value: &str) -> io::Result<()> {
    let path = format!("{SWITCHES}/{link}/{name}");
    let told = |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
    if fs::read_to_string(&path).map_err(told)?.trim() == value {
        return Ok(());
    }
    fs::write(&path, value).map_err(told)
}

/// Lets the host pass IPv6 packets on between networks, and the bridge tell its guests that it is a
/// router: they would forget it otherwise.
fn route_packets(bridge: &str) -> Result<(), String> {
    let cannot = |why: String| format!("guests reach no other network by IPv6: {why}");
    let on = |link: &str| {
        let said = fs::read_to_string(format!("{SWITCHES}/{link}/forwarding"));
        said.is_ok_and(|said| said.trim() == "1")
    };
    if on("all") && on(bridge) {
        return Ok(());
    }
    // Whichever link is a router: the kernel forgets the routers that this host has been told of,
    // and listens to them no more, unless it was asked to do so all the same.
    let routes = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    let believes = |link: &&str| {
        let said = fs::read_to_string(format!("{SWITCHES}/{link}/accept_ra"));
        said.is_ok_and(|said| said.trim() == "1")
    };
    if let Some(link) = advertised(&routes).find(believes) {
        return Err(cannot(format!(
            "this host has its own way out from router advertisements on {link}, and would lose it \
             by passing packets on: set net.ipv6.conf.{link}.accept_ra to 2"
        )));
    }
    for link in ["all", bridge] {
        switch(link, "forwarding", "1").map_err(|error| cannot(error.to_string()))?;
    }
    Ok(())
}

/// The links by which advertised routes lead everywhere, of the kernel's list of routes.
fn advertised(routes: &str) -> impl Iterator<Item = &str> {
    routes.lines().filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [to, length, .., flags, link] = words[..] else {
            return None;
        };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let everywhere = length == "00" && to.bytes().all(|digit| digit == b'0');
        (everywhere && flags & RTF_ADDRCONF != 0).then_some(link)
    })
}

impl Inner {
    /// The bridge has its IPv6 addresses, and packets are passed on. Answers what lacks of it.
    pub(super) async fn ipv6(&self, bridge: &Link, repairs: &mut Vec<String>) -> Vec<String> {
        let Some(prefix) = self.settings.ipv6.prefix() else {
            let missing = self.settings.ipv6.missing();
            return missing.map(str::to_owned).into_iter().collect();
        };
        let mut trouble = Vec::new();
        if let Err(error) = self.addresses6(bridge, prefix, repairs).await {
            trouble.push(format!("guests have no IPv6: {error}"));
        }
        if self.settings.nat {
            trouble.extend(route_packets(&bridge.name).err());
        }
        trouble
    }

    async fn addresses6(
        &self,
        bridge: &Link,
        prefix: Prefix6,
        repairs: &mut Vec<String>,
    ) -> Result<(), String> {
        keep(&bridge.name, true).map_err(|error| error.to_string())?;
        // The first one first: advertisements come from it.
        let local = link_local(bridge_mac(&bridge.name));
        let wanted = [local, prefix.gateway()].map(|address| (IpAddr::V6(address), 64));
        self.hold(bridge, &wanted, repairs).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_out_that_a_router_advertised_is_told_from_one_that_was_set() {
        let zero = "0".repeat(32);
        let line = |to: &str, length: &str, flags: &str, link: &str| {
            format!("{to} {length} {zero} 00 fe80 00000400 00000001 00000000 {flags} {link}\n")
        };
        let routes = [
            line(&zero, "00", "00450003", "eth0"),
            line(&zero, "00", "00000003", "eth1"),
            line(&"fd".repeat(16), "40", "00440001", "eth2"),
            line(&zero, "00", "00200200", "lo"),
        ];
        let routes = routes.concat();
        let all: Vec<_> = advertised(&routes).collect();
        assert_eq!(all, ["eth0"]);
    }
}
