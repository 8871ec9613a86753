//! Whose start is held back until it is its turn: the gate between a claim and
//! its permit to launch.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;
use vman_model::VmId;

/// The VMs that are held. Nobody's claim passes before it is known whether the
/// host was just booted.
#[derive(Default)]
pub struct StartTurns {
    held: Mutex<Option<BTreeSet<VmId>>>,
    /// Wakes those who wait in the order they came; a watch channel would wake
    /// them in an order of its own each time.
    changed: Notify,
}

impl StartTurns {
    fn held(&self) -> MutexGuard<'_, Option<BTreeSet<VmId>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are held, all others go.
    pub(super) fn hold(&self, vms: BTreeSet<VmId>) {
        *self.held() = Some(vms);
        self.changed.notify_waiters();
    }

    /// Waits until the VM is not held (any more).
    pub async fn wait(&self, vm: &VmId) {
        loop {
            // Before the look: what changes after it is heard.
            let changed = self.changed.notified();
            let goes = self.held().as_ref().is_some_and(|held| !held.contains(vm));
            if goes {
                return;
            }
            changed.await;
        }
    }
}
