//! IPv6 beside IPv4: the prefix of a network, and the address that follows from a lease.
//!
//! Nothing of it is durable. A card's IPv6 address is its network's prefix with its IPv4 address
//! in the last bits, so it is given, kept and given back with the lease, and no two cards of a
//! network have the same.
//! Must not: know whether a host has IPv6 (`src/host/net/ipv6.rs` does).

use super::lease::hash;
use crate::ids::NetworkName;
use core::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

/// Set in every guest's interface identifier: none is the gateway's, 1, or the anycast address of
/// the subnet's routers, 0 (RFC 4291, 2.6.1), whatever the IPv4 network is.
const GUEST: u64 = 1 << 32;
const GATEWAY: u64 = 1;

/// A prefix of 64 bits out of the locally assigned unique local addresses, `fd00::/8` (RFC 4193).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix6(u64);

/// Why an address is no network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix6Error {
    /// It is not in `fd00::/8`.
    NotLocal,
    /// Bits beyond the first 64 are set.
    HostBits,
}

impl Prefix6 {
    /// The prefix whose own address this is.
    pub fn new(network: Ipv6Addr) -> Result<Self, Prefix6Error> {
        if network.octets()[0] != 0xfd {
            return Err(Prefix6Error::NotLocal);
        }
        let prefix = Self::around(network);
        if prefix.network() != network {
            return Err(Prefix6Error::HostBits);
        }
        Ok(prefix)
    }

    /// The first 64 bits of an address, whatever it is.
    pub fn around(address: Ipv6Addr) -> Self {
        let upper = address.to_bits() >> 64;
        Self(u64::try_from(upper).expect("half of 128 bits is 64"))
    }

    /// The prefix of a network of an installation: 40 bits that follow from both, as random as
    /// `installation` is (RFC 4193, 3.2), and the subnet 0 of them.
    pub fn of(installation: [u8; 16], network: &NetworkName) -> Self {
        let id = u128::from_be_bytes(installation);
        let mixed = hash(&format!("{id:032x}/{network}"));
        // What is left of a multiplicative hash is in its upper half.
        let global = (mixed ^ (mixed >> 32)) & 0xff_ffff_ffff;
        Self((0xfd << 56) | (global << 16))
    }

    /// Its own address, all bits beyond it zero.
    pub fn network(self) -> Ipv6Addr {
        self.with(0)
    }

    /// The host's address on the bridge.
    pub fn gateway(self) -> Ipv6Addr {
        self.with(GATEWAY)
    }

    /// The address of the card that holds this IPv4 address.
    pub fn guest(self, lease: Ipv4Addr) -> Ipv6Addr {
        self.with(GUEST | u64::from(lease.to_bits()))
    }

    fn with(self, interface: u64) -> Ipv6Addr {
        Ipv6Addr::from_bits((u128::from(self.0) << 64) | u128::from(interface))
    }
}

impl fmt::Display for Prefix6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/64", self.network())
    }
}

/// The link-local address that follows from a MAC address (RFC 4291, appendix A).
pub fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&[0xfe, 0x80]);
    octets[8..11].copy_from_slice(&mac[..3]);
    // The universal bit is turned round.
    octets[8] ^= 2;
    octets[11..13].copy_from_slice(&[0xff, 0xfe]);
    octets[13..].copy_from_slice(&mac[3..]);
    Ipv6Addr::from(octets)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // also in what the tests call
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn network(name: &str) -> NetworkName {
        NetworkName::parse(name).unwrap()
    }

    proptest! {
        #[test]
        fn two_leases_have_two_addresses_of_the_prefix_and_neither_is_the_hosts(
            id in any::<[u8; 16]>(), one in any::<u32>(), other in any::<u32>(),
        ) {
            let prefix = Prefix6::of(id, &NetworkName::default());
            let [one_at, other_at] = [one, other].map(|bits| prefix.guest(Ipv4Addr::from_bits(bits)));
            prop_assert_eq!(one == other, one_at == other_at);
            for address in [one_at, prefix.gateway()] {
                prop_assert_eq!(Prefix6::around(address), prefix);
            }
            prop_assert!(one_at != prefix.gateway() && one_at != prefix.network());
        }

        #[test]
        fn what_follows_from_an_installation_is_a_prefix_as_people_may_say_it(id in any::<[u8; 16]>()) {
            let prefix = Prefix6::of(id, &network("lab"));
            prop_assert_eq!(Prefix6::new(prefix.network()), Ok(prefix));
            prop_assert_eq!(prefix, Prefix6::of(id, &network("lab")));
            prop_assert_ne!(prefix, Prefix6::of(id, &network("dmz")));
        }

        #[test]
        fn two_macs_have_two_link_local_addresses(one in any::<[u8; 6]>(), other in any::<[u8; 6]>()) {
            prop_assert_eq!(one == other, link_local(one) == link_local(other));
            prop_assert!(link_local(one).is_unicast_link_local());
        }
    }

    #[test]
    fn installations_have_prefixes_of_their_own() {
        let name = NetworkName::default();
        let of = |n: u128| Prefix6::of(n.to_be_bytes(), &name);
        let all: BTreeSet<_> = (0..10_000).map(of).collect();
        assert_eq!(all.len(), 10_000);
    }

    #[test]
    fn the_prefix_that_was_given_once_is_given_for_ever() {
        // Guests keep addresses of it: it may never be another.
        let prefix = Prefix6::of(*b"an installation!", &NetworkName::default());
        assert_eq!(prefix.to_string(), "fd61:41c9:ddbb::/64");
    }

    #[test]
    fn addresses_are_as_people_write_them() {
        let prefix = Prefix6::new("fd12:3456:789a::".parse().unwrap()).unwrap();
        assert_eq!(prefix.to_string(), "fd12:3456:789a::/64");
        assert_eq!(prefix.gateway().to_string(), "fd12:3456:789a::1");
        let guest = prefix.guest(Ipv4Addr::new(192, 168, 100, 5));
        assert_eq!(guest.to_string(), "fd12:3456:789a::1:c0a8:6405");
        let local = link_local([0x52, 0x56, 0, 0x12, 0x34, 0x56]);
        assert_eq!(local.to_string(), "fe80::5056:ff:fe12:3456");
    }

    #[test]
    fn what_is_no_local_prefix_of_64_bits_is_refused() {
        for (text, wrong) in [
            ("2001:db8::", Prefix6Error::NotLocal),
            ("fc00::", Prefix6Error::NotLocal),
            ("fe80::", Prefix6Error::NotLocal),
            ("::", Prefix6Error::NotLocal),
            ("fd00::1", Prefix6Error::HostBits),
            ("fd00:0:0:0:1::", Prefix6Error::HostBits),
        ] {
            assert_eq!(Prefix6::new(text.parse().unwrap()), Err(wrong), "{text}");
        }
    }
}
