//! A disk's file that nobody else works on.
//!
//! Owns: when a turn on a file ends. Look next: `mod.rs`, which gives the turns.

use super::DisksMsg;
use crate::mailbox::ActorRef;
use std::path::PathBuf;
use tokio::sync::OwnedMutexGuard;
use vman_model::DiskId;

/// A disk's file, as its record wants it. While this is held, nobody else makes, grows or removes it.
pub struct HeldFile {
    /// Where it is.
    pub path: PathBuf,
    /// The turn on it.
    pub turn: FileTurn,
}

/// A turn on a disk's file; the next one has it when this is dropped.
pub struct FileTurn {
    held: Option<OwnedMutexGuard<()>>,
    disk: DiskId,
    registry: ActorRef<DisksMsg>,
}

impl FileTurn {
    pub(super) fn new(
        held: OwnedMutexGuard<()>,
        disk: DiskId,
        registry: ActorRef<DisksMsg>,
    ) -> Self {
        Self {
            held: Some(held),
            disk,
            registry,
        }
    }
}

impl Drop for FileTurn {
    fn drop(&mut self) {
        drop(self.held.take());
        let _ = self.registry.cast(DisksMsg::Done(self.disk.clone()));
    }
}
