//! The bridge's VLAN: guests are untagged members of it, the bridge itself too, and an uplink
//! carries it tagged.
//!
//! Owns: whether the bridge tells VLANs apart, the VLAN that its ports get when they are attached,
//! and which VLANs our own ports are in. Must not: touch other ports of the bridge, or attach any
//! (`settle.rs` does).

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage};
use rtnetlink::packet_route::link::{
    AfSpecBridge, BridgeFlag, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute, LinkExtentMask,
    LinkMessage,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{LinkBridge, LinkUnspec};

use super::links::{Link, LinkError, Links};

/// What a bridge says of VLANs; a kernel without them says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BridgeVlan {
    /// Whether it tells VLANs apart.
    pub(super) filtering: bool,
    /// The VLAN whose untagged member a port becomes when it is attached.
    pub(super) port_vlan: u16,
}

/// How a port is in its VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Member {
    /// Frames without a tag are of it, in and out.
    Untagged,
    /// Frames carry its tag.
    Tagged,
}

impl Member {
    fn flags(self) -> BridgeVlanInfoFlags {
        match self {
            Member::Untagged => BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged,
            Member::Tagged => BridgeVlanInfoFlags::empty(),
        }
    }
}

/// Why frames of this bridge have no VLAN.
pub(super) fn missing(bridge: &Link, vlan: Option<u16>) -> Option<String> {
    if vlan.is_none() {
        return Some("no VLAN is configured".to_owned());
    }
    let none = bridge.vlan.is_none();
    none.then(|| untagged(vlan, "this kernel has no 802.1Q on bridges"))
}

/// That the bridge is untagged, and why.
pub(super) fn untagged(vlan: Option<u16>, why: &str) -> String {
    let vlan = vlan.unwrap_or_default();
    format!("the bridge is untagged although VLAN {vlan} is configured: {why}")
}

/// The bridge tells VLANs apart, and whatever is attached becomes an untagged member of `vlan`; it
/// does not tell them apart where there is none. Answers whether it was otherwise.
pub(super) async fn keep(
    links: &Links,
    bridge: &Link,
    vlan: Option<u16>,
) -> Result<bool, LinkError> {
    let Some(seen) = bridge.vlan else {
        return Ok(false);
    };
    let name = bridge.name.as_str();
    let Some(vlan) = vlan else {
        if seen.filtering {
            let blind = LinkBridge::new(name).vlan_filtering(false).build();
            change(links, name, blind).await?;
        }
        return Ok(seen.filtering);
    };
    if seen.filtering && seen.port_vlan == vlan {
        return Ok(false);
    }
    if seen.port_vlan != vlan {
        // The kernel changes it only while VLANs are not told apart.
        let ports = LinkBridge::new(name).vlan_filtering(false);
        change(links, name, ports.vlan_default_pvid(vlan).build()).await?;
    }
    let apart = LinkBridge::new(name).vlan_filtering(true).build();
    change(links, name, apart).await?;
    Ok(true)
}

async fn change(links: &Links, name: &str, message: LinkMessage) -> Result<(), LinkError> {
    let what = format!("set how the bridge {name} treats VLANs");
    // What is of one kind of link only is changed by "new", not by "set".
    send(links, RouteNetlinkMessage::NewLink(message), what).await
}

/// The bridge itself and `taps` are untagged members of `vlan` and of no other, `uplink` is a tagged
/// one. Answers how many were not.
pub(super) async fn members(
    links: &Links,
    bridge: &Link,
    taps: &[u32],
    uplink: Option<u32>,
    vlan: u16,
) -> Result<usize, LinkError> {
    let seen = seen(links).await?;
    let mut wanted: BTreeMap<u32, Member> = taps
        .iter()
        .map(|index| (*index, Member::Untagged))
        .collect();
    wanted.insert(bridge.index, Member::Untagged);
    wanted.extend(uplink.map(|index| (index, Member::Tagged)));
    let mut strayed = 0;
    for (index, member) in wanted {
        let of = seen.get(&index).cloned().unwrap_or_default();
        if of == BTreeMap::from([(vlan, member.flags())]) {
            continue;
        }
        let own = index == bridge.index;
        // One that vanishes at this moment was on its way out with its QEMU.
        if let Err(error) = put(links, (index, own), &of, vlan, member).await {
            tracing::debug!(%error, "a port could not be put into its VLAN");
        } else {
            strayed += 1;
        }
    }
    Ok(strayed)
}

/// A new uplink carries nothing before it carries tags only.
pub(super) async fn attach_uplink(
    links: &Links,
    bridge: &Link,
    uplink: &Link,
    vlan: u16,
) -> Result<(), LinkError> {
    let index = uplink.index;
    let name = &uplink.name;
    let down = LinkUnspec::new_with_index(index).down().build();
    links
        .set(down, format!("set the uplink {name} down"))
        .await?;
    let port = LinkUnspec::new_with_index(index)
        .controller(bridge.index)
        .build();
    links.set(port, format!("attach the uplink {name}")).await?;
    members(links, bridge, &[], Some(index), vlan).await?;
    links.up(uplink).await
}

/// The VLANs of every port of every bridge, and of the bridges themselves, by their links' indices.
type Seen = BTreeMap<u32, BTreeMap<u16, BridgeVlanInfoFlags>>;

async fn seen(links: &Links) -> Result<Seen, LinkError> {
    let get = links.handle().link().get();
    let get = get.set_filter_mask(AddressFamily::Bridge, vec![LinkExtentMask::Brvlan]);
    let messages: Vec<LinkMessage> = get
        .execute()
        .try_collect()
        .await
        .map_err(LinkError::of("list the VLANs of the bridge's ports"))?;
    let mut seen = Seen::new();
    let told = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
    for message in messages {
        let of = seen.entry(message.header.index).or_default();
        let specs = message
            .attributes
            .into_iter()
            .filter_map(|attribute| match attribute {
                LinkAttribute::AfSpecBridge(specs) => Some(specs),
                _ => None,
            });
        for spec in specs.flatten() {
            if let AfSpecBridge::VlanInfo(info) = spec {
                of.insert(info.vid, info.flags & told);
            }
        }
    }
    Ok(seen)
}

/// Takes a port, or the bridge itself, out of all other VLANs and puts it into its own.
async fn put(
    links: &Links,
    (index, own): (u32, bool),
    of: &BTreeMap<u16, BridgeVlanInfoFlags>,
    vlan: u16,
    member: Member,
) -> Result<(), LinkError> {
    let message = |vid: u16, flags| {
        let mut specs = Vec::new();
        if own {
            specs.push(AfSpecBridge::Flags(BridgeFlag::LowerDev));
        }
        specs.push(AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid }));
        let mut message = LinkMessage::default();
        message.header.interface_family = AddressFamily::Bridge;
        message.header.index = index;
        message.attributes = vec![LinkAttribute::AfSpecBridge(specs)];
        message
    };
    let what = format!("put a port into VLAN {vlan}");
    for other in of.keys().filter(|other| **other != vlan) {
        let out = RouteNetlinkMessage::DelLink(message(*other, BridgeVlanInfoFlags::empty()));
        send(links, out, what.clone()).await?;
    }
    let into = RouteNetlinkMessage::SetLink(message(vlan, member.flags()));
    send(links, into, what).await
}

async fn send(links: &Links, message: RouteNetlinkMessage, what: String) -> Result<(), LinkError> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    links.request(request).await.map_err(LinkError::of(what))
}
