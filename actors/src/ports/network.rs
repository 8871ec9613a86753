//! The network as the tree sees it. The NetworkActor owns it: it says what the
//! host has to look like, and the adapter makes it so and tells when something
//! was changed behind its back.

use super::BoxFuture;
use core::net::{Ipv4Addr, Ipv6Addr};
use futures_util::stream::BoxStream;
use std::{collections::BTreeMap, sync::Arc};
use vman_model::{
    Incarnation, LeaseRecord, NetworkName, NetworkPlan, Pool, TapName, VmId,
    network::{NicLimits, Prefix6},
    vm::{NetworkKind, NicClaim},
};

/// Why a card that is on no bridge is not limited.
pub const NO_LIMITS: &str = "only cards on a bridge are limited: QEMU's user-mode network cannot";

/// Why the network could not be had or given back, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NetworkError(pub String);

/// Whether a network has IPv6 beside IPv4.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ipv6 {
    /// It was not asked for.
    #[default]
    Off,
    /// It has, with this prefix.
    On(Prefix6),
    /// It was asked for and cannot be had: why, in a sentence.
    Missing(String),
}

impl Ipv6 {
    /// The prefix, where it has one.
    pub fn prefix(&self) -> Option<Prefix6> {
        match self {
            Ipv6::On(prefix) => Some(*prefix),
            Ipv6::Off | Ipv6::Missing(_) => None,
        }
    }

    /// Why it has none although it was asked for.
    pub fn missing(&self) -> Option<&str> {
        match self {
            Ipv6::Missing(why) => Some(why),
            Ipv6::Off | Ipv6::On(_) => None,
        }
    }
}

/// A network with its bridge, as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeFacts {
    /// The network's name.
    pub network: NetworkName,
    /// The bridge's name.
    pub name: String,
    /// The addresses its guests get, and its own.
    pub pool: Pool,
    /// IPv6 beside them.
    pub ipv6: Ipv6,
    /// The name servers that are asked.
    pub dns: Vec<Ipv4Addr>,
    /// Whether guests are kept from each other.
    pub isolated: bool,
    /// Whether guests reach other networks, behind the host's address.
    pub nat: bool,
    /// The largest packet, in bytes.
    pub mtu: u16,
    /// The VLAN that was configured.
    pub vlan_id: Option<u16>,
    /// Why its tag is not used, in a sentence.
    pub vlan_missing: Option<String>,
    /// The interface that carries the VLAN to other hosts.
    pub uplink: Option<String>,
}

/// How VMs are connected. It is found out at start and stays so for the life
/// of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkFacts {
    /// How.
    pub kind: NetworkKind,
    /// Why it is not a bridge although one was welcome, in a sentence.
    pub reason: Option<String>,
    /// The networks, where VMs are connected to bridges: that of VMs that ask
    /// for no other is the first.
    pub bridges: Vec<BridgeFacts>,
    /// Why the kernel does not carry guests' packets itself, in a sentence.
    pub vhost_missing: Option<String>,
    /// Which limits of cards cannot be held.
    pub unlimited: Unlimited,
}

/// Why cards cannot be limited, a sentence for each direction in which they
/// cannot; as a guest sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unlimited {
    /// What guests receive.
    pub inbound: Option<String>,
    /// What guests send.
    pub outbound: Option<String>,
}

impl Unlimited {
    /// In neither direction.
    pub fn wholly(why: &str) -> Self {
        Self {
            inbound: Some(why.to_owned()),
            outbound: Some(why.to_owned()),
        }
    }

    /// Why these limits are not held, where they are not.
    pub fn of(&self, limits: &NicLimits) -> Option<String> {
        let inbound = limits.inbound.and(self.inbound.as_deref());
        let outbound = limits.outbound.and(self.outbound.as_deref());
        match (inbound, outbound) {
            (Some(inbound), Some(outbound)) if inbound != outbound => {
                Some(format!("{inbound}; {outbound}"))
            }
            (inbound, outbound) => inbound.or(outbound).map(str::to_owned),
        }
    }
}

impl NetworkFacts {
    /// QEMU's user-mode network, or none.
    pub fn without_bridge(kind: NetworkKind, reason: Option<String>) -> Self {
        Self {
            kind,
            reason,
            bridges: Vec::new(),
            vhost_missing: None,
            unlimited: Unlimited::wholly(NO_LIMITS),
        }
    }

    /// The network of this name, where it has a bridge.
    pub fn bridge(&self, network: &NetworkName) -> Option<&BridgeFacts> {
        self.bridges
            .iter()
            .find(|bridge| bridge.network == *network)
    }

    /// The IPv6 address that follows from a lease, where its network has IPv6.
    pub fn address6(&self, lease: &LeaseRecord) -> Option<Ipv6Addr> {
        let prefix = self.bridge(&lease.network)?.ipv6.prefix()?;
        Some(prefix.guest(lease.address))
    }

