//! One network with its bridge on this host.
//!
//! Owns: the bridge, its address, our firewall tables, what the guests' TAPs are attached to, and
//! `dnsmasq`. [`BridgeNetwork::settle`] compares what is there with what shall be there and makes up the
//! difference: at start, on every change of the plan, and whenever somebody meddled. Look next:
//! `set.rs` for all networks, `settle.rs`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex as Plain, OnceLock, PoisonError};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::{Mutex, Notify, mpsc};
use vman_actors::ports::{BridgeFacts, Ipv6, NetworkError, NetworkSurvey, Settled, Unlimited};
use vman_model::{NetworkName, NetworkPlan, Pool, TapName, network::Limit};

use super::dnsmasq::{Dnsmasq, Served};
use super::firewall::Firewall;
use super::ipv6;
use super::links::{Link, LinkError, Links};
use super::settle::permitted;
use super::shaping::{self, Shapes};
use super::survey::survey;
use super::tap::{self, Taps};
use super::watch::{self, Notice};

/// Notices that wait to be acted on; more would say the same.
const NOTICES: usize = 4;

/// What is configured.
#[derive(Debug, Clone)]
pub struct BridgeSettings {
    /// The network's name.
    pub network: NetworkName,
    /// The bridge's name.
    pub bridge: String,
    /// The addresses of its guests, and its own.
    pub pool: Pool,
    /// IPv6 beside them.
    pub ipv6: Ipv6,
    /// The name servers that are asked for the guests.
    pub dns: Vec<Ipv4Addr>,
    /// The VLAN that was configured.
    pub vlan_id: Option<u16>,
    /// The interface that carries the VLAN to other hosts.
    pub uplink: Option<String>,
    /// Whether guests are kept from each other.
    pub isolated: bool,
    /// Whether guests reach other networks.
    pub nat: bool,
    /// The largest packet, in bytes.
    pub mtu: u16,
    /// Where the files of `dnsmasq` are.
    pub folder: PathBuf,
    /// `nft`.
    pub nft: Option<PathBuf>,
    /// `dnsmasq`.
    pub dnsmasq: Option<PathBuf>,
}

/// One network. Look next: `set.rs` for all of them.
#[derive(Clone)]
pub(super) struct BridgeNetwork(Arc<Inner>);

pub(super) struct Inner {
    pub(super) settings: BridgeSettings,
    pub(super) links: Links,
    pub(super) firewall: Firewall,
    pub(super) taps: Arc<Taps>,
    pub(super) made: Mutex<Made>,
    /// The bridge's index, 0 for none: a claim does not wait for a settling.
    pub(super) index: AtomicU32,
    /// What health tells, as of the last settling.
    pub(super) trouble: Plain<Vec<String>>,
    /// Somebody may have changed the firewall since it was looked at.
    pub(super) rules_touched: AtomicBool,
    pub(super) disturbed: Notify,
    /// Why the VLAN's tag is not used; known as soon as there is a bridge.
    pub(super) vlan_missing: OnceLock<Option<String>>,
    pub(super) vhost_missing: Option<String>,
    pub(super) unlimited: Unlimited,
}

/// What this daemon has made so far: what is missing of it now was taken away by somebody.
pub(super) struct Made {
    pub(super) bridge: Option<u32>,
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) attached: BTreeSet<String>,
    /// The script that was run last, and how the kernel tells its result.
    pub(super) rules: Option<(String, String)>,
    pub(super) names: Dnsmasq,
    pub(super) shapes: Shapes,
    /// The ports have been in the VLAN as they shall.
    pub(super) in_vlan: bool,
    /// The uplink that was attached, by index.
    pub(super) uplink: Option<u32>,
}

impl BridgeNetwork {
    /// Makes or takes over the bridge. The error says why there can be none, in a sentence.
    pub(super) async fn open(
        mut settings: BridgeSettings,
        taps: Arc<Taps>,
    ) -> Result<Self, String> {
        let nft = settings
            .nft
            .clone()
            .ok_or("nft is not installed, and a bridge without a firewall would let guests forge addresses (install nftables)")?;
        tap::probe().map_err(|error| format!("TAPs cannot be made: /dev/net/tun: {error}"))?;
        let links = Links::open().map_err(|error| format!("netlink cannot be spoken: {error}"))?;
        let (notices, told) = mpsc::channel(NOTICES);
        watch::watch(&notices).map_err(|error| {
            permitted(&format!("the kernel's notices cannot be heard: {error}"))
        })?;
        if let (Ipv6::On(_), Some(why)) = (&settings.ipv6, ipv6::missing()) {
            settings.ipv6 = Ipv6::Missing(why);
        }
        let served = Served {
            program: settings.dnsmasq.clone(),
            folder: settings.folder.clone(),
            bridge: settings.bridge.clone(),
            pool: settings.pool,
            prefix6: settings.ipv6.prefix(),
            way_out: settings.nat,
            // Names of the world would be a way out.
            dns: if settings.nat {
                settings.dns.clone()
            } else {
                Vec::new()
            },
            mtu: settings.mtu,
        };
        let firewall = Firewall { nft };
        let unlimited = Unlimited {
            inbound: shaping::missing(&links).await,
            outbound: firewall.limits_missing().await,
        };
        let inner = Arc::new(Inner {
            links,
            firewall,
            unlimited,
            taps,
            made: Mutex::new(Made {
                bridge: None,
                addresses: BTreeSet::new(),
                attached: BTreeSet::new(),
                rules: None,
                names: Dnsmasq::new(served, notices),
                shapes: None,
                in_vlan: false,
                uplink: None,
            }),
            index: AtomicU32::new(0),
            trouble: Plain::default(),
            rules_touched: AtomicBool::new(true),
            disturbed: Notify::new(),
            vlan_missing: OnceLock::new(),
            vhost_missing: tap::vhost_missing(),
            settings,
        });
        inner.release_former_uplink().await?;
        inner.bridge(&mut Vec::new()).await?;
        tokio::spawn(pass_on(told, Arc::downgrade(&inner)));
        Ok(Self(inner))
    }
}

