//! What work on disks and on network cards of a living QEMU has in common.
//!
//! Owns: that work on one device is done one after the other and ends with the connection it began
//! on, and the waiting for a guest to let go. Must not: know what a device is made of. Look next:
//! `hotplug` (disks), `nics.rs`.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Mutex as Turn, OwnedMutexGuard, broadcast, mpsc, watch};
use tokio::time::{Instant, timeout_at};
use vman_actors::ports::{BoxFuture, DiskError};

use super::link::Nudge;
use crate::host::qmp::{Client, Event, QmpError};

/// How long a guest may take to let go of a device. A guest that listens needs 90 ms (7.2, TCG).
const RELEASE_DEADLINE: Duration = Duration::from_secs(10);
/// Events kept for those who wait: one a device, and there are fewer than sixteen. Room for each is
/// held as long as the VM runs; who misses one asks QEMU.
const EVENTS: usize = 16;

/// What QEMU tells of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DeviceEvent {
    /// It has left the machine.
    Deleted(String),
    /// The guest said no.
    Refused(String),
}

impl DeviceEvent {
    pub(super) fn of(event: &Event) -> Option<Self> {
        let device = event.data.get("device")?.as_str()?.to_owned();
        match event.name.as_str() {
            "DEVICE_DELETED" => Some(Self::Deleted(device)),
            "DEVICE_UNPLUG_GUEST_ERROR" => Some(Self::Refused(device)),
            _ => None,
        }
    }
}

type Turns = Arc<Mutex<HashMap<String, Weak<Turn<()>>>>>;

/// A turn on a device: the next piece of work on it begins when this is dropped.
pub(super) type DeviceTurn = OwnedMutexGuard<()>;

/// The work on one machine's devices.
#[derive(Clone)]
pub(super) struct Devices {
    client: watch::Receiver<Option<Client>>,
    nudges: mpsc::Sender<Nudge>,
    events: broadcast::Sender<DeviceEvent>,
    turns: Turns,
    within: Duration,
}

impl Devices {
    pub(super) fn new(
        client: watch::Receiver<Option<Client>>,
        nudges: mpsc::Sender<Nudge>,
        within: Duration,
    ) -> Self {
        Self {
            client,
            nudges,
            events: broadcast::channel(EVENTS).0,
            turns: Arc::default(),
            within,
        }
    }

    /// Where the conversation tells what it hears.
    pub(super) fn events(&self) -> broadcast::Sender<DeviceEvent> {
        self.events.clone()
    }

    fn turn(&self, device: String) -> Arc<Turn<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(&device).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::new(Turn::new(()));
        turns.insert(device, Arc::downgrade(&turn));
        turn
    }

    /// Begins a piece of work on a device. It ends with the connection it began on.
    pub(super) fn begin<W: Future<Output = Result<(), DiskError>> + Send>(
        &self,
        device: String,
        work: impl FnOnce(Monitor) -> W + Send + 'static,
    ) -> BoxFuture<'static, Result<(), DiskError>> {
        self.begin_in_turn(device, |monitor, turn| async move {
            let _turn = turn;
            work(monitor).await
        })
    }

    /// The same for work that gives the next its turn before it has ended.
    pub(super) fn begin_in_turn<W: Future<Output = Result<(), DiskError>> + Send>(
        &self,
        device: String,
        work: impl FnOnce(Monitor, DeviceTurn) -> W + Send + 'static,
    ) -> BoxFuture<'static, Result<(), DiskError>> {
        let turn = self.turn(device);
        let (mut connection, within) = (self.client.clone(), self.within);
        let client = connection.borrow_and_update().clone();
        let (nudges, heard) = (self.nudges.clone(), self.events.clone());
        Box::pin(async move {
            let Some(client) = client else {
                return Err(refused("there is no QMP connection"));
            };
            let monitor = Monitor {
                client,
                within,
                heard,
            };
            let done = async {
                let turn = turn.lock_owned().await;
                work(monitor, turn).await
            };
            tokio::select! {
                done = done => {
                    if let Err(DiskError::Unknown(why)) = &done {
                        // A full queue of nudges says the same already.
                        let _ = nudges.try_send(Nudge::Suspect(why.clone()));
                    }
                    done
                }
                // What was answered is answered: lost is only what comes after.
                _ = connection.changed() => {
                    Err(DiskError::Unknown("the connection was lost".to_owned()))
                }
            }
        })
    }
}

