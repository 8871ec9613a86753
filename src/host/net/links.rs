//! Links by netlink: the bridge, and what is attached to it.
//!
//! Must not: touch a link that is not ours. Ours are the bridge with our alias and the TAPs that the
//! plan names.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags};
use rtnetlink::packet_route::link::{
    InfoBridge, InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use rtnetlink::{Handle, LinkBridge, LinkUnspec};
use rustix::io::Errno;
use tokio::net::UdpSocket;
use vman_actors::ports::Traffic;

use super::vlan::BridgeVlan;

/// Nobody listens there; RFC 863.
const DISCARD_PORT: u16 = 9;

/// A link as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) alias: String,
    pub(super) is_bridge: bool,
    pub(super) is_tap: bool,
    pub(super) up: bool,
    pub(super) mtu: u32,
    pub(super) master: Option<u32>,
    /// What a bridge says of VLANs.
    pub(super) vlan: Option<BridgeVlan>,
    /// As the guest behind a TAP sees it.
    pub(super) traffic: Traffic,
}

/// Why a link could not be had.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {error}")]
pub(super) struct LinkError {
    what: String,
    error: rtnetlink::Error,
}

impl LinkError {
    pub(super) fn of(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let what = what.into();
        move |error| Self { what, error }
    }
}

/// The kernel's links in our network namespace.
#[derive(Debug, Clone)]
pub(super) struct Links(Handle);

impl Links {
    /// Opens the conversation with the kernel; it lasts as long as the runtime.
    pub(super) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// For what only one other file asks the kernel.
    pub(super) fn handle(&self) -> &Handle {
        &self.0
    }

