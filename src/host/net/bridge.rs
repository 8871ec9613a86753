//! VMs on a bridge of this host.
//!
//! Owns: the bridge, its address, our firewall tables, what the guests' TAPs are attached to, and
//! `dnsmasq`. [`Network::settle`] compares what is there with what shall be there and makes up the
//! difference: at start, on every change of the plan, and whenever somebody meddled.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex as Plain, OnceLock, PoisonError};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::{Mutex, Notify, mpsc};
use vman_actors::ports::{
    BoxFuture, BridgeFacts, Network, NetworkError, NetworkFacts, NetworkSurvey, NicRequest,
    Settled, Traffic, Unlimited,
};
use vman_model::vm::{NetworkKind, NicClaim};
use vman_model::{
    NetworkPlan, Pool, TapName, VmId,
    network::{Limit, MAX_NICS},
};

use super::dnsmasq::{Dnsmasq, Served};
use super::firewall::Firewall;
use super::links::{LinkError, Links};
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
    /// The bridge's name.
    pub bridge: String,
    /// The addresses of its guests, and its own.
    pub pool: Pool,
    /// The name servers that are asked for the guests.
    pub dns: Vec<Ipv4Addr>,
    /// The VLAN that was configured.
    pub vlan_id: Option<u16>,
    /// The interface that carries the VLAN to other hosts.
    pub uplink: Option<String>,
    /// Whether guests are kept from each other.
    pub isolated: bool,
    /// Where the files of `dnsmasq` are.
    pub folder: PathBuf,
    /// `nft`.
    pub nft: Option<PathBuf>,
    /// `dnsmasq`.
    pub dnsmasq: Option<PathBuf>,
}

/// The network of a bridge.
#[derive(Clone)]
pub struct BridgeNetwork(Arc<Inner>);

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
    pub(super) address: bool,
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
    pub async fn open(settings: BridgeSettings, taps: Arc<Taps>) -> Result<Self, String> {
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
        let served = Served {
            program: settings.dnsmasq.clone(),
            folder: settings.folder.clone(),
            bridge: settings.bridge.clone(),
            pool: settings.pool,
            dns: settings.dns.clone(),
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
                address: false,
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
    async fn claim(&self, request: NicRequest) -> Result<Vec<NicClaim>, NetworkError> {
        let mut claims = Vec::new();
        for wish in &request.nics {
            let tap = TapName::of(&request.vm, wish.nic);
            self.ready(tap.as_str(), request.cpu_count).await?;
            if let Some(limit) = wish.limits.inbound {
                self.limit(tap.as_str(), limit).await?;
            }
            let address = wish.address.map(|address| address.to_string());
            claims.push(wish.claimed(NetworkKind::Bridge, address));
        }
        Ok(claims)
    }

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
            self.taps.keep(name, opened);
        }
        let bridge = self.index.load(Ordering::SeqCst);
        let attached = self.links.attach(name, bridge).await;
        if attached.is_err() {
            // The bridge was deleted at this very moment: it is made anew first.
            let bridge = self.bridge(&mut Vec::new()).await.map_err(NetworkError)?;
            let again = self.links.attach(name, bridge.index).await;
            again.map_err(|error| NetworkError(error.to_string()))?;
        }
        Ok(())
    }
}

impl Network for BridgeNetwork {
    fn facts(&self) -> NetworkFacts {
        let settings = &self.0.settings;
        NetworkFacts {
            kind: NetworkKind::Bridge,
            reason: None,
            bridge: Some(BridgeFacts {
                name: settings.bridge.clone(),
                pool: settings.pool,
                dns: settings.dns.clone(),
                isolated: settings.isolated,
            }),
            vlan_id: settings.vlan_id.unwrap_or_default(),
            vlan_missing: self.0.vlan_missing.get().cloned().flatten(),
            uplink: settings.uplink.clone(),
            vhost_missing: self.0.vhost_missing.clone(),
            unlimited: self.0.unlimited.clone(),
        }
    }

    fn settle(
        &self,
        plan: Arc<NetworkPlan>,
        running: Vec<TapName>,
    ) -> BoxFuture<'static, Result<Settled, NetworkError>> {
        let inner = self.0.clone();
        Box::pin(async move { inner.settle(&plan, running).await })
    }

    fn disturbances(&self) -> BoxStream<'static, ()> {
        futures_util::stream::unfold(self.0.clone(), |inner| async move {
            inner.disturbed.notified().await;
            Some(((), inner))
        })
        .boxed()
    }

    fn claim(
        &self,
        request: NicRequest,
    ) -> BoxFuture<'static, Result<Vec<NicClaim>, NetworkError>> {
        let inner = self.0.clone();
        Box::pin(async move { inner.claim(request).await })
    }

    fn release(&self, vm: VmId) -> BoxFuture<'static, Result<(), NetworkError>> {
        // A TAP goes with its QEMU; one whose QEMU never came goes with our descriptors.
        let names = (0..MAX_NICS).map(|nic| TapName::of(&vm, nic));
        let taps: Vec<_> = names
            .filter_map(|name| self.0.taps.take(name.as_str()))
            .collect();
        if !taps.is_empty() {
            return Box::pin(async move {
                let closed = tokio::task::spawn_blocking(move || drop(taps)).await;
                closed.map_err(|error| NetworkError(error.to_string()))
            });
        }
        Box::pin(async { Ok(()) })
    }

    fn answers(&self, address: Ipv4Addr, mac: [u8; 6]) -> BoxFuture<'static, bool> {
        let inner = self.0.clone();
        Box::pin(async move {
            let bridge = inner.index.load(Ordering::SeqCst);
            inner.links.answers(bridge, address, mac).await
        })
    }

    fn traffic(&self, vm: VmId, nic: u8) -> BoxFuture<'static, Option<Traffic>> {
        let links = self.0.links.clone();
        Box::pin(async move {
            let link = links.find(TapName::of(&vm, nic).as_str()).await.ok()??;
            Some(link.traffic)
        })
    }

    fn survey(&self) -> BoxFuture<'static, Result<NetworkSurvey, NetworkError>> {
        let inner = self.0.clone();
        Box::pin(async move {
            let links = inner.links.all().await;
            let links = links.map_err(|error| NetworkError(error.to_string()))?;
            let settings = &inner.settings;
            Ok(survey(
                &links,
                &settings.bridge,
                settings.uplink.as_deref(),
                &inner.alias(),
            ))
        })
    }

    fn health(&self) -> BoxFuture<'static, Result<String, String>> {
        let trouble = self
            .0
            .trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let all = trouble.join("; ");
        Box::pin(async move {
            if all.is_empty() {
                Ok("ok".to_owned())
            } else {
                Err(all)
            }
        })
    }
}