pub(super) fn refused(why: &str) -> DiskError {
    DiskError::Refused(why.to_owned())
}

pub(super) fn unknown(error: QmpError) -> DiskError {
    DiskError::Unknown(error.to_string())
}

/// What became of one command.
pub(super) enum Answer {
    Done,
    /// QEMU said no.
    No(String),
}

impl Answer {
    /// Why QEMU said no, if it did.
    pub(super) fn refusal(self) -> Option<String> {
        match self {
            Answer::Done => None,
            Answer::No(why) => Some(why),
        }
    }
}

/// The connection that a piece of work began on.
pub(super) struct Monitor {
    pub(super) client: Client,
    pub(super) within: Duration,
    heard: broadcast::Sender<DeviceEvent>,
}

impl Monitor {
    pub(super) async fn ask(&self, command: &str, arguments: Value) -> Result<Answer, DiskError> {
        let asked = self
            .client
            .execute(command, Some(arguments), self.within)
            .await;
        match asked {
            Ok(_) => Ok(Answer::Done),
            Err(QmpError::Refused { desc, .. }) => Ok(Answer::No(desc)),
            Err(error) => Err(unknown(error)),
        }
    }

    /// Whether the machine has a device of this name.
    pub(super) async fn has(&self, device: &str) -> Result<bool, DiskError> {
        let path = json!({"path": "/machine/peripheral"});
        let list = self
            .client
            .execute("qom-list", Some(path), self.within)
            .await;
        let list = list.map_err(unknown)?;
        let mut entries = list.as_array().into_iter().flatten();
        Ok(entries.any(|entry| entry.get("name").and_then(Value::as_str) == Some(device)))
    }

    /// Asks the guest to let go of a device and waits until it has. One that is gone already is
    /// done. `what` it is, in a word.
    pub(super) async fn let_go(&self, device: &str, what: &str) -> Result<(), DiskError> {
        // Before it is asked: it may let go at once.
        let heard = self.heard.subscribe();
        if let Answer::No(why) = self.ask("device_del", json!({"id": device})).await? {
            // It is gone already, or it is asked for already and the guest has not answered.
            if !self.has(device).await? {
                return Ok(());
            }
            tracing::debug!(device, why, "QEMU asks the guest already");
        }
        self.wait_for_guest(heard, device, what).await
    }

    async fn wait_for_guest(
        &self,
        mut heard: broadcast::Receiver<DeviceEvent>,
        device: &str,
        what: &str,
    ) -> Result<(), DiskError> {
        let until = Instant::now() + RELEASE_DEADLINE;
        loop {
            match timeout_at(until, heard.recv()).await {
                Ok(Ok(DeviceEvent::Deleted(gone))) if gone == device => return Ok(()),
                Ok(Ok(DeviceEvent::Refused(kept))) if kept == device => {
                    return Err(DiskError::Held(format!(
                        "the guest refused to let go of the {what}; it is still attached"
                    )));
                }
                Ok(Ok(_)) => {}
                Ok(Err(broadcast::error::RecvError::Lagged(_))) => {
                    if !self.has(device).await? {
                        return Ok(());
                    }
                }
                Ok(Err(broadcast::error::RecvError::Closed)) => {
                    return Err(DiskError::Unknown("the machine is gone".to_owned()));
                }
                Err(_) if !self.has(device).await? => return Ok(()),
                Err(_) => {
                    let seconds = RELEASE_DEADLINE.as_secs();
                    return Err(DiskError::Held(format!(
                        "the guest did not let go of the {what} within {seconds} s; it is still \
                         attached: try again when the guest runs and listens"
                    )));
                }
            }
        }
    }
}
