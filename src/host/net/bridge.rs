//! VMs on a bridge of this host.
//!
//! Owns: the bridge, its address, our firewall tables, what the guests' TAPs are attached to, and
//! `dnsmasq`. [`Network::settle`] compares what is there with what shall be there and makes up the
//! difference: at start, on every change of the plan, and whenever somebody meddled.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex as Plain, PoisonError};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::{Mutex, Notify, mpsc};
use vman_actors::ports::{
    BoxFuture, BridgeFacts, Network, NetworkError, NetworkFacts, NicRequest, Settled, Traffic,
};
use vman_model::vm::{NetworkKind, NicClaim};
use vman_model::{NetworkPlan, Pool, TapName, VmId};

use super::dnsmasq::{Dnsmasq, Served};
use super::firewall::Firewall;
use super::links::{Link, Links};
use super::ruleset::{self, Surroundings};
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
    pub vlan_id: u16,
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

struct Inner {
    settings: BridgeSettings,
    links: Links,
    firewall: Firewall,
    taps: Arc<Taps>,
    made: Mutex<Made>,
    /// The bridge's index, 0 for none: a claim does not wait for a settling.
    index: AtomicU32,
    /// What health tells, as of the last settling.
    trouble: Plain<Vec<String>>,
    /// Somebody may have changed the firewall since it was looked at.
    rules_touched: AtomicBool,
    disturbed: Notify,
    vlan_missing: String,
}

/// What this daemon has made so far: what is missing of it now was taken away by somebody.
struct Made {
    bridge: Option<u32>,
    address: bool,
    attached: BTreeSet<String>,
    /// The script that was run last, and how the kernel tells its result.
    rules: Option<(String, String)>,
    names: Dnsmasq,
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
        let inner = Arc::new(Inner {
            links,
            firewall: Firewall { nft },
            taps,
            made: Mutex::new(Made {
                bridge: None,
                address: false,
                attached: BTreeSet::new(),
                rules: None,
                names: Dnsmasq::new(served, notices),
            }),
            index: AtomicU32::new(0),
            trouble: Plain::default(),
            rules_touched: AtomicBool::new(true),
            disturbed: Notify::new(),
            vlan_missing: vlan_missing(settings.vlan_id),
            settings,
        });
        inner.bridge(&mut Vec::new()).await?;
        tokio::spawn(pass_on(told, Arc::downgrade(&inner)));
        Ok(Self(inner))
    }
}

