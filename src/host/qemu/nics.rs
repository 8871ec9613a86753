//! Network cards of a running QEMU.
//!
//! Owns: giving a card another TAP. QEMU notices nothing when a TAP is deleted, and cannot give a
//! card another netdev: the card is unplugged, its netdev replaced, and the card plugged anew with
//! the same MAC address in the same slot.

use std::os::fd::OwnedFd;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use vman_actors::ports::NicPlan;

use super::cmdline::{nic_device, nic_id, tap_netdev};
use super::machine::QemuMachine;
use crate::host::net::tap;
use crate::host::qmp::{Client, QmpError};

/// How long a guest may take to let go of its card; one without a driver never does.
const LET_GO: Duration = Duration::from_secs(10);
/// How often it is asked whether the guest has.
const LOOK: Duration = Duration::from_millis(20);

/// Why a card was not plugged anew.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReplaceError {
    #[error("no QMP connection")]
    Disconnected,
    #[error("the guest does not let go of it")]
    Held,
    #[error("{0}")]
    Qmp(#[from] QmpError),
    #[error("{0}")]
    Tap(#[from] tap::TapError),
    #[error("it has no TAP")]
    NoTap,
}

impl ReplaceError {
    /// Whether it is what a QEMU on its way out answers: its TAP goes before its process does.
    pub(super) fn is_of_the_end(&self) -> bool {
        matches!(self, Self::Disconnected | Self::Qmp(QmpError::Lost { .. }))
    }
}

pub(super) async fn replace_tap(
    machine: &QemuMachine,
    nic: &NicPlan,
    cpu_count: u32,
) -> Result<(), ReplaceError> {
    let client = machine.client().ok_or(ReplaceError::Disconnected)?;
    let within = machine.within();
    let id = nic_id(nic.slot);
    unplug(&client, &id, within).await?;
    let name = nic.tap.as_ref().ok_or(ReplaceError::NoTap)?;
    let opened = tap::open(name.as_str(), cpu_count)?;
    let queues = opened.queues.len();
    let given = give(&client, &format!("{id}-q"), opened.queues, within).await?;
    let vhost = give(&client, &format!("{id}-v"), opened.vhost, within).await?;
    let netdev = tap_netdev(&id, &given, &vhost);
    client.execute("netdev_add", Some(netdev), within).await?;
    let device = nic_device(nic, &id, queues);
    client.execute("device_add", Some(device), within).await?;
    Ok(())
}

/// Gives QEMU the descriptors; answers their names as a netdev wants them.
async fn give(
    client: &Client,
    prefix: &str,
    descriptors: Vec<OwnedFd>,
    within: Duration,
) -> Result<String, QmpError> {
    let mut names = Vec::new();
    for (number, descriptor) in descriptors.into_iter().enumerate() {
        let name = format!("{prefix}{number}");
        client.give(&name, descriptor, within).await?;
        names.push(name);
    }
    Ok(names.join(":"))
}

async fn unplug(client: &Client, id: &str, within: Duration) -> Result<(), ReplaceError> {
    let device = format!("dev-{id}");
    if is_there(client, &device, within).await? {
        let asked = client
            .execute("device_del", Some(json!({"id": device})), within)
            .await;
        match asked {
            // It is being unplugged already.
            Ok(_) | Err(QmpError::Refused { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let until = Instant::now() + LET_GO;
        while is_there(client, &device, within).await? {
            if Instant::now() > until {
                return Err(ReplaceError::Held);
            }
            sleep(LOOK).await;
        }
    }
    match client
        .execute("netdev_del", Some(json!({"id": id})), within)
        .await
    {
        // An attempt before this one came as far as this.
        Ok(_) | Err(QmpError::Refused { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn is_there(client: &Client, device: &str, within: Duration) -> Result<bool, QmpError> {
    let path = json!({"path": "/machine/peripheral"});
    let list = client.execute("qom-list", Some(path), within).await?;
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    let named = |entry: &Value| entry.get("name").and_then(Value::as_str) == Some(device);
    Ok(list.iter().any(named))
}