async fn pass_on(mut told: mpsc::Receiver<Notice>, to: std::sync::Weak<Inner>) {
    while let Some(notice) = told.recv().await {
        let Some(inner) = to.upgrade() else { return };
        if notice == Notice::Rules {
            inner.rules_touched.store(true, Ordering::SeqCst);
        }
        inner.disturbed.notify_one();
    }
}

impl Inner {
    /// No guest is ever faster than its limit, where the kernel can hold it.
    async fn limit(&self, tap: &str, limit: Limit) -> Result<(), NetworkError> {
        if self.unlimited.inbound.is_some() {
            return Ok(());
        }
        let told = |error: LinkError| NetworkError(error.to_string());
        // One that has vanished is told by QEMU's start.
        let Some(link) = self.links.find(tap).await.map_err(told)? else {
            return Ok(());
        };
        let held = shaping::hold(&self.links, &link, limit).await;
        held.map_err(told)
    }

    /// The TAP is there, attached, and waits for its QEMU.
    async fn ready(&self, name: &str, cpu_count: u32) -> Result<(), NetworkError> {
        if !self.taps.has(name) {
            let opened = tap::open(name, cpu_count);
            let opened = opened.map_err(|error| NetworkError(error.to_string()))?;
            ipv6::silence(name);
            self.taps.keep(name, opened);
        }
        let bridge = self.index.load(Ordering::SeqCst);
        let attached = self.links.attach(name, bridge, self.mtu()).await;
        if attached.is_err() {
            // The bridge was deleted at this very moment: it is made anew first.
            let bridge = self.bridge(&mut Vec::new()).await.map_err(NetworkError)?;
            let again = self.links.attach(name, bridge.index, self.mtu()).await;
            again.map_err(|error| NetworkError(error.to_string()))?;
        }
        Ok(())
    }
}

impl BridgeNetwork {
    /// The network's name.
    pub(super) fn name(&self) -> &NetworkName {
        &self.0.settings.network
    }

    /// The addresses of its guests, and its own.
    pub(super) fn pool(&self) -> &Pool {
        &self.0.settings.pool
    }

    /// The network as it is configured.
    pub(super) fn facts(&self) -> BridgeFacts {
        let settings = &self.0.settings;
        BridgeFacts {
            network: settings.network.clone(),
            name: settings.bridge.clone(),
            pool: settings.pool,
            ipv6: settings.ipv6.clone(),
            dns: settings.dns.clone(),
            isolated: settings.isolated,
            nat: settings.nat,
            mtu: settings.mtu,
            vlan_id: settings.vlan_id,
            vlan_missing: self.0.vlan_missing.get().cloned().flatten(),
            uplink: settings.uplink.clone(),
        }
    }

    /// Makes the host look as what of `plan` is this network's says.
    pub(super) async fn settle(
        &self,
        plan: &NetworkPlan,
        running: &[TapName],
    ) -> Result<Settled, NetworkError> {
        let plan = plan.of_network(self.name());
        let ours: BTreeSet<&TapName> = plan.ports.iter().map(|port| &port.tap).collect();
        let running = running.iter().filter(|tap| ours.contains(tap));
        self.0.settle(&plan, running.cloned().collect()).await
    }

    /// Tells whenever something of it may have been changed.
    pub(super) fn disturbances(&self) -> BoxStream<'static, ()> {
        futures_util::stream::unfold(self.0.clone(), |inner| async move {
            inner.disturbed.notified().await;
            Some(((), inner))
        })
        .boxed()
    }

    /// The TAP is there, attached, limited, and waits for its QEMU.
    pub(super) async fn ready(
        &self,
        tap: &TapName,
        cpu_count: u32,
        inbound: Option<Limit>,
    ) -> Result<(), NetworkError> {
        self.0.ready(tap.as_str(), cpu_count).await?;
        match inbound {
            Some(limit) => self.0.limit(tap.as_str(), limit).await,
            None => Ok(()),
        }
    }

    /// Why the kernel does not carry guests' packets itself.
    pub(super) fn vhost_missing(&self) -> Option<String> {
        self.0.vhost_missing.clone()
    }

    /// Which limits of cards this kernel cannot hold.
    pub(super) fn unlimited(&self) -> Unlimited {
        self.0.unlimited.clone()
    }

    /// Whether a guest of this address and MAC address answers.
    pub(super) async fn answers(&self, address: Ipv4Addr, mac: [u8; 6]) -> bool {
        let bridge = self.0.index.load(Ordering::SeqCst);
        self.0.links.answers(bridge, address, mac).await
    }

    /// The host's links.
    pub(super) fn links(&self) -> &Links {
        &self.0.links
    }

    /// What of these links is this network's.
    pub(super) fn survey(&self, links: &[Link]) -> NetworkSurvey {
        let settings = &self.0.settings;
        survey(
            links,
            &settings.bridge,
            settings.uplink.as_deref(),
            &self.0.alias(),
        )
    }

    /// What does not work.
    pub(super) fn trouble(&self) -> Vec<String> {
        let trouble = self.0.trouble.lock();
        trouble.unwrap_or_else(PoisonError::into_inner).clone()
    }
}
