//! Network cards of a running QEMU: plugged in, taken out, their cables, and another TAP for a card.
//!
//! Owns: the order of QMP commands for one card, and their undoing. Must not: attach a TAP to a
//! bridge (the network does, once its rules know the card's address).
//!
//! | work | is |
//! |---|---|
//! | plug | `getfd` for each queue, `netdev_add`, `device_add`, `set_link` where it is down |
//! | unplug | `device_del`, `DEVICE_DELETED` awaited, `netdev_del` |
//! | link | `set_link` |
//! | another TAP | `netdev_del`, then unplug and plug |
//!
//! QEMU notices nothing when a TAP is deleted, and cannot give a card another netdev: the card is
//! plugged anew with the same MAC address in the same slot.

use std::collections::{BTreeSet, HashSet};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;
use vman_actors::ports::{BoxFuture, DiskError, NicAction, NicPlan, PortForward};
use vman_model::network::LinkState;
use vman_model::vm::NetworkKind;

use super::cmdline::{nic_device, nic_id, nic_name, tap_netdev, user_netdev};
use super::devices::{Answer, Devices, Monitor, refused};
use super::forwards;
use crate::host::net::tap::{self, TapDescriptors, TapError};
use crate::host::qmp::QmpError;

/// A TAP whose last descriptor was just closed is there a little longer (22 ms): how often, and how
/// long apart, opening it is tried.
const OPENINGS: u32 = 20;
const OPEN_AGAIN: Duration = Duration::from_millis(10);

/// What it is, in the words of refusals.
const CARD: &str = "network card";

/// The work on one machine's network cards.
#[derive(Clone)]
pub(super) struct Cards {
    devices: Devices,
    /// Slots whose card was taken out because that was asked for: another TAP that is on its way
    /// must not bring it back.
    taken_out: Arc<Mutex<HashSet<u8>>>,
}

impl Cards {
    pub(super) fn new(devices: Devices) -> Self {
        Self {
            devices,
            taken_out: Arc::default(),
        }
    }

    fn taken_out(&self) -> MutexGuard<'_, HashSet<u8>> {
        self.taken_out
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a piece of work. It ends with the connection it began on.
    pub(super) fn begin(&self, action: NicAction) -> BoxFuture<'static, Result<(), DiskError>> {
        let slot = match &action {
            NicAction::Plug(plan, _) => plan.slot,
            NicAction::Unplug(slot) | NicAction::Link(slot, _) => *slot,
        };
        let cards = self.clone();
        self.devices
            .begin(nic_name(slot), move |monitor| async move {
                match action {
                    NicAction::Plug(plan, cpu_count) => {
                        cards.taken_out().remove(&slot);
                        plug(&monitor, &plan, cpu_count).await
                    }
                    NicAction::Unplug(_) => {
                        unplug(&monitor, slot).await?;
                        cards.taken_out().insert(slot);
                        Ok(())
                    }
                    NicAction::Link(_, link) => set_link(&monitor, slot, link).await,
                }
            })
    }

    /// Lets a card in user mode forward these ports and no others.
    pub(super) fn forward(
        &self,
        slot: u8,
        ports: BTreeSet<PortForward>,
    ) -> BoxFuture<'static, Result<(), DiskError>> {
        self.devices
            .begin(nic_name(slot), move |monitor| async move {
                forwards::settle(&monitor, slot, &ports).await
            })
    }

    /// Gives a card another TAP for one that was deleted.
    pub(super) fn replace_tap(
        &self,
        plan: NicPlan,
        cpu_count: u32,
    ) -> BoxFuture<'static, Result<(), DiskError>> {
        let cards = self.clone();
        self.devices
            .begin(nic_name(plan.slot), move |monitor| async move {
                if cards.taken_out().contains(&plan.slot) {
                    return Ok(());
                }
                // The backend first: where a card with several queues is reset while theirs are
                // dead, QEMU ends itself (7.2: `virtio_net_set_queue_pairs` asserts).
                remove_backend(&monitor, plan.slot).await?;
                monitor.let_go(&nic_name(plan.slot), CARD).await?;
                plug(&monitor, &plan, cpu_count).await
            })
    }
}

