//! The network in the API.

use super::{Mac, Shown, Time};
use serde::Serialize;
use utoipa::ToSchema;
use vman_actors::{
    ports::NetworkFacts,
    store::{Inventory, Versioned},
};
use vman_model::{ForwardRecord, LeaseRecord, NetworkName, TapName, network::nic::nic_id};

/// The network `default` as it is configured, and all networks.
#[derive(Serialize, ToSchema)]
#[schema(as = NetworkConfig)]
pub(crate) struct NetworkConfigBody {
    #[serde(flatten)]
    default: NetworkBody,
    /// Every network that VMs can be connected to, the default one first; absent where there is no
    /// bridge.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    networks: Vec<NetworkBody>,
}

impl NetworkConfigBody {
    pub(crate) fn of(facts: &NetworkFacts, inventory: &Inventory) -> Self {
        let default = NetworkBody::of(facts, &NetworkName::default(), inventory);
        let names = facts.bridges.iter().map(|bridge| &bridge.network);
        let of = |name| NetworkBody::of(facts, name, inventory);
        Self {
            default,
            networks: names.map(of).collect(),
        }
    }
}

/// A network as it is configured.
#[derive(Serialize, ToSchema)]
#[schema(as = Network)]
pub(crate) struct NetworkBody {
    /// `configured`, or `not_configured`: VMs have QEMU's user-mode network or none, and no address
    /// of ours.
    status: &'static str,
    /// The network's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// `bridge`, `user` or `none`.
    mode: &'static str,
    /// Why it is not a bridge although one was welcome.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The VLAN that is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    vlan_id: Option<u16>,
    /// Whether the bridge keeps to it, and frames carry its tag on the uplink.
    #[serde(skip_serializing_if = "Option::is_none")]
    vlan_tagged: Option<bool>,
    /// Why they do not.
    #[serde(skip_serializing_if = "Option::is_none")]
    vlan_reason: Option<String>,
    /// The interface that carries the VLAN to other hosts.
    #[serde(skip_serializing_if = "Option::is_none")]
    uplink: Option<String>,
    /// Whether the kernel carries guests' packets itself, past QEMU, for cards that are made now.
    #[serde(skip_serializing_if = "Option::is_none")]
    vhost: Option<bool>,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    vhost_reason: Option<String>,
    /// The bridge.
    #[serde(skip_serializing_if = "Option::is_none")]
    bridge_name: Option<String>,
    /// The network that VMs get their addresses from.
    #[serde(skip_serializing_if = "Option::is_none")]
    subnet: Option<String>,
    /// The host's address on the bridge.
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<String>,
    /// Whether guests have IPv6 beside IPv4.
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<bool>,
    /// Why they have not although it is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6_reason: Option<String>,
    /// The IPv6 network that VMs get their addresses from.
    #[serde(skip_serializing_if = "Option::is_none")]
    subnet6: Option<String>,
    /// The host's IPv6 address on the bridge.
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway6: Option<String>,
    /// The name servers that are asked for the guests.
    #[serde(skip_serializing_if = "Option::is_none")]
    dns: Option<Vec<String>>,
    /// Whether guests are kept from each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    isolated: Option<bool>,
    /// Whether guests reach other networks, behind the host's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    nat: Option<bool>,
    /// The largest packet, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u16>,
    /// How many addresses VMs hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    allocated_ips: Option<usize>,
    /// How many are left.
    #[serde(skip_serializing_if = "Option::is_none")]
    available_ips: Option<usize>,
}

