//! A network that gives every VM one card.

use super::world::World;
use crate::ports::{BoxFuture, Network, NetworkError};
use std::sync::Arc;
use vman_model::{
    Incarnation, VmId,
    vm::{NetworkKind, NicClaim},
};

pub(super) struct FakeNetwork {
    pub(super) world: Arc<World>,
    pub(super) daemon: u64,
}

impl Network for FakeNetwork {
    fn claim(
        &self,
        vm: VmId,
        incarnation: Incarnation,
        mac: [u8; 6],
    ) -> BoxFuture<'static, Result<Vec<NicClaim>, NetworkError>> {
        let (world, daemon) = (self.world.clone(), self.daemon);
        Box::pin(async move {
            let script = world.script(&vm);
            world.pause(daemon, script.claim_takes).await;
            if world.spend(&vm, |script| &mut script.claim_errors) {
                return Err(NetworkError(
                    "no address is free, as scripted: free one".to_owned(),
                ));
            }
            world.claim_network(&vm, incarnation);
            Ok(vec![NicClaim {
                kind: NetworkKind::User,
                mac,
                address: None,
            }])
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

    fn health(&self) -> BoxFuture<'static, Result<String, String>> {
        Box::pin(async { Ok("ok (simulated)".to_owned()) })
    }
}
