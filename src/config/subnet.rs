//! An IPv4 network in the notation `192.168.100.0/24`.

use super::read::quoted;
use std::{fmt, net::Ipv4Addr};

/// An IPv4 network of /8 to /30, without host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    network: u32,
    prefix: u8,
}

impl Default for Subnet {
    fn default() -> Self {
        Self {
            network: Ipv4Addr::new(192, 168, 100, 0).to_bits(),
            prefix: 24,
        }
    }
}

impl Subnet {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            let given = quoted(text);
            format!("must be an IPv4 network such as 192.168.100.0/24, /8 to /30; it is {given}")
        };
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        if !(8..=30).contains(&prefix) || address.is_loopback() || address.octets()[0] >= 224 {
            return Err(wrong());
        }
        let network = address.to_bits() & mask(prefix);
        let subnet = Self { network, prefix };
        if network != address.to_bits() {
            return Err(format!("has host bits set; did you mean {subnet}?"));
        }
        Ok(subnet)
    }

    /// The network's own address.
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network)
    }

    /// The length of the prefix, 8 to 30.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The broadcast address.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network | !mask(self.prefix))
    }

    /// The first address that a host can have.
    pub fn first_host(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network + 1)
    }

    /// Whether they have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        let shorter = mask(self.prefix.min(other.prefix));
        (self.network ^ other.network) & shorter == 0
    }

    /// Whether a host of this network can have `address`.
    pub fn holds_host(self, address: Ipv4Addr) -> bool {
        address > self.network() && address < self.broadcast()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX << (32 - u32::from(prefix))
}
