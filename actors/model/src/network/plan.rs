//! What the host has to look like: the guests' ports with what each may say,
//! and the forwarded ports. Made from leases and forwards alone: whether a VM
//! runs changes nothing in it, so a start waits for no rule.

use super::{
    forward::ForwardRecord, forward::Protocol, lease::LeaseRecord, lease::hash, limits::NicLimits,
    nic::nic_id,
};
use crate::ids::{NetworkName, VmId};
use core::net::Ipv4Addr;
use std::{collections::BTreeMap, fmt};

/// Letters for the end of a TAP's name.
const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// How many of them: five bits each.
const HASH_LETTERS: usize = 7;

/// The name of a TAP: at most 15 bytes, the same for a VM's card for ever.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TapName(String);

impl TapName {
    /// `v`, the card's number, the first letters of the VM's id for people, and
    /// 35 bits of the whole id.
    pub fn of(vm: &VmId, nic: u8) -> Self {
        let head = vm.as_str().chars().filter(char::is_ascii_alphanumeric);
        let head: String = head.take(5).collect();
        let mut rest = hash(vm.as_str());
        // What is left of a multiplicative hash is in its upper half.
        rest ^= rest >> 32;
        let tail: String = (0..HASH_LETTERS)
            .map(|n| {
                let at = (rest >> (5 * n)) & 31;
                char::from(LETTERS[usize::try_from(at).unwrap_or(0)])
            })
            .collect();
        Self(format!("v{}{head}-{tail}", nic % 10))
    }

    /// Whether a link's name has the form of one of ours.
    pub fn is_one(name: &str) -> bool {
        let Some((head, tail)) = name.split_once('-') else {
            return false;
        };
        let ours = head.strip_prefix('v').is_some_and(|rest| {
            rest.starts_with(|first: char| first.is_ascii_digit())
                && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
        });
        ours && tail.len() == HASH_LETTERS && tail.bytes().all(|byte| LETTERS.contains(&byte))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name under which guests resolve a VM's card, and its host name: its id in
/// letters that DNS knows; for further cards with their name behind it.
pub fn host_name(vm: &VmId, nic: u8) -> String {
    let fits = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let name: String = vm.as_str().chars().map(fits).collect();
    let name = name.trim_end_matches('-');
    if nic == 0 {
        return name.to_owned();
    }
    let last = format!("-{}", nic_id(nic));
    // Ids are ASCII, and a label of DNS has 63 bytes.
    let room = name.len().min(63 - last.len());
    format!("{}{last}", name[..room].trim_end_matches('-'))
}

/// One network card: what may come from it and what is answered to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    /// The VM.
    pub vm: VmId,
    /// Which of its cards, from 0.
    pub nic: u8,
    /// The TAP it is behind while the VM runs.
    pub tap: TapName,
    /// The only MAC address that it may use.
    pub mac: [u8; 6],
    /// The only address that it may use.
    pub address: Ipv4Addr,
    /// How fast it may be.
    pub limits: NicLimits,
    /// The network it is connected to.
    pub network: NetworkName,
}

/// A port of the host and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardPlan {
    /// What is forwarded.
    pub protocol: Protocol,
    /// The port on the host.
    pub host_port: u16,
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The port in the guest.
    pub guest_port: u16,
    /// The network that the guest's address is of.
    pub network: NetworkName,
}

/// The desired state of the networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkPlan {
    /// Every card that holds an address, by its address.
    pub ports: Vec<PortPlan>,
    /// Every forwarded port whose VM has an address.
    pub forwards: Vec<ForwardPlan>,
}

