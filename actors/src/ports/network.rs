//! The network as the tree sees it. The NetworkActor owns it; for now a VM is
//! given QEMU's user-mode network.

use super::BoxFuture;
use vman_model::{Incarnation, VmId, vm::NicClaim};

/// Why the network could not be had or given back, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NetworkError(pub String);

/// Connects VMs to networks.
pub trait Network: Send + Sync + 'static {
    /// The network cards for one life of a VM. Idempotent by VM and incarnation.
    fn claim(
        &self,
        vm: VmId,
        incarnation: Incarnation,
        mac: [u8; 6],
    ) -> BoxFuture<'static, Result<Vec<NicClaim>, NetworkError>>;

    /// Gives back whatever the VM holds. Idempotent.
    fn release(&self, vm: VmId) -> BoxFuture<'static, Result<(), NetworkError>>;

    /// `ok`, or the sentence what is degraded, for health.
    fn health(&self) -> BoxFuture<'static, Result<String, String>>;
}
