//! What is done about damage, and telling it: whose TAPs have to be there,
//! another TAP for one that was deleted, the events.

use super::{NetworkArguments, NetworkState, event};
use crate::{
    ports::{NetworkError, NicPlan, Settled},
    store::Inventory,
};
use std::collections::BTreeMap;
use tokio::time::Instant;
use vman_model::{
    Cause, Change, EventKind, Incarnation, NetworkName, Origin, TapName, VmId,
    network::NicState,
    vm::{NetworkKind, Phase, VmRecord},
};

/// Gives one VM another TAP and tells it.
pub(super) async fn replace(
    arguments: NetworkArguments,
    tap: TapName,
    owner: Owner,
    noticed: Instant,
) {
    let nic = owner.nic;
    let (vm, hypervisor) = (owner.vm, &arguments.hypervisor);
    let replaced = hypervisor.replace_tap(vm.clone(), owner.incarnation, nic, owner.cpu_count);
    match replaced.await {
        Ok(true) => {
            let detail = format!(
                "the TAP {tap} of VM {vm} was deleted by somebody: its network card was plugged anew with another"
            );
            let detail = healed(&detail, noticed);
            told(&arguments, EventKind::NetworkHealed, detail).await;
        }
        // Its QEMU was on its way out: the TAP went with it.
        Ok(false) => {}
        Err(error) => {
            tracing::warn!(vm_id = %vm, %error, "a lost TAP could not be replaced");
        }
    }
}

impl NetworkState {
    /// What a settling that failed as a whole has come to.
    pub(super) fn nothing_settled(&self, error: &NetworkError) -> Settled {
        let bridges = self.arguments.network.facts().bridges.into_iter();
        Settled {
            failed: bridges
                .map(|bridge| (bridge.network, error.clone()))
                .collect(),
            ..Settled::default()
        }
    }

    /// Tells which networks have begun and ceased to fail.
    pub(super) fn note_failures(
        &mut self,
        failing: BTreeMap<NetworkName, NetworkError>,
        noticed: Instant,
    ) {
        let before = std::mem::replace(&mut self.failing, failing);
        let ceased = before
            .iter()
            .filter(|(name, _)| !self.failing.contains_key(*name));
        for (_, problem) in ceased {
            let repair = format!("the network works again; it was: {problem}");
            self.tell(EventKind::NetworkHealed, &healed(&repair, noticed));
        }
        let news = self
            .failing
            .iter()
            .filter(|(name, problem)| before.get(*name) != Some(problem));
        for (_, problem) in news {
            self.tell(EventKind::NetworkFailed, &problem.to_string());
        }
    }
}

/// What was repaired, and how long that took from the notice of it on.
pub(super) fn healed(repair: &str, noticed: Instant) -> String {
    let took = noticed.elapsed().as_millis();
    format!("{repair} (healed {took} ms after it was noticed)")
}

pub(super) async fn told(arguments: &NetworkArguments, kind: EventKind, detail: String) {
    tracing::warn!(
        event = kind.as_str(),
        detail,
        "the network on the host was changed"
    );
    let cause = Cause::new(Origin::Daemon, "settle");
    let event = event(arguments.clock.as_ref(), kind, detail, cause);
    let change = Change {
        event: Some(event),
        ..Change::default()
    };
    if let Err(error) = arguments.store.commit(change).await {
        tracing::warn!(%error, "cannot record what was done to the network");
    }
}

/// Whose a TAP is.
#[derive(Clone)]
pub(super) struct Owner {
    pub(super) vm: VmId,
    pub(super) incarnation: Incarnation,
    pub(super) nic: NicPlan,
    pub(super) cpu_count: u32,
}

/// The TAPs that have to be there, and whose they are.
pub(super) fn running(inventory: &Inventory) -> BTreeMap<TapName, Owner> {
    let settled = |phase| matches!(phase, Phase::Running | Phase::Paused | Phase::Stopping);
    let vms = inventory.vms.values().map(|row| &row.value);
    vms.filter(|vm| settled(vm.phase)).flat_map(cards).collect()
}

/// A VM's cards on a bridge, but for those that are just coming or going.
fn cards(vm: &VmRecord) -> impl Iterator<Item = (TapName, Owner)> {
    let claimed = vm.claim.iter().flat_map(|claim| &claim.nics);
    claimed.filter_map(|held| {
        let mut further = vm.nics.iter();
        let moving = further.any(|nic| nic.number == held.nic && nic.state != NicState::Attached);
        if moving || held.kind != NetworkKind::Bridge {
            return None;
        }
        let link = vm.link_of(held.nic)?;
        let owner = Owner {
            vm: vm.id.clone(),
            incarnation: vm.incarnation,
            nic: NicPlan::of(&vm.id, held.nic, held.kind, held.mac, link),
            cpu_count: vm.spec.size.cpu_count,
        };
        Some((TapName::of(&vm.id, held.nic), owner))
    })
}
