//! A network that gives every VM one card: in user mode, or on a bridge that
//! looks as it was told last.

use super::world::World;
use crate::ports::{
    BoxFuture, BridgeFacts, Ipv6, Network, NetworkError, NetworkFacts, NetworkSurvey, NicRequest,
    NicWish, SeenBridge, SeenTap, Settled, Traffic, Unlimited,
};
use core::net::Ipv4Addr;
use futures_util::{StreamExt, stream::BoxStream};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use vman_model::{
    NetworkName, NetworkPlan, Pool, TapName, VmId,
    vm::{NetworkKind, NicClaim},
};

/// A bridge of the default network for these addresses, with nothing else that
/// can be configured.
#[must_use]
pub fn plain_bridge(pool: Pool) -> BridgeFacts {
    BridgeFacts {
        name: "br-x".to_owned(),
        pool,
        ipv6: Ipv6::Off,
        dns: vec![],
        isolated: false,
        network: NetworkName::default(),
        nat: true,
        mtu: 1500,
        vlan_id: None,
        vlan_missing: None,
        uplink: None,
    }
}

/// What the simulated host knows of its bridge.
#[derive(Default)]
pub(super) struct Bridge {
    things: Mutex<BridgeThings>,
    disturbed: Notify,
}

/// What there is, and what goes wrong.
#[derive(Default)]
pub(super) struct BridgeThings {
    pub(super) facts: Vec<BridgeFacts>,
    pub(super) plan: Arc<NetworkPlan>,
    pub(super) settlings: u64,
    pub(super) errors: u32,
    pub(super) failing: BTreeMap<NetworkName, NetworkError>,
    pub(super) repairs: Vec<String>,
    pub(super) lost: Vec<TapName>,
    /// Addresses whose guests do not answer.
    pub(super) silent: BTreeSet<Ipv4Addr>,
    /// Which limits of cards its kernel cannot hold.
    pub(super) unlimited: Unlimited,
    /// What a survey tells instead of what is there.
    pub(super) seen: Option<NetworkSurvey>,
}

impl Bridge {
    pub(super) fn things(&self) -> MutexGuard<'_, BridgeThings> {
        self.things.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn disturb(&self) {
        self.disturbed.notify_one();
    }
}

pub(super) struct FakeNetwork {
    pub(super) world: Arc<World>,
    pub(super) bridge: Arc<Bridge>,
    pub(super) daemon: u64,
}

impl FakeNetwork {
    fn taps(&self) -> Vec<SeenTap> {
        let held = &self.world.things().networks;
        let tap = |vm| SeenTap {
            name: TapName::of(vm, 0).to_string(),
            attached: true,
        };
        held.keys().map(tap).collect()
    }
}

impl Network for FakeNetwork {
    fn facts(&self) -> NetworkFacts {
        let bridges = self.bridge.things().facts.clone();
        let kind = if bridges.is_empty() {
            NetworkKind::User
        } else {
            NetworkKind::Bridge
        };
        let facts = NetworkFacts::without_bridge(kind, None);
        if bridges.is_empty() {
            return facts;
        }
        NetworkFacts {
            bridges,
            unlimited: self.bridge.things().unlimited.clone(),
            ..facts
        }
    }

    fn settle(
        &self,
        plan: Arc<NetworkPlan>,
        _: Vec<TapName>,
    ) -> BoxFuture<'static, Result<Settled, NetworkError>> {
        let (world, daemon, bridge) = (self.world.clone(), self.daemon, self.bridge.clone());
        Box::pin(async move {
            world.pause(daemon, std::time::Duration::ZERO).await;
            let mut things = bridge.things();
            things.settlings += 1;
            if things.errors > 0 {
                things.errors -= 1;
                return Err(NetworkError("the bridge refuses, as scripted".to_owned()));
            }
            things.plan = plan;
            Ok(Settled {
                repairs: std::mem::take(&mut things.repairs),
                lost: std::mem::take(&mut things.lost),
                failed: things.failing.clone(),
            })
        })
    }

    fn disturbances(&self) -> BoxStream<'static, ()> {
        let (world, daemon) = (self.world.clone(), self.daemon);
        futures_util::stream::unfold(self.bridge.clone(), move |bridge| {
            let world = world.clone();
            async move {
                bridge.disturbed.notified().await;
                if !world.is_present(daemon) {
                    // It is for the daemon that lives.
                    bridge.disturb();
                    std::future::pending::<()>().await;
                }
                Some(((), bridge))
            }
        })
        .boxed()
    }

    fn claim(
        &self,
        request: NicRequest,
    ) -> BoxFuture<'static, Result<Vec<NicClaim>, NetworkError>> {
        let (world, daemon) = (self.world.clone(), self.daemon);
        let kind = self.facts().kind;
        Box::pin(async move {
            let vm = request.vm;
            let script = world.script(&vm);
            world.pause(daemon, script.claim_takes).await;
            if world.spend(&vm, |script| &mut script.claim_errors) {
                return Err(NetworkError(
                    "no address is free, as scripted: free one".to_owned(),
                ));
            }
            world.claim_network(&vm, request.incarnation);
            let claim = |wish: NicWish| {
                let address = wish.address.map(|address| address.to_string());
                wish.claimed(kind, address)
            };
            Ok(request.nics.into_iter().map(claim).collect())
        })
    }

    fn release(&self, vm: VmId) -> BoxFuture<'static, Result<(), NetworkError>> {
        let (world, daemon) = (self.world.clone(), self.daemon);
        Box::pin(async move {
            world.pause(daemon, std::time::Duration::ZERO).await;
            world.release_network(&vm);
            Ok(())
        })
    }

    fn answers(&self, address: Ipv4Addr, _: [u8; 6]) -> BoxFuture<'static, bool> {
        let silent = self.bridge.things().silent.contains(&address);
        Box::pin(async move { !silent })
    }

    fn traffic(&self, _: VmId, _: u8) -> BoxFuture<'static, Option<Traffic>> {
        Box::pin(async { None })
    }

    fn survey(&self) -> BoxFuture<'static, Result<NetworkSurvey, NetworkError>> {
        let things = self.bridge.things();
        let bridge = |facts: &BridgeFacts| SeenBridge {
            name: facts.name.clone(),
            ours: true,
            up: true,
        };
        let survey = things.seen.clone().unwrap_or_else(|| NetworkSurvey {
            bridges: things.facts.iter().map(bridge).collect(),
            taps: if things.facts.is_empty() {
                Vec::new()
            } else {
                self.taps()
            },
            foreign: Vec::new(),
        });
        Box::pin(async { Ok(survey) })
    }

    fn health(&self) -> BoxFuture<'static, Result<String, String>> {
        Box::pin(async { Ok("ok (simulated)".to_owned()) })
    }
}
