//! The networks of this host, each with a bridge of its own: the [`Network`] port.
//!
//! Owns: which network a card, a plan or a question belongs to. Must not: know how a bridge is made
//! (`bridge.rs`). Networks are kept from each other by their rules: each lets nothing new in from
//! elsewhere (`ruleset.rs`).

use std::net::Ipv4Addr;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::{BoxStream, select_all};
use vman_actors::ports::{
    BoxFuture, Network, NetworkError, NetworkFacts, NetworkSurvey, NicRequest, Settled, Traffic,
    Unlimited,
};
use vman_model::vm::{NetworkKind, NicClaim};
use vman_model::{NetworkName, NetworkPlan, TapName, VmId, network::MAX_NICS};

use super::bridge::{BridgeNetwork, BridgeSettings};
use super::tap::Taps;

/// All networks; that of VMs that ask for no other is the first.
#[derive(Clone)]
pub struct BridgeNetworks {
    all: Arc<[BridgeNetwork]>,
    taps: Arc<Taps>,
    /// The same kernel holds all cards' limits.
    unlimited: Unlimited,
}

impl BridgeNetworks {
    /// Makes or takes over every bridge. The error says why one cannot be, in a sentence.
    pub async fn open(settings: Vec<BridgeSettings>, taps: Arc<Taps>) -> Result<Self, String> {
        let mut all = Vec::new();
        for settings in settings {
            all.push(BridgeNetwork::open(settings, taps.clone()).await?);
        }
        Ok(Self {
            unlimited: all
                .first()
                .map(BridgeNetwork::unlimited)
                .unwrap_or_default(),
            all: all.into(),
            taps,
        })
    }

    fn of(&self, network: &NetworkName) -> Result<&BridgeNetwork, NetworkError> {
        let mut all = self.all.iter();
        let found = all.find(|bridge| bridge.name() == network);
        found.ok_or_else(|| NetworkError(format!("the network {network} is not configured")))
    }

    async fn settle_all(&self, plan: &NetworkPlan, running: &[TapName]) -> Settled {
        let mut done = Settled::default();
        for bridge in self.all.iter() {
            match bridge.settle(plan, running).await {
                Ok(settled) => {
                    done.repairs.extend(settled.repairs);
                    done.lost.extend(settled.lost);
                }
                Err(NetworkError(why)) => {
                    let network = bridge.name();
                    let why = format!("the network {network}: {why}");
                    done.failed.insert(network.clone(), NetworkError(why));
                }
            }
        }
        done
    }

    async fn claim_all(&self, request: NicRequest) -> Result<Vec<NicClaim>, NetworkError> {
        let mut claims = Vec::new();
        for wish in &request.nics {
            let tap = TapName::of(&request.vm, wish.nic);
            let bridge = self.of(&wish.network)?;
            bridge
                .ready(&tap, request.cpu_count, wish.limits.inbound)
                .await?;
            let address = wish.address.map(|address| address.to_string());
            claims.push(wish.claimed(NetworkKind::Bridge, address));
        }
        Ok(claims)
    }

    async fn survey_all(&self) -> Result<NetworkSurvey, NetworkError> {
        let Some(first) = self.all.first() else {
            return Ok(NetworkSurvey::default());
        };
        let links = first.links().all().await;
        let links = links.map_err(|error| NetworkError(error.to_string()))?;
        let mut whole = NetworkSurvey::default();
        for bridge in self.all.iter() {
            let seen = bridge.survey(&links);
            whole.bridges.extend(seen.bridges);
            whole.foreign.extend(seen.foreign);
            for tap in seen.taps {
                match whole.taps.iter_mut().find(|known| known.name == tap.name) {
                    Some(known) => known.attached |= tap.attached,
                    None => whole.taps.push(tap),
                }
            }
        }
        Ok(whole)
    }
}

impl Network for BridgeNetworks {
    fn facts(&self) -> NetworkFacts {
        NetworkFacts {
            kind: NetworkKind::Bridge,
            reason: None,
            unlimited: self.unlimited.clone(),
            vhost_missing: self.all.first().and_then(BridgeNetwork::vhost_missing),
            bridges: self.all.iter().map(BridgeNetwork::facts).collect(),
        }
    }

    fn settle(
        &self,
        plan: Arc<NetworkPlan>,
        running: Vec<TapName>,
    ) -> BoxFuture<'static, Result<Settled, NetworkError>> {
        let networks = self.clone();
        Box::pin(async move { Ok(networks.settle_all(&plan, &running).await) })
    }

    fn disturbances(&self) -> BoxStream<'static, ()> {
        select_all(self.all.iter().map(BridgeNetwork::disturbances)).boxed()
    }

    fn claim(
        &self,
        request: NicRequest,
    ) -> BoxFuture<'static, Result<Vec<NicClaim>, NetworkError>> {
        let networks = self.clone();
        Box::pin(async move { networks.claim_all(request).await })
    }

    fn release(&self, vm: VmId) -> BoxFuture<'static, Result<(), NetworkError>> {
        // A TAP goes with its QEMU; one whose QEMU never came goes with our descriptors.
        let names = (0..MAX_NICS).map(|nic| TapName::of(&vm, nic));
        let taps: Vec<_> = names
            .filter_map(|name| self.taps.take(name.as_str()))
            .collect();
        if taps.is_empty() {
            return Box::pin(async { Ok(()) });
        }
        Box::pin(async move {
            let closed = tokio::task::spawn_blocking(move || drop(taps)).await;
            closed.map_err(|error| NetworkError(error.to_string()))
        })
    }

    fn answers(&self, address: Ipv4Addr, mac: [u8; 6]) -> BoxFuture<'static, bool> {
        let networks = self.clone();
        Box::pin(async move {
            let mut all = networks.all.iter();
            match all.find(|bridge| bridge.pool().holds(address)) {
                Some(bridge) => bridge.answers(address, mac).await,
                None => false,
            }
        })
    }

    fn traffic(&self, vm: VmId, nic: u8) -> BoxFuture<'static, Option<Traffic>> {
        let links = self.all.first().map(|bridge| bridge.links().clone());
        Box::pin(async move {
            let link = links?.find(TapName::of(&vm, nic).as_str()).await.ok()??;
            Some(link.traffic)
        })
    }

    fn survey(&self) -> BoxFuture<'static, Result<NetworkSurvey, NetworkError>> {
        let networks = self.clone();
        Box::pin(async move { networks.survey_all().await })
    }

    fn health(&self) -> BoxFuture<'static, Result<String, String>> {
        let mut trouble: Vec<_> = self.all.iter().flat_map(BridgeNetwork::trouble).collect();
        // What concerns the host as a whole is told once.
        trouble.sort();
        trouble.dedup();
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