    /// Sends a message that the library has no words for, and awaits that it is done.
    pub(super) async fn request(
        &self,
        message: NetlinkMessage<RouteNetlinkMessage>,
    ) -> Result<(), rtnetlink::Error> {
        let mut answers = self.0.clone().request(message)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload {
                return Err(rtnetlink::Error::NetlinkError(error));
            }
        }
        Ok(())
    }

    pub(super) async fn all(&self) -> Result<Vec<Link>, LinkError> {
        let links = self.0.link().get().execute().map_ok(link);
        links
            .try_collect()
            .await
            .map_err(LinkError::of("list the links"))
    }

    pub(super) async fn find(&self, name: &str) -> Result<Option<Link>, LinkError> {
        let mut links = self.0.link().get().match_name(name).execute();
        match links.try_next().await {
            Ok(found) => Ok(found.map(link)),
            Err(error) if is(&error, Errno::NODEV) => Ok(None),
            Err(error) => Err(LinkError::of(format!("look for the link {name}"))(error)),
        }
    }

    /// Makes a bridge that carries `alias`, so that it is known as ours. Its MAC address is fixed:
    /// otherwise it would change with the TAPs that come and go.
    pub(super) async fn add_bridge(
        &self,
        name: &str,
        alias: &str,
        mac: [u8; 6],
    ) -> Result<(), LinkError> {
        let bridge = LinkBridge::new(name)
            .address(mac.to_vec())
            .mcast_snooping(false)
            .build();
        let what = || LinkError::of(format!("make the bridge {name}"));
        self.0.link().add(bridge).execute().await.map_err(what())?;
        let marked = LinkUnspec::new_with_name(name).alias(alias).build();
        self.0.link().set(marked).execute().await.map_err(what())
    }

    /// Changes what `message` says of a link.
    pub(super) async fn set(&self, message: LinkMessage, what: String) -> Result<(), LinkError> {
        let set = self.0.link().set(message).execute().await;
        set.map_err(LinkError::of(what))
    }

    pub(super) async fn up(&self, link: &Link) -> Result<(), LinkError> {
        let up = LinkUnspec::new_with_index(link.index).up().build();
        let set = self.0.link().set(up).execute().await;
        set.map_err(LinkError::of(format!("set the link {} up", link.name)))
    }

    /// From then on the kernel does not make it follow from the bridge's ports.
    pub(super) async fn set_mtu(&self, link: &Link, mtu: u32) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_index(link.index).mtu(mtu).build();
        let set = self.0.link().set(message).execute().await;
        set.map_err(LinkError::of(format!("give {} the MTU {mtu}", link.name)))
    }

    /// Puts a link onto a bridge and sets it up.
    pub(super) async fn attach(&self, link: &str, bridge: u32, mtu: u32) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_name(link)
            .controller(bridge)
            .mtu(mtu)
            .up()
            .build();
        let set = self.0.link().set(message).execute().await;
        set.map_err(LinkError::of(format!("attach {link} to the bridge")))
    }

    /// The addresses of a link with the lengths of their prefixes.
    pub(super) async fn addresses(&self, link: u32) -> Result<Vec<(IpAddr, u8)>, LinkError> {
        let get = self.0.address().get().set_link_index_filter(link).execute();
        let messages: Vec<_> = get
            .try_collect()
            .await
            .map_err(LinkError::of("list the bridge's addresses"))?;
        let of = |message: &rtnetlink::packet_route::address::AddressMessage| {
            let length = message.header.prefix_len;
            let mut attributes = message.attributes.iter();
            attributes.find_map(|attribute| match attribute {
                AddressAttribute::Local(address @ IpAddr::V4(_))
                | AddressAttribute::Address(address @ IpAddr::V6(_)) => Some((*address, length)),
                _ => None,
            })
        };
        let ours = messages
            .iter()
            .filter(|message| message.header.index == link);
        Ok(ours.filter_map(of).collect())
    }

    /// Whether a host of this address and MAC address answers on a link. The
    /// kernel is made to ask (ARP) by a datagram to the discard port, and what it
    /// has heard is read; so the first question is answered `false`.
    pub(super) async fn answers(&self, link: u32, address: Ipv4Addr, mac: [u8; 6]) -> bool {
        if let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await {
            // It need not arrive.
            let _ = socket.send_to(&[0], (address, DISCARD_PORT)).await;
        }
        let mut heard = self.0.neighbours().get().execute();
        while let Ok(Some(message)) = heard.try_next().await {
            let header = &message.header;
            if header.ifindex == link && header.state == NeighbourState::Reachable {
                let has = |attribute| message.attributes.contains(&attribute);
                let of = NeighbourAttribute::Destination(NeighbourAddress::Inet(address));
                if has(of) && has(NeighbourAttribute::LinkLayerAddress(mac.to_vec())) {
                    return true;
                }
            }
        }
        false
    }

    /// It is taken at once, without asking whether another has it.
    pub(super) async fn add_address(
        &self,
        link: u32,
        address: IpAddr,
        prefix: u8,
    ) -> Result<(), LinkError> {
        let mut add = self.0.address().add(link, address, prefix);
        if address.is_ipv6() {
            add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        match add.execute().await {
            Err(error) if is(&error, Errno::EXIST) => Ok(()),
            other => other.map_err(LinkError::of(format!("give the bridge {address}/{prefix}"))),
        }
    }
}

/// A kernel without VLANs on bridges does not tell the VLAN of new ports.
fn bridge_vlan(told: &[InfoBridge]) -> Option<BridgeVlan> {
    let filtering = told.contains(&InfoBridge::VlanFiltering(true));
    let port_vlan = told.iter().find_map(|one| match one {
        InfoBridge::VlanDefaultPvid(vlan) => Some(*vlan),
        _ => None,
    })?;
    Some(BridgeVlan {
        filtering,
        port_vlan,
    })
}

fn is(error: &rtnetlink::Error, errno: Errno) -> bool {
    match error {
        rtnetlink::Error::NetlinkError(message) => message
            .code
            .is_some_and(|code| code.get() == -errno.raw_os_error()),
        _ => false,
    }
}

fn link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        alias: String::new(),
        is_bridge: false,
        is_tap: false,
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        master: None,
        vlan: None,
        traffic: Traffic::default(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Controller(master) => link.master = Some(master),
            // What a TAP sends, its guest receives.
            LinkAttribute::Stats64(stats) => {
                link.traffic = Traffic {
                    received_bytes: stats.tx_bytes,
                    received_packets: stats.tx_packets,
                    sent_bytes: stats.rx_bytes,
                    sent_packets: stats.rx_packets,
                };
            }
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Bridge) => link.is_bridge = true,
                        LinkInfo::Kind(InfoKind::Tun) => link.is_tap = true,
                        LinkInfo::Data(InfoData::Bridge(told)) => link.vlan = bridge_vlan(&told),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}