impl NetworkPlan {
    /// What `leases` and `forwards` ask for.
    pub fn of<'a>(
        leases: impl IntoIterator<Item = &'a LeaseRecord>,
        forwards: impl IntoIterator<Item = &'a ForwardRecord>,
    ) -> Self {
        let mut ports = Vec::new();
        let mut first = BTreeMap::new();
        for lease in leases {
            if lease.nic == 0 {
                first.insert(&lease.vm_id, lease);
            }
            ports.push(PortPlan {
                vm: lease.vm_id.clone(),
                nic: lease.nic,
                tap: TapName::of(&lease.vm_id, lease.nic),
                mac: lease.mac,
                address: lease.address,
                limits: lease.limits,
                network: lease.network.clone(),
            });
        }
        ports.sort_by_key(|port| port.address);
        let forwards = forwards.into_iter().filter_map(|forward| {
            let lease = first.get(&forward.vm_id)?;
            Some(ForwardPlan {
                protocol: forward.protocol,
                host_port: forward.host_port,
                address: lease.address,
                guest_port: forward.guest_port,
                network: lease.network.clone(),
            })
        });
        Self {
            ports,
            forwards: forwards.collect(),
        }
    }

    /// What of it is about one network.
    #[must_use]
    pub fn of_network(&self, network: &NetworkName) -> Self {
        let ports = self.ports.iter().filter(|port| port.network == *network);
        let forwards = self.forwards.iter();
        Self {
            ports: ports.cloned().collect(),
            forwards: forwards
                .filter(|forward| forward.network == *network)
                .cloned()
                .collect(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // also in what the tests call
mod tests {
    use super::*;
    use crate::{
        network::{Pool, allocate, lease_id},
        time::UnixMs,
    };
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_taps_name_is_short_harmless_and_the_same_every_time(
            id in "[A-Za-z0-9][A-Za-z0-9._-]{0,62}", nic in 0_u8..10,
        ) {
            let vm = VmId::parse(&id).unwrap();
            let name = TapName::of(&vm, nic);
            prop_assert!(name.as_str().len() <= 15, "{name}");
            let harmless = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            prop_assert!(name.as_str().bytes().all(harmless), "{name}");
            prop_assert!(TapName::is_one(name.as_str()), "{name}");
            prop_assert_eq!(name, TapName::of(&vm, nic));
        }

        #[test]
        fn a_host_name_is_one_that_dns_takes(
            id in "[A-Za-z0-9][A-Za-z0-9._-]{0,62}", nic in 0_u8..3,
        ) {
            let name = host_name(&VmId::parse(&id).unwrap(), nic);
            prop_assert!(!name.is_empty() && name.len() <= 63);
            prop_assert!(!name.starts_with('-') && !name.ends_with('-'), "{name}");
            prop_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
        }
    }

    #[test]
    fn ten_thousand_vms_have_ten_thousand_taps() {
        let names: BTreeSet<_> = (0..10_000)
            .map(|n| TapName::of(&VmId::parse(&format!("web-{n}")).unwrap(), 0))
            .collect();
        assert_eq!(names.len(), 10_000);
    }

    proptest! {
        #[test]
        fn each_networks_plan_holds_its_own_cards_and_forwards_and_together_they_are_the_whole(
            wanted in proptest::collection::vec((0..3_usize, 0..3_u8, any::<bool>()), 0..60),
        ) {
            let names = ["default", "lab", "dmz"].map(|name| NetworkName::parse(name).unwrap());
            let pools = [0, 1, 2].map(|third| {
                let at = |last| Ipv4Addr::new(10, 0, third, last);
                Pool::new(at(0), 28, at(1)).unwrap()
            });
            let (mut taken, mut leases, mut forwards) = (BTreeSet::new(), Vec::new(), Vec::new());
            for (number, (network, nic, forwarded)) in wanted.into_iter().enumerate() {
                let vm = VmId::parse(&format!("vm{number}")).unwrap();
                let full = leases.iter().filter(|held: &&LeaseRecord| held.network == names[network]).count() == 13;
                // One network's being full takes nothing from another.
                let address = allocate(&pools[network], (&vm, nic), &taken);
                prop_assert_eq!(address.is_none(), full);
                let Some(address) = address else { continue };
                prop_assert!(taken.insert(address), "{} was given twice", address);
                leases.push(LeaseRecord {
                    id: lease_id(address),
                    vm_id: vm.clone(),
                    nic,
                    address,
                    mac: [2; 6],
                    fixed: false,
                    limits: NicLimits::default(),
                    created_at: UnixMs(1),
                    network: names[network].clone(),
                });
                let host_port = 1000 + u16::try_from(number).unwrap();
                forwards.extend(forwarded.then(|| ForwardRecord {
                    id: ForwardRecord::id_of(Protocol::Tcp, host_port),
                    vm_id: vm,
                    protocol: Protocol::Tcp,
                    host_port,
                    guest_port: 80,
                    created_at: UnixMs(1),
                }));
            }
            let whole = NetworkPlan::of(&leases, &forwards);
            let (mut ports, mut led) = (0, 0);
            for (name, pool) in names.iter().zip(&pools) {
                let plan = whole.of_network(name);
                prop_assert!(plan.ports.iter().all(|port| pool.holds(port.address)));
                prop_assert!(plan.forwards.iter().all(|forward| pool.holds(forward.address)));
                ports += plan.ports.len();
                led += plan.forwards.len();
            }
            prop_assert_eq!((ports, led), (whole.ports.len(), whole.forwards.len()));
            prop_assert_eq!(ports, leases.len());
        }
    }
}