async fn plug(monitor: &Monitor, plan: &NicPlan, cpu_count: u32) -> Result<(), DiskError> {
    if monitor.has(&nic_name(plan.slot)).await? {
        return Ok(());
    }
    // What an attempt before this one left: it would hold the TAP.
    remove_backend(monitor, plan.slot).await?;
    let done = add(monitor, plan, cpu_count).await;
    if let Err(DiskError::Refused(_)) = &done {
        remove_backend(monitor, plan.slot).await?;
    }
    done
}

async fn add(monitor: &Monitor, plan: &NicPlan, cpu_count: u32) -> Result<(), DiskError> {
    let id = nic_id(plan.slot);
    let (netdev, queues) = match plan.kind {
        NetworkKind::None => return Err(refused("there is no network to connect it to")),
        NetworkKind::User => (user_netdev(&id), 1),
        NetworkKind::Bridge => {
            let name = plan.tap.as_ref().ok_or_else(|| refused("it has no TAP"))?;
            let opened = open(name.as_str(), cpu_count).await?;
            let queues = opened.queues.len();
            let given = give(monitor, &format!("{id}-q"), opened.queues).await?;
            let vhost = give(monitor, &format!("{id}-v"), opened.vhost).await?;
            (tap_netdev(&id, &given, &vhost), queues)
        }
    };
    done(monitor.ask("netdev_add", netdev).await?)?;
    let device = nic_device(plan, &id, queues);
    done(monitor.ask("device_add", device).await?)?;
    match plan.link {
        LinkState::Up => Ok(()),
        LinkState::Down => set_link(monitor, plan.slot, LinkState::Down).await,
    }
}

fn done(answer: Answer) -> Result<(), DiskError> {
    match answer {
        Answer::Done => Ok(()),
        Answer::No(why) => Err(DiskError::Refused(why)),
    }
}

async fn open(name: &str, cpu_count: u32) -> Result<TapDescriptors, DiskError> {
    let mut tries = 1;
    loop {
        match tap::open(name, cpu_count) {
            Err(TapError::Held(_)) if tries < OPENINGS => sleep(OPEN_AGAIN).await,
            opened => return opened.map_err(|error| DiskError::Refused(error.to_string())),
        }
        tries += 1;
    }
}

/// Gives QEMU the descriptors; answers their names as a netdev wants them. One given again under a
/// name takes the place of the former.
async fn give(
    monitor: &Monitor,
    prefix: &str,
    descriptors: Vec<OwnedFd>,
) -> Result<String, DiskError> {
    let mut names = Vec::new();
    for (number, descriptor) in descriptors.into_iter().enumerate() {
        let name = format!("{prefix}{number}");
        let given = monitor.client.give(&name, descriptor, monitor.within).await;
        given.map_err(|error| match error {
            QmpError::Refused { desc, .. } => DiskError::Refused(desc),
            error => DiskError::Unknown(error.to_string()),
        })?;
        names.push(name);
    }
    Ok(names.join(":"))
}

async fn unplug(monitor: &Monitor, slot: u8) -> Result<(), DiskError> {
    monitor.let_go(&nic_name(slot), CARD).await?;
    remove_backend(monitor, slot).await
}

/// Takes away the netdev of a card that is not there, and descriptors that no netdev took.
async fn remove_backend(monitor: &Monitor, slot: u8) -> Result<(), DiskError> {
    let id = nic_id(slot);
    // Refused is: there is none.
    monitor.ask("netdev_del", json!({"id": id})).await?;
    for number in 0..tap::MAX_QUEUES {
        for kind in ["q", "v"] {
            let name = json!({"fdname": format!("{id}-{kind}{number}")});
            if let Answer::No(_) = monitor.ask("closefd", name).await? {
                // They are given in this order.
                return Ok(());
            }
        }
    }
    Ok(())
}

async fn set_link(monitor: &Monitor, slot: u8, link: LinkState) -> Result<(), DiskError> {
    done(monitor.ask("set_link", link_of(slot, link)).await?)
}

/// The arguments of `set_link`.
pub(super) fn link_of(slot: u8, link: LinkState) -> serde_json::Value {
    json!({"name": nic_name(slot), "up": link == LinkState::Up})
}
