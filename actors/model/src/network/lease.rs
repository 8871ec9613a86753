//! Addresses: which a VM is given, and the record that it holds it.
//!
//! The choice is a pure function of the pool, the VM's id and what is taken: a
//! VM that is made again under its name gets its old address where that is
//! free, and two that are made at once rarely want the same one.

use super::limits::NicLimits;
use crate::{
    ids::{LeaseId, NetworkName, VmId},
    time::UnixMs,
};
use core::net::Ipv4Addr;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// An address that a VM holds, from its creation to its deletion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// The address as text: no two leases are of one address.
    pub id: LeaseId,
    /// Who holds it.
    pub vm_id: VmId,
    /// For which of its network cards, from 0.
    pub nic: u8,
    /// The address.
    pub address: Ipv4Addr,
    /// The card's MAC address.
    pub mac: [u8; 6],
    /// Whether it was asked for by name.
    pub fixed: bool,
    /// How fast the card may be.
    pub limits: NicLimits,
    /// Since when.
    pub created_at: UnixMs,
    /// The network it is of.
    pub network: NetworkName,
}

/// The id of the lease of an address.
pub fn lease_id(address: Ipv4Addr) -> LeaseId {
    LeaseId::parse(&address.to_string()).expect("digits and dots are an id")
}

/// Why a pool cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolError {
    /// The prefix leaves no room for a gateway and a guest, or is no prefix.
    BadPrefix,
    /// Bits beyond the prefix are set.
    HostBits,
    /// The gateway is not a host's address of the network.
    BadGateway,
}

/// The addresses of an IPv4 network that guests can have: all but the
/// network's own, the broadcast address and the gateway's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    network: u32,
    prefix: u8,
    gateway: u32,
}

impl Pool {
    /// A pool of at least one address. `prefix` is 1 to 30.
    pub fn new(network: Ipv4Addr, prefix: u8, gateway: Ipv4Addr) -> Result<Self, PoolError> {
        if !(1..=30).contains(&prefix) {
            return Err(PoolError::BadPrefix);
        }
        let pool = Self {
            network: network.to_bits(),
            prefix,
            gateway: gateway.to_bits(),
        };
        if pool.network & pool.host_mask() != 0 {
            return Err(PoolError::HostBits);
        }
        if !pool.is_host(gateway) {
            return Err(PoolError::BadGateway);
        }
        Ok(pool)
    }

    fn host_mask(&self) -> u32 {
        u32::MAX >> self.prefix
    }

    /// The network's own address.
    pub fn network(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network)
    }

    /// The length of the prefix in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The netmask.
    pub fn netmask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(!self.host_mask())
    }

    /// The broadcast address.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network | self.host_mask())
    }

    /// The host's address on the bridge.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.gateway)
    }

    /// How many guests can have an address.
    pub fn size(&self) -> u32 {
        // Without the network's own, the broadcast address and the gateway.
        self.host_mask() - 2
    }

    fn is_host(&self, address: Ipv4Addr) -> bool {
        let bits = address.to_bits();
        bits & !self.host_mask() == self.network
            && bits != self.network
            && address != self.broadcast()
    }

    /// Whether a guest can have `address`.
    pub fn holds(&self, address: Ipv4Addr) -> bool {
        self.is_host(address) && address.to_bits() != self.gateway
    }

    /// The `n`th address that a guest can have.
    fn nth(&self, n: u32) -> Ipv4Addr {
        let bits = self.network + 1 + n;
        Ipv4Addr::from_bits(if bits >= self.gateway { bits + 1 } else { bits })
    }
}

/// A free address for a VM's card, or none if all are taken. The same input
/// gives the same address.
pub fn allocate(
    pool: &Pool,
    (vm, nic): (&VmId, u8),
    taken: &BTreeSet<Ipv4Addr>,
) -> Option<Ipv4Addr> {
    let size = pool.size();
    // The first card's follows from the VM's id alone.
    let wish = match nic {
        0 => hash(vm.as_str()),
        _ => hash(&format!("{vm}/{nic}")),
    };
    let first = u32::try_from(wish % u64::from(size)).ok()?;
    // As many looks as there are addresses taken, and one, find a free one if there is one.
    let looks = u32::try_from(taken.len()).map_or(size, |n| size.min(n.saturating_add(1)));
    (0..looks)
        .map(|n| pool.nth((first + n) % size))
        .find(|address| !taken.contains(address))
}

/// The MAC address of a VM's network card: locally administered, unicast, and
/// the same whenever a VM of this id is made. `attempt` above 0 gives others,
/// for the case that one is taken.
pub fn mac_address(vm: &VmId, nic: u8, attempt: u32) -> [u8; 6] {
    let [a, b, c, d, ..] = hash(&format!("{vm}/{nic}/{attempt}")).to_be_bytes();
    [0x52, 0x56, a, b, c, d]
}

/// The leases whose addresses the pool does not have.
pub fn misplaced<'a>(
    pool: &Pool,
    leases: impl IntoIterator<Item = &'a LeaseRecord>,
) -> Vec<&'a LeaseRecord> {
    let leases = leases.into_iter();
    leases.filter(|lease| !pool.holds(lease.address)).collect()
}

