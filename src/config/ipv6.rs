//! Whether a network has IPv6, and the prefix that was asked for.

use super::read::{Reader, quoted};
use std::net::Ipv6Addr;
use vman_model::network::{Prefix6, Prefix6Error};

/// IPv6 does not work on a link of a smaller MTU (RFC 8200, 5).
const LEAST_MTU: u16 = 1280;

/// What is configured of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6Choice {
    /// None.
    Off,
    /// With a prefix that follows from the installation and the network's name.
    Derived,
    /// With this prefix.
    Said(Prefix6),
}

/// The keys of one network: whether, which prefix, and the MTU that is held against it.
pub(super) struct Keys {
    pub(super) ipv6: String,
    pub(super) subnet6: String,
    pub(super) mtu: String,
}

impl From<[String; 3]> for Keys {
    fn from([ipv6, subnet6, mtu]: [String; 3]) -> Self {
        Self { ipv6, subnet6, mtu }
    }
}

pub(super) fn read(reader: &mut Reader, keys: &Keys, mtu: u16) -> Ipv6Choice {
    let on = reader.word(&keys.ipv6, false, &super::networks::FLAGS);
    let show = |said: &Option<Prefix6>| said.map_or_else(String::new, |said| said.to_string());
    let said = reader.value(&keys.subnet6, |_| None, parse, show);
    if !on {
        if said.is_some() {
            let what = format!("is for a network with IPv6: say {} as well", keys.ipv6);
            reader.fault(&keys.subnet6, what);
        }
        return Ipv6Choice::Off;
    }
    if mtu < LEAST_MTU {
        let what = format!("needs {} to be {LEAST_MTU} at least; it is {mtu}", keys.mtu);
        reader.fault(&keys.ipv6, what);
    }
    said.map_or(Ipv6Choice::Derived, Ipv6Choice::Said)
}

fn parse(text: &str) -> Result<Option<Prefix6>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = || {
        let given = quoted(text);
        format!(
            "must be a unique local IPv6 network of 64 bits in fd00::/8 such as fd12:3456:789a::/64; it is {given}"
        )
    };
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let address: Ipv6Addr = address.parse().map_err(|_| wrong())?;
    if length != "64" {
        return Err(wrong());
    }
    match Prefix6::new(address) {
        Ok(prefix) => Ok(Some(prefix)),
        Err(Prefix6Error::NotLocal) => Err(wrong()),
        Err(Prefix6Error::HostBits) => {
            let prefix = Prefix6::around(address);
            Err(format!("has host bits set; did you mean {prefix}?"))
        }
    }
}
