//! ManifestKeeper: keeps a manifest beside the store for every record that lasts.
//!
//! Owns: the files of the manifests (through their port) and when they are
//! written: after the commit and off its path, in one task that always brings
//! the files from what they were to the latest inventory. However many commits
//! came meanwhile, there is nothing that queues.
//! Must not: decide what lasts (the model's `manifest` does), or delay anybody: a
//! storage that takes no manifest is told, and tried again.
//! Look next: `keep.rs` (one pass), `compare.rs` (for a check), `codec.rs` (how a manifest looks),
//! `rebuild.rs` (the way back), docs/recovery.md.

pub mod codec;
mod compare;
mod keep;
pub mod rebuild;

#[cfg(test)]
mod tests;

pub(crate) use compare::differing;

use crate::{
    mailbox::{Actor, ActorRef},
    ports::ManifestFiles,
    slot::Slot,
    store::StoreHandle,
};
use arc_swap::ArcSwap;
use keep::Keeper;
use ractor::ActorProcessingErr;
use std::{sync::Arc, time::Duration};
use tokio::task::JoinHandle;
use vman_model::Revision;

/// Between a change and its pass: what changes quickly is written once.
const PAUSE: Duration = Duration::from_millis(50);
/// After a pass that failed.
const AGAIN: Duration = Duration::from_secs(2);

/// How far the manifests are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestStatus {
    /// They tell what the store held at this revision; none before the first pass.
    pub kept: Option<Revision>,
    /// Why the last pass failed.
    pub error: Option<String>,
}

/// Where the keeper publishes; it outlives the actor.
#[derive(Default)]
pub struct ManifestSlot {
    actor: Slot<ManifestMsg>,
    status: ArcSwap<ManifestStatus>,
}

impl ManifestSlot {
    /// How far the manifests are.
    pub fn status(&self) -> Arc<ManifestStatus> {
        self.status.load_full()
    }
}

/// What the ManifestKeeper is told.
pub enum ManifestMsg {
    /// Its task has ended, which it never does by itself.
    Lost,
}

/// What the ManifestKeeper needs.
#[derive(Clone)]
pub struct ManifestArguments {
    /// The store, whose records are kept.
    pub store: StoreHandle,
    /// The files.
    pub files: Arc<dyn ManifestFiles>,
    /// Where it publishes how far it is.
    pub slot: Arc<ManifestSlot>,
}

/// The task that writes; it ends with the actor.
pub struct Writing(JoinHandle<()>);

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The ManifestKeeper actor.
pub struct ManifestKeeper;

impl Actor for ManifestKeeper {
    type Msg = ManifestMsg;
    type State = Writing;
    type Arguments = ManifestArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<ManifestMsg>,
        arguments: ManifestArguments,
    ) -> Result<Writing, ActorProcessingErr> {
        let keeper = myself.clone();
        let slot = arguments.slot.clone();
        let writing = tokio::spawn(async move {
            let lost = Lost(keeper);
            write(arguments).await;
            drop(lost);
        });
        Slot::set(&slot.actor, myself);
        Ok(Writing(writing))
    }

    async fn handle(
        &self,
        _: ActorRef<ManifestMsg>,
        message: ManifestMsg,
        _: &mut Writing,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ManifestMsg::Lost => Err("the task that writes manifests has ended".into()),
        }
    }
}

/// Tells the actor that its task has ended, also when it panicked.
struct Lost(ActorRef<ManifestMsg>);

impl Drop for Lost {
    fn drop(&mut self) {
        let _ = self.0.cast(ManifestMsg::Lost);
    }
}

/// Passes for ever: one after each change of the store, with a pause between.
async fn write(arguments: ManifestArguments) {
    let mut keeper = Keeper::new(arguments.files, arguments.store.aside());
    let mut changes = arguments.store.watch();
    loop {
        changes.mark_unchanged();
        let inventory = arguments.store.inventory();
        let revision = inventory.revision;
        let before = arguments.slot.status();
        let told = match keeper.pass(inventory).await {
            Ok(()) => ManifestStatus {
                kept: Some(revision),
                error: None,
            },
            Err(error) => ManifestStatus {
                kept: before.kept,
                error: Some(error.to_string()),
            },
        };
        let failed = told.error.is_some();
        match (&before.error, &told.error) {
            (None, Some(error)) => tracing::warn!(
                error,
                "manifests cannot be written; the store is not affected, it is tried again"
            ),
            (Some(_), None) => tracing::info!("manifests are written again"),
            _ => {}
        }
        arguments.slot.status.store(Arc::new(told));
        if failed {
            tokio::time::sleep(AGAIN).await;
            continue;
        }
        if changes.changed().await.is_err() {
            return;
        }
        // Not at once: a commit is often the first of two around an effect that waits for the disk,
        // and what is synced here would make it wait longer.
        tokio::time::sleep(PAUSE).await;
    }
}
