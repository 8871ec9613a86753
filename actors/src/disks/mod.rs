//! DiskRegistry: owns every disk and image file under the storage path.
//!
//! Owns: the making and removing of files, one at a time per file; the images'
//! uploads. Records of disks and images are rows of the store.
//! Must not: wait inside a handler for a file (work runs in tasks and answers
//! its caller), or know what a VM is doing.
//! Look next: `handle.rs` for what others ask of it, `disk.rs` and
//! `making.rs` for free-standing disks.

mod disk;
mod handle;
mod making;
mod turn;

pub use disk::{DiskFault, check_growth};
pub use handle::{DisksHandle, DisksSlot, ImageError, LastSeen, SeenFiles, StartedUpload};
pub use making::NewDisk;
pub use turn::{FileTurn, HeldFile};

use crate::{
    mailbox::{Actor, ActorRef},
    ports::{DiskFiles, FileError, ImageFiles, NewDiskFile},
    slot::Slot,
    store::StoreHandle,
};
use ractor::ActorProcessingErr;
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::{Mutex, oneshot};
use vman_model::{DiskFormat, DiskId};

/// What the DiskRegistry is told.
pub enum DisksMsg {
    /// Make the file of a disk unless it is there; nobody else works on it until the answer is dropped.
    Ensure(NewDiskFile, oneshot::Sender<Result<HeldFile, FileError>>),
    /// Remove the file of a disk.
    Remove(DiskId, DiskFormat, oneshot::Sender<Result<(), FileError>>),
    /// A turn on this disk's file has ended.
    Done(DiskId),
    /// Look at all files.
    Look,
    /// They have been looked at.
    Looked,
}

/// How often the files are looked at, for what they take on the storage.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What the DiskRegistry needs.
#[derive(Clone)]
pub struct DisksArguments {
    /// Disk files.
    pub disks: Arc<dyn DiskFiles>,
    /// Image files.
    pub images: Arc<dyn ImageFiles>,
    /// The store, for what images are known.
    pub store: StoreHandle,
    /// Where the actor's present ref is published.
    pub slot: Arc<DisksSlot>,
}

/// What the DiskRegistry holds: a turn for each file that is worked on.
pub struct DisksState {
    files: Arc<dyn DiskFiles>,
    turns: HashMap<DiskId, (Arc<Mutex<()>>, usize)>,
    store: StoreHandle,
    slot: Arc<DisksSlot>,
}

/// The DiskRegistry actor.
pub struct DiskRegistry;

impl Actor for DiskRegistry {
    type Msg = DisksMsg;
    type State = DisksState;
    type Arguments = DisksArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<DisksMsg>,
        arguments: DisksArguments,
    ) -> Result<DisksState, ActorProcessingErr> {
        // What uploads of an earlier daemon left; this one's are not touched
        // when the actor is restarted.
        if !arguments.slot.swept.swap(true, Ordering::SeqCst) {
            let known = arguments.store.inventory().images.keys().cloned().collect();
            if let Err(error) = arguments.images.sweep(known).await {
                tracing::warn!(%error, "cannot sweep the images folder");
            }
            making::recover(&arguments.store, arguments.disks.as_ref()).await;
        }
        let _ = myself.cast(DisksMsg::Look);
        Slot::set(&arguments.slot.actor, myself);
        Ok(DisksState {
            files: arguments.disks,
            turns: HashMap::new(),
            store: arguments.store,
            slot: arguments.slot,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<DisksMsg>,
        message: DisksMsg,
        state: &mut DisksState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            DisksMsg::Ensure(disk, reply) => {
                let (id, files) = (disk.id.clone(), state.files.clone());
                state.work(&myself, id, reply, move |turn| async move {
                    let path = files.ensure(disk).await?;
                    Ok(HeldFile { path, turn })
                });
            }
            DisksMsg::Remove(id, format, reply) => {
                let (key, files) = (id.clone(), state.files.clone());
                state.work(&myself, key, reply, move |turn| async move {
                    let _turn = turn;
                    files.remove(id, format).await
                });
            }
            DisksMsg::Done(id) => state.done(&id),
            DisksMsg::Look => state.look(&myself),
            DisksMsg::Looked => {
                myself.send_after(LOOK_EVERY, || DisksMsg::Look);
            }
        }
        Ok(())
    }
}

impl DisksState {
    /// Runs `job` when the earlier turns on the same file have ended. Its own ends when it is dropped.
    fn work<T: Send + 'static, Job: Future<Output = T> + Send>(
        &mut self,
        myself: &ActorRef<DisksMsg>,
        id: DiskId,
        reply: oneshot::Sender<T>,
        job: impl FnOnce(FileTurn) -> Job + Send + 'static,
    ) {
        let entry = self.turns.entry(id.clone()).or_default();
        entry.1 += 1;
        let (turn, registry) = (entry.0.clone(), myself.clone());
        tokio::spawn(async move {
            let turn = FileTurn::new(turn.lock_owned().await, id, registry);
            let _ = reply.send(job(turn).await);
        });
    }

    /// Looks at every disk's file beside the actor.
    fn look(&self, myself: &ActorRef<DisksMsg>) {
        let inventory = self.store.inventory();
        let all = inventory.disks.values().map(|row| &row.value);
        let disks: Vec<_> = all.map(|disk| (disk.id.clone(), disk.format)).collect();
        let (files, slot, registry) = (self.files.clone(), self.slot.clone(), myself.clone());
        let store = self.store.clone();
        tokio::spawn(async move {
            disk::look(files.as_ref(), &slot.seen, disks).await;
            let inventory = store.inventory();
            slot.seen.keep(|id| inventory.disks.contains_key(id));
            let _ = registry.cast(DisksMsg::Looked);
        });
    }

    fn done(&mut self, id: &DiskId) {
        if let Some(entry) = self.turns.get_mut(id) {
            entry.1 -= 1;
            if entry.1 == 0 {
                self.turns.remove(id);
            }
        }
    }
}
