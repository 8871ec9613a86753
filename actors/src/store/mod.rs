//! StateStore: the one owner of what is durable.
//!
//! Owns: the order of all changes, the inventory that reads use, the codec of
//! rows, the writer thread. One durable commit holds up to [`writer::MAX_GROUP`]
//! waiting changes; a change that was answered is on disk.
//! Must not: decide anything about a VM, or answer a read (reads take the
//! published [`Inventory`] and never wait for this actor).
//! Dies when the outcome of a commit is unknown: its successor opens the file
//! again and reads what is true.
//! Look next: `inventory.rs` (state and guards), `writer.rs`, `codec.rs`, `backup.rs`,
//! `check`, `export.rs`,
//! `migrate.rs` (how rows of an older VMAN are brought up).

mod apply;
mod backup;
pub mod check;
pub mod codec;
mod export;
mod handle;
mod inventory;
mod load;
mod memo;
pub mod migrate;
mod row;
mod tell;
mod writer;

#[cfg(test)]
mod tests;

pub use backup::{Backup, BackupError};
pub use export::{EXPORT_VERSION, Export};
pub use handle::{EventLog, StoreError, StoreHandle, StoreSlot};
pub use inventory::{Committed, Inventory, Quarantined, Versioned};
pub use load::StoreLoadError;
pub(crate) use load::revision_row;
pub use memo::Memo;

use crate::{
    mailbox::{Actor, ActorRef},
    ports::{Clock, Storage},
    slot::Slot,
};
use ractor::ActorProcessingErr;
use std::sync::Arc;
use tokio::sync::oneshot;
use vman_model::Change;
use writer::Writer;

/// What the StateStore is told.
pub enum StoreMsg {
    /// Make a change durable and answer its revision.
    Commit(Box<Change>, oneshot::Sender<Result<Committed, StoreError>>),
    /// The writer has ended because it does not know what was written.
    WriterLost(String),
}

/// What the StateStore needs.
#[derive(Clone)]
pub struct StoreArguments {
    /// Where rows are kept.
    pub storage: Arc<dyn Storage>,
    /// Time, for retention.
    pub clock: Arc<dyn Clock>,
    /// Where the inventory and the actor's present ref are published.
    pub slot: Arc<StoreSlot>,
}

/// The StateStore actor.
pub struct StateStore;

/// Publishes what is durable; answers which life of the actor begins.
fn read_back(arguments: &StoreArguments) -> Result<u64, StoreLoadError> {
    let mut turn = arguments.slot.turn();
    *turn += 1;
    let inventory = load::load(arguments.storage.as_ref(), arguments.clock.as_ref())?;
    arguments.slot.publish(Arc::new(inventory));
    Ok(*turn)
}

impl Actor for StateStore {
    type Msg = StoreMsg;
    type State = Writer;
    type Arguments = StoreArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<StoreMsg>,
        arguments: StoreArguments,
    ) -> Result<Writer, ActorProcessingErr> {
        let reading = arguments.clone();
        let read = move || read_back(&reading);
        let epoch = if arguments.storage.blocks() {
            tokio::task::spawn_blocking(read).await??
        } else {
            read()?
        };
        let writer = Writer::spawn(&arguments, epoch, myself.clone());
        Slot::set(&arguments.slot.actor, myself);
        Ok(writer)
    }

    async fn handle(
        &self,
        _: ActorRef<StoreMsg>,
        message: StoreMsg,
        writer: &mut Writer,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            StoreMsg::Commit(change, reply) => writer.enqueue(*change, reply)?,
            StoreMsg::WriterLost(why) => return Err(why.into()),
        }
        Ok(())
    }
}
