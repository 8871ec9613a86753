//! Networks. For now QEMU's user-mode network, or none.
//!
//! Must not: know of QEMU's options; the command line is made elsewhere.

use vman_actors::ports::{BoxFuture, Network, NetworkError};
use vman_model::{
    Incarnation, VmId,
    vm::{NetworkKind, NicClaim},
};

/// The first address that QEMU's built-in DHCP server gives (its default network is
/// 10.0.2.0/24). Each VM has this network to itself.
const USER_ADDRESS: &str = "10.0.2.15";

/// One card in QEMU's user-mode network for each VM, or no card. It holds nothing on the host, so
/// there is nothing to give back.
#[derive(Clone, Copy, Debug)]
pub struct UserNetwork {
    kind: NetworkKind,
}

impl UserNetwork {
    /// Each VM gets one card of this kind; with [`NetworkKind::None`] none.
    pub fn new(kind: NetworkKind) -> Self {
        Self { kind }
    }
}

impl Network for UserNetwork {
    fn claim(
        &self,
        _vm: VmId,
        _incarnation: Incarnation,
        mac: [u8; 6],
    ) -> BoxFuture<'static, Result<Vec<NicClaim>, NetworkError>> {
        let nics = match self.kind {
            NetworkKind::None => vec![],
            kind @ NetworkKind::User => vec![NicClaim {
                kind,
                mac,
                address: Some(USER_ADDRESS.to_owned()),
            }],
        };
        Box::pin(async move { Ok(nics) })
    }

    fn release(&self, _vm: VmId) -> BoxFuture<'static, Result<(), NetworkError>> {
        Box::pin(async { Ok(()) })
    }

    fn health(&self) -> BoxFuture<'static, Result<String, String>> {
        Box::pin(async { Ok("ok".to_owned()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_vm_gets_one_card_with_its_mac_or_none_and_asking_twice_is_the_same() {
        let vm = VmId::parse("a").unwrap();
        let mac = [0x52, 0x54, 0, 1, 2, 3];
        let user = UserNetwork::new(NetworkKind::User);
        let first = user.claim(vm.clone(), Incarnation(1), mac).await.unwrap();
        let again = user.claim(vm.clone(), Incarnation(1), mac).await.unwrap();
        assert_eq!(first, again);
        assert_eq!((first.len(), first[0].mac), (1, mac));
        let none = UserNetwork::new(NetworkKind::None);
        assert!(
            none.claim(vm.clone(), Incarnation(1), mac)
                .await
                .unwrap()
                .is_empty()
        );
        user.release(vm.clone()).await.unwrap();
        user.release(vm).await.unwrap();
        assert_eq!(user.health().await, Ok("ok".to_owned()));
    }
}