    /// The names of the networks that VMs can ask for, in a sentence's words.
    pub fn names(&self) -> String {
        if self.bridges.is_empty() {
            return NetworkName::default().to_string();
        }
        let names = self.bridges.iter().map(|bridge| bridge.network.as_str());
        names.collect::<Vec<_>>().join(", ")
    }

    /// Whether VMs can ask for this network.
    pub fn has(&self, network: &NetworkName) -> bool {
        if self.bridges.is_empty() {
            return *network == NetworkName::default();
        }
        self.bridge(network).is_some()
    }
}

/// The network cards for one life of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicRequest {
    /// The VM.
    pub vm: VmId,
    /// Its life.
    pub incarnation: Incarnation,
    /// Its cards, the first one first.
    pub nics: Vec<NicWish>,
    /// The VM's virtual CPUs: each may have a queue of each card.
    pub cpu_count: u32,
}

/// One network card of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicWish {
    /// Its number, from 0.
    pub nic: u8,
    /// The network it is connected to.
    pub network: NetworkName,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// The address it holds, where it holds one.
    pub address: Option<Ipv4Addr>,
    /// How fast it may be.
    pub limits: NicLimits,
}

impl NicWish {
    /// How it is claimed once it is known how it is connected.
    pub fn claimed(&self, kind: NetworkKind, address: Option<String>) -> NicClaim {
        NicClaim {
            nic: self.nic,
            kind,
            mac: self.mac,
            address,
        }
    }
}

/// What was found when the host was made to look as it shall.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// What somebody else had changed and what was done, a sentence each.
    pub repairs: Vec<String>,
    /// TAPs of running VMs that are gone: only QEMU can be given others.
    pub lost: Vec<TapName>,
    /// Networks that could not be made to look so, each with the reason.
    pub failed: BTreeMap<NetworkName, NetworkError>,
}

/// What is on the host of a network: one dump of its links, nothing changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkSurvey {
    /// The bridges of the configured networks that are there.
    pub bridges: Vec<SeenBridge>,
    /// Every TAP with a name of ours, whether or not a VM should have it.
    pub taps: Vec<SeenTap>,
    /// Links on those bridges that are no TAPs of ours.
    pub foreign: Vec<ForeignLink>,
}

/// A link on a bridge of ours that is no TAP of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignLink {
    /// Its name.
    pub name: String,
    /// The bridge it is on.
    pub bridge: String,
}

/// A bridge of the configured name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenBridge {
    /// Its name.
    pub name: String,
    /// Whether it carries our mark; another's is never touched.
    pub ours: bool,
    /// Whether it is up.
    pub up: bool,
}

/// A TAP with a name of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenTap {
    /// Its name: `TapName::of` tells which VM's it would be.
    pub name: String,
    /// Whether it is attached to one of those bridges and up.
    pub attached: bool,
}

/// What went through a VM's network card in the present life, from the guest's side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes the guest received.
    pub received_bytes: u64,
    /// Packets the guest received.
    pub received_packets: u64,
    /// Bytes the guest sent.
    pub sent_bytes: u64,
    /// Packets the guest sent.
    pub sent_packets: u64,
}

/// Connects VMs to networks.
pub trait Network: Send + Sync + 'static {
    /// How VMs are connected. Never waits.
    fn facts(&self) -> NetworkFacts;

    /// Makes the host look as `plan` says. `running` are the TAPs that have to
    /// be there. Idempotent, and cheap where nothing is to be done. One network
    /// that fails keeps no other from looking so; an error concerns them all.
    fn settle(
        &self,
        plan: Arc<NetworkPlan>,
        running: Vec<TapName>,
    ) -> BoxFuture<'static, Result<Settled, NetworkError>>;

    /// Tells whenever something on the host may have been changed. Never ends
    /// by itself.
    fn disturbances(&self) -> BoxStream<'static, ()>;

    /// Network cards for one life of a VM. Idempotent by VM and incarnation.
    fn claim(&self, request: NicRequest)
    -> BoxFuture<'static, Result<Vec<NicClaim>, NetworkError>>;

    /// Gives back whatever the VM holds. Idempotent.
    fn release(&self, vm: VmId) -> BoxFuture<'static, Result<(), NetworkError>>;

    /// What went through a VM's card; none where it is not counted or does not run.
    fn traffic(&self, vm: VmId, nic: u8) -> BoxFuture<'static, Option<Traffic>>;

    /// What is on the host, ours or not: cheap, and nothing is changed.
    fn survey(&self) -> BoxFuture<'static, Result<NetworkSurvey, NetworkError>>;

    /// Whether a guest answers at this address with this MAC address. Asks the
    /// guest's kernel and no program in it; `false` where it cannot be asked.
    fn answers(&self, address: Ipv4Addr, mac: [u8; 6]) -> BoxFuture<'static, bool>;

    /// `ok`, or the sentence what is degraded, for health.
    fn health(&self) -> BoxFuture<'static, Result<String, String>>;
}
