//! Disks that come and go while a QEMU lives.
//!
//! Owns: one piece of work at a time for each disk, and whose its file is meanwhile. Must not: decide
//! which disk goes where, or keep a connection that its machine has given up.
//!
//! | work (`work.rs`) | is |
//! |---|---|
//! | plug | `blockdev-add`, `device_add` in one go; if the second fails, `blockdev-del` |
//! | unplug | `device_del`, `DEVICE_DELETED` awaited, `blockdev-del` |
//! | resize | `block_resize` |
//! | limit | `block_set_io_throttle` |
//!
//! Look next: `seen.rs` for what QEMU is asked when nobody knows.

mod seen;
mod work;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Mutex as Turn, broadcast, mpsc, watch};
use vman_actors::ports::{BoxFuture, DiskAction, DiskError};
use vman_model::DiskId;

pub(super) use self::seen::{disk_of_node, disks};
use self::work::Work;
pub(super) use self::work::throttle;
use super::link::Nudge;
use crate::host::jail;
use crate::host::qmp::{Client, Event};

/// Events kept for those who wait: one a disk, and there are eight.
const EVENTS: usize = 64;

/// The devices of ours among all.
const DEVICE_PREFIX: &str = "dev-disk-";

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

    /// The disk whose device has left the machine.
    pub(super) fn deleted_disk(&self) -> Option<DiskId> {
        match self {
            Self::Deleted(device) => disk_of_device(device),
            Self::Refused(_) => None,
        }
    }
}

pub(super) fn disk_of_device(device: &str) -> Option<DiskId> {
    DiskId::parse(device.strip_prefix(DEVICE_PREFIX)?).ok()
}

type Turns = Arc<Mutex<HashMap<DiskId, Weak<Turn<()>>>>>;

/// The work on one machine's disks.
pub(super) struct Hotplug {
    client: watch::Receiver<Option<Client>>,
    nudges: mpsc::Sender<Nudge>,
    events: broadcast::Sender<DeviceEvent>,
    turns: Turns,
    within: Duration,
    owner: Owner,
}

/// Whose the files of disks are while they are plugged in.
#[derive(Clone)]
pub(super) struct Owner {
    /// The QEMU.
    pub(super) pid: u32,
    /// Where disks' files are.
    pub(super) disks: PathBuf,
}

impl Owner {
    /// The QEMU may run under a user of its own, which has to own what it opens.
    async fn hand(&self, path: PathBuf) -> Result<(), DiskError> {
        let pid = self.pid;
        // Whoever made the plan has just opened the file: this waits for no storage.
        if jail::has_disk(pid, &path).unwrap_or(false) {
            return Ok(());
        }
        let handed = tokio::task::spawn_blocking(move || jail::hand_disk(pid, &path)).await;
        let handed = handed.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        handed.map_err(|error| {
            DiskError::Refused(format!("its file cannot be handed to QEMU: {error}"))
        })
    }

    /// A QEMU that has let go of a disk shall not be able to open it again.
    async fn take(&self, disk: &DiskId) {
        let files = DISK_SUFFIXES.map(|suffix| self.disks.join(format!("{disk}.{suffix}")));
        let taken = tokio::task::spawn_blocking(move || {
            let mut there = files.iter().filter(|file| file.exists());
            there.try_for_each(|file| jail::take_disk(file))
        });
        if let Ok(Err(error)) = taken.await {
            tracing::warn!(disk_id = %disk, %error, "a disk's file cannot be taken back from QEMU's user");
        }
    }
}

/// How disks' files end.
const DISK_SUFFIXES: [&str; 2] = ["qcow2", "raw"];

impl Hotplug {
    pub(super) fn new(
        client: watch::Receiver<Option<Client>>,
        nudges: mpsc::Sender<Nudge>,
        within: Duration,
        owner: Owner,
    ) -> Self {
        Self {
            owner,
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

    fn turn(&self, disk: &DiskId) -> Arc<Turn<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(disk).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::new(Turn::new(()));
        turns.insert(disk.clone(), Arc::downgrade(&turn));
        turn
    }

    /// Begins a piece of work. It ends with the connection it began on.
    pub(super) fn begin(&self, action: DiskAction) -> BoxFuture<'static, Result<(), DiskError>> {
        let Some(disk) = disk_of(&action) else {
            return Box::pin(async { Err(refused("its device has no disk's name")) });
        };
        let turn = self.turn(&disk);
        let (mut connection, within) = (self.client.clone(), self.within);
        let client = connection.borrow_and_update().clone();
        let (nudges, heard) = (self.nudges.clone(), self.events.subscribe());
        let owner = self.owner.clone();
        Box::pin(async move {
            let Some(client) = client else {
                return Err(refused("there is no QMP connection"));
            };
            let work = Work {
                owner,
                client,
                within,
                disk,
            };
            let done = async {
                let _turn = turn.lock().await;
                work.run(action, heard).await
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

fn disk_of(action: &DiskAction) -> Option<DiskId> {
    match action {
        DiskAction::Plug(plan) => disk_of_device(&plan.device),
        DiskAction::Unplug(disk) | DiskAction::Resize(disk, _) | DiskAction::Limit(disk, _) => {
            Some(disk.clone())
        }
    }
}

fn refused(why: &str) -> DiskError {
    DiskError::Refused(why.to_owned())
}
