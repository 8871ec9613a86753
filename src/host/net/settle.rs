//! Making the host look as it shall: the bridge, its address, its ports, the rules, `dnsmasq`.
//!
//! Each step compares what is there with what shall be there, makes up the difference, and says
//! what somebody else had changed. Must not: decide what shall be there. Look next: `bridge.rs`.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use vman_actors::ports::{NetworkError, Settled};
use vman_model::{NetworkPlan, TapName};

use super::bridge::Inner;
use super::links::{Link, LinkError};
use super::ruleset::{self, Surroundings};
use super::{ipv6, shaping, vlan};

impl Inner {
    pub(super) fn alias(&self) -> String {
        format!("vman network {}", self.settings.bridge)
    }

    pub(super) fn mtu(&self) -> u32 {
        u32::from(self.settings.mtu)
    }

    /// The bridge is there, ours and up.
    pub(super) async fn bridge(&self, repairs: &mut Vec<String>) -> Result<Link, String> {
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
                    made.addresses.clear();
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
                // The kernel takes IPv6 addresses away with that.
                made.addresses.clear();
            }
        }
        if link.mtu != self.mtu() {
            let set = self.links.set_mtu(&link, self.mtu()).await;
            set.map_err(|error| permitted(&error.to_string()))?;
        }
        self.keep_vlan(&link, made.bridge == Some(link.index), repairs)
            .await;
        made.bridge = Some(link.index);
        self.index.store(link.index, Ordering::SeqCst);
        // What failed is told when the addresses are looked at.
        let _ = ipv6::keep(name, self.settings.ipv6.prefix().is_some());
        Ok(link)
    }

    /// The bridge tells VLANs apart where the kernel can; that is known from its first making on.
    async fn keep_vlan(&self, bridge: &Link, known: bool, repairs: &mut Vec<String>) {
        let (name, vlan) = (&bridge.name, self.settings.vlan_id);
        if vlan.is_some() && self.vlan_missing.get().is_some_and(Option::is_some) {
            return;
        }
        let missing = match vlan::keep(&self.links, bridge, vlan).await {
            Ok(strayed) => {
                if strayed && known {
                    let kept = vlan.map_or("no VLAN".to_owned(), |vlan| format!("VLAN {vlan}"));
                    repairs.push(format!(
                        "the bridge {name} did not keep to {kept} any more: it does again"
                    ));
                }
                vlan::missing(bridge, vlan)
            }
            Err(error) => {
                tracing::warn!(%error, "the bridge does not keep to its VLAN");
                Some(vlan::untagged(vlan, &error.to_string()))
            }
        };
        // What failed later than at first is tried again by the next settling.
        let _ = self.vlan_missing.set(missing);
    }

    async fn address(&self, bridge: &Link, repairs: &mut Vec<String>) -> Result<(), String> {
        let pool = &self.settings.pool;
        let gateway = (IpAddr::V4(pool.gateway()), pool.prefix());
        self.hold(bridge, &[gateway], repairs).await
    }

    /// The bridge has these addresses with prefixes of these lengths.
    pub(super) async fn hold(
        &self,
        bridge: &Link,
        wanted: &[(IpAddr, u8)],
        repairs: &mut Vec<String>,
    ) -> Result<(), String> {
        let told = |error: LinkError| error.to_string();
        let there = self.links.addresses(bridge.index).await.map_err(told)?;
        let mut made = self.made.lock().await;
        for (address, prefix) in wanted.iter().filter(|one| !there.contains(one)) {
            let add = self
                .links
                .add_address(bridge.index, *address, *prefix)
                .await;
            add.map_err(told)?;
            if !made.addresses.insert(*address) {
                let name = &bridge.name;
                repairs.push(format!(
                    "the address {address} of the bridge {name} was removed: it is there again"
                ));
            }
        }
        made.addresses
            .extend(wanted.iter().map(|(address, _)| *address));
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
        let told = |error: LinkError| error.to_string();
        let links = self.links.all().await.map_err(told)?;
        let ours: BTreeSet<_> = plan.ports.iter().map(|port| port.tap.as_str()).collect();
        let mut there = BTreeSet::new();
        let mut again = 0;
        for link in links
            .iter()
            .filter(|link| ours.contains(link.name.as_str()))
        {
            there.insert(link.name.clone());
            if link.master == Some(bridge.index) && link.up && link.mtu == self.mtu() {
                continue;
            }
            // One that vanishes at this moment was on its way out with its QEMU.
            if let Err(error) = self
                .links
                .attach(&link.name, bridge.index, self.mtu())
                .await
            {
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

    /// Every TAP that is there holds its guest to its limits. Answers what cannot be held.
    async fn limits(
        &self,
        plan: &NetworkPlan,
        repairs: &mut Vec<String>,
    ) -> Result<Vec<String>, String> {
        let limited = plan.ports.iter().map(|port| &port.limits);
        let missing: BTreeSet<_> = limited.filter_map(|all| self.unlimited.of(all)).collect();
        let mut trouble: Vec<_> = missing.into_iter().collect();
        if self.unlimited.inbound.is_some() {
            return Ok(trouble);
        }
        let mut made = self.made.lock().await;
        let held = shaping::settle(&self.links, plan, &mut made.shapes).await;
        let held = held.map_err(|error| error.to_string())?;
        if held.again > 0 {
            repairs.push(format!(
                "the limits of {} network cards had been changed by somebody: they are held again",
                held.again
            ));
        }
        trouble.extend(held.problem);
        Ok(trouble)
    }

    async fn rules(
        &self,
        touched: bool,
        plan: &NetworkPlan,
        repairs: &mut Vec<String>,
    ) -> Result<(), String> {
        let around = Surroundings {
            bridge: &self.settings.bridge,
            uplink: self.settings.uplink.as_deref(),
            pool: &self.settings.pool,
            isolated: self.settings.isolated,
            prefix6: self.settings.ipv6.prefix(),
            limits: self.unlimited.outbound.is_none(),
            nat: self.settings.nat,
        };
        let script = ruleset::script(&around, plan);
        let table = ruleset::table(&self.settings.bridge);
        let mut made = self.made.lock().await;
        let told = |error: io::Error| format!("the firewall: {error}");
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

    pub(super) async fn settle(
        &self,
        plan: &NetworkPlan,
        running: Vec<TapName>,
    ) -> Result<Settled, NetworkError> {
        // Asked once, for all that looks at rules: a notice that comes from here on is the next
        // look's.
        let touched = self.rules_touched.swap(false, Ordering::SeqCst);
        let done = self.settle_after(touched, plan, running).await;
        if done.is_err() {
            self.rules_touched.store(true, Ordering::SeqCst);
        }
        done
    }

    async fn settle_after(
        &self,
        touched: bool,
        plan: &NetworkPlan,
        running: Vec<TapName>,
    ) -> Result<Settled, NetworkError> {
        let mut repairs = Vec::new();
        let bridge = self.bridge(&mut repairs).await.map_err(NetworkError)?;
        let address = self.address(&bridge, &mut repairs).await;
        address.map_err(NetworkError)?;
        let ipv6 = self.ipv6(&bridge, &mut repairs).await;
        // Before the ports: no frame of a guest passes without them.
        let rules = self.rules(touched, plan, &mut repairs).await;
        rules.map_err(NetworkError)?;
        let lost = self.ports(&bridge, plan, running, &mut repairs).await;
        let lost = lost.map_err(NetworkError)?;
        let uplink = self.vlan(&bridge, plan, &mut repairs).await;
        let uplink = uplink.map_err(NetworkError)?;
        let limits = self.limits(plan, &mut repairs).await;
        let mut trouble = limits.map_err(NetworkError)?;
        trouble.extend(ipv6);
        trouble.extend(uplink);
        trouble.extend(route_packets().err());
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
            let ipv6 = self.settings.ipv6.prefix().is_some();
            let drops = self.firewall.who_drops(&table, &self.settings.bridge, ipv6);
            let drops = drops.await;
            self.note(|known| known.retain(|line| !line.starts_with("the chain ")));
            self.note(|known| known.extend(drops));
        }
        self.note(|known| {
            known.retain(|line| line.starts_with("the chain "));
            known.extend(trouble);
        });
        Ok(Settled {
            repairs,
            lost,
            ..Settled::default()
        })
    }

    fn note(&self, change: impl FnOnce(&mut Vec<String>)) {
        change(&mut self.trouble.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A locally administered address that follows from the bridge's name.
pub(super) fn bridge_mac(name: &str) -> [u8; 6] {
    let mut mac: [u8; 6] = [0x52, 0x57, 0, 0, 0, 0];
    for (at, byte) in name.bytes().enumerate() {
        let slot = &mut mac[2 + at % 4];
        *slot = slot.rotate_left(3) ^ byte;
    }
    mac
}

pub(super) fn permitted(error: &str) -> String {
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
