//! Whose start is held back until it is its turn: the gate between a claim and
//! its permit to launch.

use std::collections::BTreeSet;
use tokio::sync::watch;
use vman_model::VmId;

/// The VMs that are held. Nobody's claim passes before it is known whether the
/// host was just booted.
#[derive(Default)]
pub struct StartTurns(watch::Sender<Option<BTreeSet<VmId>>>);

impl StartTurns {
    /// These are held, all others go.
    pub(super) fn hold(&self, vms: BTreeSet<VmId>) {
        self.0.send_replace(Some(vms));
    }

    /// Waits until the VM is not held (any more).
    pub async fn wait(&self, vm: &VmId) {
        let goes =
            |held: &Option<BTreeSet<VmId>>| held.as_ref().is_some_and(|held| !held.contains(vm));
        // The sender is `self`, so it is there.
        let _ = self.0.subscribe().wait_for(goes).await;
    }
}
