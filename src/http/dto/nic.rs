//! A VM's network cards in the API.

use super::{Mac, Shown, limits::LimitsBody};
use serde::Serialize;
use utoipa::ToSchema;
use vman_actors::{
    ports::{NO_LIMITS, NetworkFacts, Traffic, Unlimited},
    store::Inventory,
};
use vman_model::{
    TapName,
    network::{LinkState, NicState, nic::nic_id},
    vm::{NetworkKind, VmRecord},
};

/// A network card of a VM.
#[derive(Serialize, ToSchema)]
#[schema(as = Nic)]
pub(crate) struct NicBody {
    /// `nic0` is the first.
    id: String,
    /// `bridge` or `user`: how it is connected, or would be if the VM were started now.
    mode: &'static str,
    /// `attached`, `plugging` (a running guest is being given it) or `unplugging` (it was asked to let
    /// go of it).
    state: &'static str,
    /// The network it is connected to.
    network: String,
    /// Its cable: `up` or `down`.
    link: &'static str,
    /// Its MAC address.
    #[schema(value_type = String)]
    mac: Shown<Mac>,
    /// The address of its guest, where it is known; on a bridge it is kept while the VM is stopped.
    ip: Option<String>,
    /// Its IPv6 address beside that; none where its network has no IPv6.
    ip6: Option<String>,
    /// Its TAP, on a bridge.
    tap: Option<String>,
    /// How fast it may be; none where nothing is limited.
    limits: Option<LimitsBody>,
    /// Why its limits are not in force, in a sentence; none where they are.
    limits_reason: Option<String>,
    /// Bytes that the guest has received; none where they are not counted.
    rx_bytes: Option<u64>,
    /// Packets that the guest has received.
    rx_packets: Option<u64>,
    /// Bytes that the guest has sent, also those that the firewall dropped.
    tx_bytes: Option<u64>,
    /// Packets that the guest has sent.
    tx_packets: Option<u64>,
}

impl NicBody {
    /// The card of this number; none if the VM has no such card. `facts` is how VMs are connected
    /// now.
    pub(crate) fn of(
        vm: &VmRecord,
        nic: u8,
        inventory: &Inventory,
        facts: &NetworkFacts,
        traffic: Option<Traffic>,
    ) -> Option<Self> {
        let (_, mac) = vm.macs().find(|(number, _)| *number == nic)?;
        let further = vm.nics.iter().find(|held| held.number == nic);
        let claimed = vm.claim.as_ref().and_then(|claim| {
            let mut nics = claim.nics.iter();
            nics.find(|held| held.nic == nic)
        });
        let kind = claimed.map_or(facts.kind, |claimed| claimed.kind);
        let lease = || inventory.lease_of(&vm.id, nic);
        let limits = lease().map(|lease| lease.value.limits).unwrap_or_default();
        Some(Self {
            id: nic_id(nic),
            mode: kind.as_str(),
            state: word(further.map_or(NicState::Attached, |held| held.state)),
            network: vm
                .network_of(nic)
                .map(ToString::to_string)
                .unwrap_or_default(),
            link: vm.link_of(nic).map_or("", LinkState::as_str),
            mac: Shown(Mac(mac)),
            ip: claimed
                .and_then(|claimed| claimed.address.clone())
                .or_else(|| lease().map(|lease| lease.value.address.to_string())),
            ip6: lease()
                .and_then(|lease| facts.address6(&lease.value))
                .map(|address| address.to_string()),
            tap: (kind == NetworkKind::Bridge).then(|| TapName::of(&vm.id, nic).to_string()),
            limits: LimitsBody::of(&limits),
            limits_reason: match kind {
                NetworkKind::Bridge => facts.unlimited.of(&limits),
                NetworkKind::User | NetworkKind::None => Unlimited::wholly(NO_LIMITS).of(&limits),
            },
            rx_bytes: traffic.map(|traffic| traffic.received_bytes),
            rx_packets: traffic.map(|traffic| traffic.received_packets),
            tx_bytes: traffic.map(|traffic| traffic.sent_bytes),
            tx_packets: traffic.map(|traffic| traffic.sent_packets),
        })
    }
}

fn word(state: NicState) -> &'static str {
    match state {
        NicState::Attached => "attached",
        NicState::Plugging => "plugging",
        NicState::Unplugging => "unplugging",
    }
}

/// A network card that a VM shall have.
#[derive(ToSchema)]
#[schema(as = NewNic)]
#[allow(
    dead_code,
    reason = "its fields are the document; the route reads them one by one"
)]
pub(crate) struct NewNicBody {
    /// The network it is connected to; `default` by default.
    network: Option<String>,
    /// The IPv4 address it shall have, one of the network's subnet; one is chosen by default.
    address: Option<String>,
    /// `up` (the default) or `down`.
    link: Option<String>,
    /// How fast it may be; without limits by default. Only on a bridge.
    limits: Option<LimitsBody>,
}

/// What shall change about a network card.
#[derive(ToSchema)]
#[schema(as = NicChange)]
#[allow(
    dead_code,
    reason = "its fields are the document; the route reads them one by one"
)]
pub(crate) struct NicChangeBody {
    /// `up` or `down`; it stays so over restarts.
    link: Option<String>,
    /// How fast it may be, in place of all its former limits: `{}` lifts them. Only on a bridge.
    limits: Option<LimitsBody>,
}