/// Tags need a VLAN-aware bridge, which needs 802.1Q in the kernel.
fn vlan_missing(vlan: u16) -> String {
    let there = std::path::Path::new("/proc/net/vlan").exists()
        || std::path::Path::new("/sys/module/8021q").exists();
    let why = if there {
        "this version does not tag"
    } else {
        "this kernel has no 802.1Q"
    };
    format!("the bridge is untagged although VLAN {vlan} is configured: {why}")
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
    fn alias(&self) -> String {
        format!("vman network {}", self.settings.bridge)
    }

    /// The bridge is there, ours and up.
    async fn bridge(&self, repairs: &mut Vec<String>) -> Result<Link, String> {
        let name = &self.settings.bridge;
        let mut made = self.made.lock().await;
        let found = self.links.find(name).await;
        let found = found.map_err(|error| format!("{error}"))?;
        let link = match found {
            Some(link) if !link.is_bridge || link.alias != self.alias() => {
                return Err(format!(
                    "there is an interface {name} that is not VMAN's: configure another bridge_name, or remove it"
                ));
            }
            Some(link) => link,
            None => {
                let mac = bridge_mac(name);
                let add = self.links.add_bridge(name, &self.alias(), mac).await;
                add.map_err(|error| permitted(&error.to_string()))?;
                if made.bridge.take().is_some() {
                    repairs.push(format!(
                        "the bridge {name} was deleted by somebody: it was made anew"
                    ));
                    made.address = false;
                }
                let link = self.links.find(name).await.map_err(|e| e.to_string())?;
                link.ok_or_else(|| format!("the bridge {name} was deleted at once"))?
            }
        };
        if !link.up {
            let up = self.links.up(&link).await;
            up.map_err(|error| permitted(&error.to_string()))?;
            if made.bridge == Some(link.index) {
                repairs.push(format!("the bridge {name} was set down: it is up again"));
            }
        }
        made.bridge = Some(link.index);
        self.index.store(link.index, Ordering::SeqCst);
        // Guests have no IPv6 here: the host says none either. A kernel without it has no such file.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        Ok(link)
    }

    async fn address(&self, bridge: &Link, repairs: &mut Vec<String>) -> Result<(), String> {
        let pool = &self.settings.pool;
        let (gateway, prefix) = (pool.gateway(), pool.prefix());
        let told = |error: super::links::LinkError| error.to_string();
        let there = self.links.addresses(bridge.index).await.map_err(told)?;
        let mut made = self.made.lock().await;
        if !there.contains(&(gateway, prefix)) {
            let add = self.links.add_address(bridge.index, gateway, prefix).await;
            add.map_err(told)?;
            if made.address {
                let name = &bridge.name;
                repairs.push(format!(
                    "the address {gateway} of the bridge {name} was removed: it is there again"
                ));
            }
        }
        made.address = true;
        Ok(())
    }

    /// Every TAP that is there is attached; answers those that should be there and are not.
    async fn ports(
        &self,
        bridge: &Link,
        plan: &NetworkPlan,
        running: Vec<TapName>,
        repairs: &mut Vec<String>,
    ) -> Result<Vec<TapName>, String> {
        let told = |error: super::links::LinkError| error.to_string();
        let links = self.links.all().await.map_err(told)?;
        let ours: BTreeSet<_> = plan.ports.iter().map(|port| port.tap.as_str()).collect();
        let mut there = BTreeSet::new();
        let mut again = 0;
        for link in links
            .iter()
            .filter(|link| ours.contains(link.name.as_str()))
        {
            there.insert(link.name.clone());
            if link.master == Some(bridge.index) && link.up {
                continue;
            }
            // One that vanishes at this moment was on its way out with its QEMU.
            if let Err(error) = self.links.attach(&link.name, bridge.index).await {
                tracing::debug!(%error, "a TAP could not be attached");
            } else if self.made.lock().await.attached.contains(&link.name) {
                again += 1;
            }
        }
        if again > 0 {
            let name = &bridge.name;
            repairs.push(format!(
                "{again} TAPs of running VMs had been detached from the bridge {name}: they are attached again"
            ));
        }
        let lost = running
            .into_iter()
            .filter(|tap| !there.contains(tap.as_str()));
        let lost = lost.collect();
        self.made.lock().await.attached = there;
        Ok(lost)
    }

    async fn rules(&self, plan: &NetworkPlan, repairs: &mut Vec<String>) -> Result<(), String> {
        let around = Surroundings {
            bridge: &self.settings.bridge,
            pool: &self.settings.pool,
            isolated: self.settings.isolated,
        };
        let script = ruleset::script(&around, plan);
        let table = ruleset::table(&self.settings.bridge);
        let touched = self.rules_touched.swap(false, Ordering::SeqCst);
        let mut made = self.made.lock().await;
        let told = |error: io::Error| {
            self.rules_touched.store(true, Ordering::SeqCst);
            format!("the firewall: {error}")
        };
        let same = made.rules.as_ref().filter(|(before, _)| *before == script);
        if let Some((_, listing)) = same {
            if !touched || self.firewall.listing(&table).await.map_err(told)? == *listing {
                return Ok(());
            }
            repairs.push(format!(
                "the firewall tables {table} were changed by somebody: they were replaced as a whole"
            ));
        }
        self.firewall.run(&script).await.map_err(told)?;
        let listing = self.firewall.listing(&table).await.map_err(told)?;
        made.rules = Some((script, listing));
        Ok(())
    }

    async fn settle(
        &self,
        plan: &NetworkPlan,
        running: Vec<TapName>,
    ) -> Result<Settled, NetworkError> {
        let mut repairs = Vec::new();
        let touched = self.rules_touched.load(Ordering::SeqCst);
        let bridge = self.bridge(&mut repairs).await.map_err(NetworkError)?;
        let address = self.address(&bridge, &mut repairs).await;
        address.map_err(NetworkError)?;
        // Before the ports: no frame of a guest passes without them.
        let rules = self.rules(plan, &mut repairs).await;
        rules.map_err(NetworkError)?;
        let lost = self.ports(&bridge, plan, running, &mut repairs).await;
        let lost = lost.map_err(NetworkError)?;
        let mut trouble: Vec<_> = route_packets().err().into_iter().collect();
        {
            let mut made = self.made.lock().await;
            match made.names.settle(plan) {
                Ok(repaired) => repairs.extend(repaired),
                Err(error) => trouble.push(format!("dnsmasq cannot be run: {error}")),
            }
            trouble.extend(made.names.problem());
        }
        if touched {
            let table = ruleset::table(&self.settings.bridge);
            let drops = self.firewall.who_drops(&table, &self.settings.bridge).await;
            self.note(|known| known.retain(|line| !line.starts_with("the chain ")));
            self.note(|known| known.extend(drops));
        }
        self.note(|known| {
            known.retain(|line| line.starts_with("the chain "));
            known.extend(trouble);
        });
        Ok(Settled { repairs, lost })
    }

    fn note(&self, change: impl FnOnce(&mut Vec<String>)) {
        change(&mut self.trouble.lock().unwrap_or_else(PoisonError::into_inner));
    }

    async fn claim(&self, request: NicRequest) -> Result<Vec<NicClaim>, NetworkError> {
        let tap = TapName::of(&request.vm, 0);
        let name = tap.as_str().to_owned();
        if !self.taps.has(&name) {
            let opened = tap::open(&name, request.cpu_count);
            let opened = opened.map_err(|error| NetworkError(error.to_string()))?;
            self.taps.keep(&name, opened);
        }
        let bridge = self.index.load(Ordering::SeqCst);
        let attached = self.links.attach(&name, bridge).await;
        if attached.is_err() {
            // The bridge was deleted at this very moment: it is made anew first.
            let bridge = self.bridge(&mut Vec::new()).await.map_err(NetworkError)?;
            let again = self.links.attach(&name, bridge.index).await;
            again.map_err(|error| NetworkError(error.to_string()))?;
        }
        Ok(vec![NicClaim {
            kind: NetworkKind::Bridge,
            mac: request.mac,
            address: request.address.map(|address| address.to_string()),
        }])
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
            vlan_id: settings.vlan_id,
            vlan_missing: Some(self.0.vlan_missing.clone()),
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
        if let Some(tap) = self.0.taps.take(TapName::of(&vm, 0).as_str()) {
            return Box::pin(async move {
                let closed = tokio::task::spawn_blocking(move || drop(tap)).await;
                closed.map_err(|error| NetworkError(error.to_string()))
            });
        }
        Box::pin(async { Ok(()) })
    }

    fn traffic(&self, vm: VmId) -> BoxFuture<'static, Option<Traffic>> {
        let links = self.0.links.clone();
        Box::pin(async move {
            let link = links.find(TapName::of(&vm, 0).as_str()).await.ok()??;
            Some(link.traffic)
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

/// A locally administered address that follows from the bridge's name.
fn bridge_mac(name: &str) -> [u8; 6] {
    let mut mac: [u8; 6] = [0x52, 0x57, 0, 0, 0, 0];
    for (at, byte) in name.bytes().enumerate() {
        let slot = &mut mac[2 + at % 4];
        *slot = slot.rotate_left(3) ^ byte;
    }
    mac
}

fn permitted(error: &str) -> String {
    if error.contains("Operation not permitted") || error.contains("os error 1)") {
        return format!("{error}: a bridge needs CAP_NET_ADMIN");
    }
    error.to_owned()
}

/// Lets the host pass packets on between the bridge and other networks.
fn route_packets() -> Result<(), String> {
    const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";
    let on = |text: String| text.trim() == "1";
    if std::fs::read_to_string(SWITCH).is_ok_and(on) {
        return Ok(());
    }
    std::fs::write(SWITCH, "1")
        .map_err(|error| format!("guests reach no other network: {SWITCH} cannot be set: {error}"))
}