/// FNV-1a: the same in every build, as what is made of it is kept.
pub(super) fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // also in what the tests call
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pools() -> impl Strategy<Value = Pool> {
        (20_u8..=30, any::<u32>(), any::<u32>()).prop_map(|(prefix, network, gateway)| {
            let mask = u32::MAX >> prefix;
            let network = network & !mask;
            let gateway = network + 1 + gateway % (mask - 1);
            Pool::new(
                Ipv4Addr::from_bits(network),
                prefix,
                Ipv4Addr::from_bits(gateway),
            )
            .unwrap()
        })
    }

    fn vm(n: u32) -> VmId {
        VmId::parse(&format!("vm-{n}")).unwrap()
    }

    fn lease(address: Ipv4Addr) -> LeaseRecord {
        LeaseRecord {
            id: lease_id(address),
            vm_id: vm(1),
            nic: 0,
            address,
            mac: [0x52; 6],
            fixed: false,
            limits: NicLimits::default(),
            created_at: UnixMs(1),
            network: NetworkName::default(),
        }
    }

    proptest! {
        #[test]
        fn every_address_is_given_once_and_never_one_of_the_hosts_own(
            prefix in 25_u8..=30, network in any::<u32>(), gateway in any::<u32>(),
        ) {
            let mask = u32::MAX >> prefix;
            let gateway = Ipv4Addr::from_bits((network & !mask) + 1 + gateway % (mask - 1));
            let pool = Pool::new(Ipv4Addr::from_bits(network & !mask), prefix, gateway).unwrap();
            let mut taken = BTreeSet::new();
            for n in 0..pool.size() {
                let address = allocate(&pool, (&vm(n), 0), &taken).unwrap();
                prop_assert!(pool.holds(address));
                prop_assert!(address != pool.gateway());
                prop_assert!(address != pool.network() && address != pool.broadcast());
                prop_assert!(taken.insert(address), "{address} was given twice");
            }
            prop_assert_eq!(allocate(&pool, (&vm(u32::MAX), 0), &taken), None);
        }

        #[test]
        fn what_is_given_back_can_be_given_again(pool in pools(), seed in any::<u32>()) {
            let mut all: BTreeSet<_> = (0..pool.size()).map(|n| pool.nth(n)).collect();
            let back = pool.nth(seed % pool.size());
            all.remove(&back);
            prop_assert_eq!(allocate(&pool, (&vm(seed), 1), &all), Some(back));
        }

        #[test]
        fn a_lease_is_misplaced_exactly_outside_the_pool(pool in pools(), bits in any::<u32>()) {
            let address = Ipv4Addr::from_bits(bits);
            let leases = [lease(address)];
            prop_assert_eq!(misplaced(&pool, &leases).is_empty(), pool.holds(address));
        }

        #[test]
        fn a_vm_gets_the_address_again_that_it_had(pool in pools(), seed in any::<u32>()) {
            let none = BTreeSet::new();
            prop_assert_eq!(allocate(&pool, (&vm(seed), 1), &none), allocate(&pool, (&vm(seed), 1), &none));
        }
    }

    #[test]
    fn a_pool_without_room_or_with_a_foreign_gateway_is_none() {
        let net = Ipv4Addr::new(10, 0, 0, 0);
        let first = Ipv4Addr::new(10, 0, 0, 1);
        assert_eq!(Pool::new(net, 31, first), Err(PoolError::BadPrefix));
        assert_eq!(Pool::new(first, 24, first), Err(PoolError::HostBits));
        assert_eq!(Pool::new(net, 24, net), Err(PoolError::BadGateway));
        let broadcast = Ipv4Addr::new(10, 0, 0, 255);
        assert_eq!(Pool::new(net, 24, broadcast), Err(PoolError::BadGateway));
        assert_eq!(Pool::new(net, 30, first).unwrap().size(), 1);
    }

    #[test]
    fn a_pool_tells_its_network_as_people_write_it() {
        let address = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        let pool = Pool::new(address("192.168.100.0"), 24, address("192.168.100.1")).unwrap();
        assert_eq!(
            (pool.network(), pool.prefix()),
            (address("192.168.100.0"), 24)
        );
        assert_eq!(pool.netmask(), address("255.255.255.0"));
        assert_eq!(pool.broadcast(), address("192.168.100.255"));
        // All but the network's own, the broadcast's and the gateway's.
        assert_eq!(pool.size(), 253);
    }

    #[test]
    fn a_pool_holds_its_hosts_but_neither_its_gateway_nor_other_networks() {
        let address = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        let pool = Pool::new(address("10.0.0.0"), 29, address("10.0.0.1")).unwrap();
        for (text, held) in [
            ("10.0.0.0", false),
            ("10.0.0.1", false),
            ("10.0.0.2", true),
            ("10.0.0.6", true),
            ("10.0.0.7", false),
            ("10.0.0.8", false),
            ("10.0.1.2", false),
        ] {
            assert_eq!(pool.holds(address(text)), held, "{text}");
        }
    }

    #[test]
    fn a_mac_is_local_unicast_the_same_again_and_anothers_is_another() {
        let vm = |name: &str| VmId::parse(name).unwrap();
        let mac = mac_address(&vm("web"), 0, 0);
        assert_eq!(mac[0] & 0b11, 0b10, "locally administered, one receiver");
        assert_eq!(mac, mac_address(&vm("web"), 0, 0));
        let others = [(vm("db"), 0, 0), (vm("web"), 1, 0), (vm("web"), 0, 1)];
        for (vm, nic, attempt) in others {
            assert_ne!(mac, mac_address(&vm, nic, attempt), "{vm}/{nic}/{attempt}");
        }
    }
}