impl NetworkBody {
    fn of(facts: &NetworkFacts, network: &NetworkName, inventory: &Inventory) -> Self {
        let bridge = facts.bridge(network);
        let leases = inventory.leases.values();
        let held = leases
            .filter(|lease| lease.value.network == *network)
            .count();
        let tagged = bridge
            .filter(|bridge| bridge.vlan_id.is_some())
            .map(|bridge| bridge.vlan_missing.is_none());
        let prefix6 = bridge.and_then(|bridge| bridge.ipv6.prefix());
        let size = |size: u32| usize::try_from(size).unwrap_or(usize::MAX);
        Self {
            name: bridge.map(|_| network.to_string()),
            status: bridge.map_or("not_configured", |_| "configured"),
            mode: facts.kind.as_str(),
            reason: facts.reason.clone(),
            vlan_id: bridge.and_then(|bridge| bridge.vlan_id),
            vlan_tagged: tagged,
            vlan_reason: bridge.and_then(|bridge| bridge.vlan_missing.clone()),
            uplink: bridge.and_then(|bridge| bridge.uplink.clone()),
            vhost: bridge.map(|_| facts.vhost_missing.is_none()),
            vhost_reason: facts.vhost_missing.clone(),
            bridge_name: bridge.map(|bridge| bridge.name.clone()),
            subnet: bridge.map(|bridge| {
                let pool = bridge.pool;
                format!("{}/{}", pool.network(), pool.prefix())
            }),
            gateway: bridge.map(|bridge| bridge.pool.gateway().to_string()),
            ipv6: bridge.map(|_| prefix6.is_some()),
            ipv6_reason: bridge.and_then(|bridge| bridge.ipv6.missing().map(str::to_owned)),
            subnet6: prefix6.map(|prefix| prefix.to_string()),
            gateway6: prefix6.map(|prefix| prefix.gateway().to_string()),
            dns: bridge.map(|bridge| bridge.dns.iter().map(ToString::to_string).collect()),
            isolated: bridge.map(|bridge| bridge.isolated),
            nat: bridge.map(|bridge| bridge.nat),
            mtu: bridge.map(|bridge| bridge.mtu),
            allocated_ips: bridge.map(|_| held),
            available_ips: bridge.map(|bridge| size(bridge.pool.size()).saturating_sub(held)),
        }
    }
}

/// An address that a VM holds.
#[derive(Serialize, ToSchema)]
#[schema(as = Lease)]
pub(crate) struct LeaseBody<'a> {
    /// The VM.
    vm_id: &'a str,
    /// Which of its network cards, `nic0` for the first.
    nic: String,
    /// The network that the address is of.
    network: &'a str,
    /// Its address.
    ip: &'a str,
    /// The IPv6 address that follows from it; none where the network has no IPv6.
    ip6: Option<String>,
    /// The MAC address it is bound to.
    #[schema(value_type = String)]
    mac: Shown<Mac>,
    /// The TAP it is bound to while the VM runs.
    tap: String,
    /// Whether it was asked for by name.
    fixed: bool,
    /// Since when it is held.
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
}

impl<'a> LeaseBody<'a> {
    pub(crate) fn of(row: &'a Versioned<LeaseRecord>, facts: &NetworkFacts) -> Self {
        let lease = &row.value;
        Self {
            vm_id: lease.vm_id.as_str(),
            nic: nic_id(lease.nic),
            network: lease.network.as_str(),
            ip: lease.id.as_str(),
            ip6: facts.address6(lease).map(|address| address.to_string()),
            mac: Shown(Mac(lease.mac)),
            tap: TapName::of(&lease.vm_id, lease.nic).to_string(),
            fixed: lease.fixed,
            created_at: Time(lease.created_at),
        }
    }
}

/// A port of the host that leads into a guest.
#[derive(Serialize, ToSchema)]
#[schema(as = Forward)]
pub(crate) struct ForwardBody<'a> {
    /// Its id, `tcp-8080`.
    id: &'a str,
    /// The VM it leads into.
    vm_id: &'a str,
    /// `tcp` or `udp`.
    protocol: &'static str,
    /// The port on the host.
    host_port: u16,
    /// The port in the guest.
    guest_port: u16,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
}

impl<'a> ForwardBody<'a> {
    pub(crate) fn of(row: &'a Versioned<ForwardRecord>) -> Self {
        let forward = &row.value;
        Self {
            id: forward.id.as_str(),
            vm_id: forward.vm_id.as_str(),
            protocol: forward.protocol.as_str(),
            host_port: forward.host_port,
            guest_port: forward.guest_port,
            created_at: Time(forward.created_at),
        }
    }
}

/// A port of the host that shall lead into a guest.
#[derive(ToSchema)]
#[schema(as = NewForward)]
#[allow(
    dead_code,
    reason = "its fields are the document; the route reads them one by one"
)]
pub(crate) struct NewForwardBody {
    /// The VM it leads into.
    vm_id: String,
    /// `tcp` (the default) or `udp`.
    protocol: Option<String>,
    /// The port on the host.
    #[schema(minimum = 1, maximum = 65535)]
    host_port: u16,
    /// The port in the guest; the same as on the host by default.
    #[schema(minimum = 1, maximum = 65535)]
    guest_port: Option<u16>,
}
