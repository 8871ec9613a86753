//! One living QEMU: its process, and what is asked of it.
//!
//! Owns: the way to its monitor for whoever has a command. Must not: decide anything, or hold a
//! connection that was given up. Look next: `link.rs` for the conversation and its news, `hotplug`
//! for disks, `nics.rs` for network cards, `process.rs` for the pidfd.

use std::sync::Arc;
use std::time::Duration;

use qapi_qmp as qmp;
use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use vman_actors::ports::{
    BoxFuture, DiskAction, DiskError, Machine, MachineAction, MachineError, NewsSink, NicAction,
};
use vman_model::vm::{ProcessIdentity, SeenDisk};

use super::devices::Devices;
use super::hotplug::{self, Hotplug, Owner};
use super::link::{GRACE, Link, Nudge, Setting, millis, told};
use super::nics::Cards;
use super::process::Process;
use crate::host::qmp::{Client, QmpError};

/// Requests from commands to the conversation. One waits at a time in practice.
const NUDGES: usize = 8;

/// The adapter's [`Machine`].
pub(super) struct QemuMachine {
    process: Process,
    client: watch::Receiver<Option<Client>>,
    nudges: mpsc::Sender<Nudge>,
    hotplug: Hotplug,
    cards: Cards,
    within: Duration,
    task: AbortHandle,
}

impl Drop for QemuMachine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl QemuMachine {
    /// Begins the conversation; its news begin at once.
    pub(super) fn begin(process: Process, setting: Setting, news: NewsSink) -> Arc<Self> {
        let (client, published) = watch::channel(None);
        let (nudges, nudged) = mpsc::channel(NUDGES);
        let within = setting.deadlines.command;
        let owner = Owner {
            pid: process.identity().pid,
            disks: setting.disks.clone(),
        };
        let devices = Devices::new(published.clone(), nudges.clone(), within);
        let cards = Cards::new(devices.clone());
        let link = Link {
            setting,
            news,
            client,
            nudges: nudged,
            devices: devices.events(),
            told: None,
            deaf: false,
        };
        let task = tokio::spawn(link.run(process.clone())).abort_handle();
        Arc::new(Self {
            process,
            client: published,
            nudges,
            hotplug: Hotplug::new(devices, owner),
            cards,
            within,
            task,
        })
    }
}

impl QemuMachine {
    /// The present connection to its monitor.
    pub(super) fn client(&self) -> Option<Client> {
        self.client.borrow().clone()
    }

    /// Its network cards.
    pub(super) fn cards(&self) -> &Cards {
        &self.cards
    }

    /// Whether its process has ended.
    pub(super) fn is_gone(&self) -> bool {
        self.process.is_gone()
    }
}

impl Machine for QemuMachine {
    fn identity(&self) -> ProcessIdentity {
        self.process.identity().clone()
    }

    fn act(&self, action: MachineAction) -> BoxFuture<'static, Result<(), MachineError>> {
        let client = self.client.borrow().clone();
        let (nudges, within) = (self.nudges.clone(), self.within);
        Box::pin(async move {
            let client = client.ok_or(MachineError::Disconnected)?;
            let done = match action {
                MachineAction::Pause => client.run(&qmp::stop {}, within).await.map(drop),
                MachineAction::Resume => client.run(&qmp::cont {}, within).await.map(drop),
                MachineAction::Reset => client.run(&qmp::system_reset {}, within).await.map(drop),
                MachineAction::Powerdown => client
                    .run(&qmp::system_powerdown {}, within)
                    .await
                    .map(drop),
                MachineAction::Ping => return ping(&nudges, within).await,
            };
            done.map_err(|error| {
                if matches!(error, QmpError::NoAnswer { .. } | QmpError::NotSent { .. }) {
                    // A full queue of nudges says the same already.
                    let _ = nudges.try_send(Nudge::Suspect(error.to_string()));
                }
                told(error, within)
            })
        })
    }

    fn disk(&self, action: DiskAction) -> BoxFuture<'static, Result<(), DiskError>> {
        self.hotplug.begin(action)
    }

    fn nic(&self, action: NicAction) -> BoxFuture<'static, Result<(), DiskError>> {
        self.cards.begin(action)
    }

    fn disks(&self) -> BoxFuture<'static, Result<Vec<SeenDisk>, MachineError>> {
        let (client, within) = (self.client.borrow().clone(), self.within);
        Box::pin(async move {
            let client = client.ok_or(MachineError::Disconnected)?;
            let seen = hotplug::disks(&client, within).await;
            seen.map_err(|error| told(error, within))
        })
    }

    fn terminate(&self) {
        signal(&self.process, Signal::TERM);
    }

    fn kill(&self) {
        signal(&self.process, Signal::KILL);
    }
}

fn signal(process: &Process, signal: Signal) {
    if let Err(error) = process.signal(signal) {
        let pid = process.identity().pid;
        tracing::warn!(pid, signal = signal.as_raw(), %error, "qemu could not be signalled");
    }
}

/// The answer comes from the conversation itself, so that its news stay in order.
async fn ping(nudges: &mpsc::Sender<Nudge>, within: Duration) -> Result<(), MachineError> {
    let (reply, answer) = oneshot::channel();
    nudges
        .try_send(Nudge::Ping(reply))
        .map_err(|_| MachineError::Disconnected)?;
    match timeout(within + GRACE, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(MachineError::Disconnected),
        Err(_) => Err(MachineError::Timeout(millis(within))),
    }
}
