//! Where a restarted actor's present ref is found. Handles hold a slot instead
//! of a ref, so they stay good when the tree replaces the actor.

use crate::mailbox::ActorRef;
use arc_swap::ArcSwapOption;
use ractor::{ActorStatus, Message};
use std::sync::Arc;

/// The present ref of one seat in the tree.
pub struct Slot<M>(ArcSwapOption<ActorRef<M>>);

impl<M: Message> Default for Slot<M> {
    fn default() -> Self {
        Self(ArcSwapOption::empty())
    }
}

impl<M: Message> Slot<M> {
    /// Puts an actor on the seat.
    pub fn set(&self, actor: ActorRef<M>) {
        self.0.store(Some(Arc::new(actor)));
    }

    /// The actor on the seat, if it lives.
    pub fn get(&self) -> Option<ActorRef<M>> {
        let actor = self.0.load();
        let actor = actor.as_ref()?;
        (actor.get_status() <= ActorStatus::Upgrading).then(|| ActorRef::clone(actor))
    }
}
