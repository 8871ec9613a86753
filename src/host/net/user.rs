//! QEMU's user-mode network, or none.
//!
//! Must not: know of QEMU's options; the command line is made elsewhere.

use std::net::Ipv4Addr;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use vman_actors::ports::{
    BoxFuture, Network, NetworkError, NetworkFacts, NetworkSurvey, NicRequest, NicWish, Settled,
    Traffic,
};
use vman_model::vm::{NetworkKind, NicClaim};
use vman_model::{NetworkPlan, TapName, VmId};

/// The first address that QEMU's built-in DHCP server gives (its default network is
/// 10.0.2.0/24). Each VM has this network to itself.
const USER_ADDRESS: &str = "10.0.2.15";

/// One card in QEMU's user-mode network for each VM, or no card. It holds nothing on the host, so
/// there is nothing to give back.
#[derive(Clone, Debug)]
pub struct UserNetwork {
    kind: NetworkKind,
    reason: Option<String>,
}

impl UserNetwork {
    /// Each VM gets one card in user mode; with [`NetworkKind::None`] none. `reason` says why it
    /// is not on a bridge although that was welcome.
    pub fn new(kind: NetworkKind, reason: Option<String>) -> Self {
        Self { kind, reason }
    }
}

impl Network for UserNetwork {
    fn facts(&self) -> NetworkFacts {
        NetworkFacts::without_bridge(self.kind, self.reason.clone())
    }

    fn settle(
        &self,
        _: Arc<NetworkPlan>,
        _: Vec<TapName>,
    ) -> BoxFuture<'static, Result<Settled, NetworkError>> {
        Box::pin(async { Ok(Settled::default()) })
    }

    fn disturbances(&self) -> BoxStream<'static, ()> {
        futures_util::stream::pending().boxed()
    }

    fn claim(
        &self,
        request: NicRequest,
    ) -> BoxFuture<'static, Result<Vec<NicClaim>, NetworkError>> {
        let nics = match self.kind {
            NetworkKind::None => vec![],
            // Each card is in a network of its own, so their addresses are the same.
            NetworkKind::User | NetworkKind::Bridge => {
                let address = || Some(USER_ADDRESS.to_owned());
                let claim = |wish: &NicWish| wish.claimed(NetworkKind::User, address());
                request.nics.iter().map(claim).collect()
            }
        };
        Box::pin(async move { Ok(nics) })
    }

    fn release(&self, _vm: VmId) -> BoxFuture<'static, Result<(), NetworkError>> {
        Box::pin(async { Ok(()) })
    }

    fn answers(&self, _: Ipv4Addr, _: [u8; 6]) -> BoxFuture<'static, bool> {
        // QEMU's user-mode network lets nobody in.
        Box::pin(async { false })
    }

    fn traffic(&self, _: VmId, _: u8) -> BoxFuture<'static, Option<Traffic>> {
        Box::pin(async { None })
    }

    fn survey(&self) -> BoxFuture<'static, Result<NetworkSurvey, NetworkError>> {
        Box::pin(async { Ok(NetworkSurvey::default()) })
    }

    fn health(&self) -> BoxFuture<'static, Result<String, String>> {
        let health = match &self.reason {
            None => Ok("ok".to_owned()),
            Some(reason) => Err(format!("VMs have QEMU's user-mode network: {reason}")),
        };
        Box::pin(async { health })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vman_model::Incarnation;

    fn request() -> NicRequest {
        NicRequest {
            vm: VmId::parse("a").unwrap(),
            incarnation: Incarnation(1),
            nics: vec![NicWish {
                nic: 0,
                network: vman_model::NetworkName::default(),
                mac: [0x52, 0x54, 0, 1, 2, 3],
                address: None,
                limits: vman_model::network::NicLimits::default(),
            }],
            cpu_count: 1,
        }
    }

    #[tokio::test]
    async fn a_vm_gets_one_card_with_its_mac_or_none_and_asking_twice_is_the_same() {
        let user = UserNetwork::new(NetworkKind::User, None);
        let first = user.claim(request()).await.unwrap();
        let again = user.claim(request()).await.unwrap();
        assert_eq!(first, again);
        assert_eq!((first.len(), first[0].mac), (1, request().nics[0].mac));
        let none = UserNetwork::new(NetworkKind::None, None);
        assert!(none.claim(request()).await.unwrap().is_empty());
        user.release(request().vm).await.unwrap();
        user.release(request().vm).await.unwrap();
        assert_eq!(user.health().await, Ok("ok".to_owned()));
    }

    #[tokio::test]
    async fn a_fallback_says_why_in_its_facts_and_in_health() {
        let user = UserNetwork::new(NetworkKind::User, Some("not permitted".to_owned()));
        assert_eq!(user.facts().reason.as_deref(), Some("not permitted"));
        assert!(user.health().await.unwrap_err().contains("not permitted"));
    }
}
