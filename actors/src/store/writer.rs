//! The writer thread: takes what waits, up to [`MAX_GROUP`] changes, makes one
//! durable commit of it, publishes the new inventory, then answers them all.
//!
//! It waits for nothing to fill a group: while one commit syncs, the next group
//! gathers by itself. On a storage that does not block it is a task.

use super::{
    StoreArguments, StoreError, StoreMsg,
    handle::StoreSlot,
    inventory::{Committed, Inventory},
    load::revision_row,
    tell::tell,
};
use crate::{
    mailbox::ActorRef,
    meters::Tally,
    ports::{Clock, CommitError, RowBatch, Storage},
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};
use tokio::sync::{
    mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    oneshot,
};
use vman_model::{Change, Guard};

/// The most changes in one commit: more gain nothing, and every one of them
/// waits for the last.
pub(super) const MAX_GROUP: usize = 256;
/// The most changes waiting. Beyond it callers are told to come again, so that
/// a stalled disk does not fill the memory.
pub(super) const MAX_WAITING: usize = 8_192;

type Reply = oneshot::Sender<Result<Committed, StoreError>>;

/// The way to the writer thread. Dropping it ends the thread.
pub struct Writer {
    /// Bounded by `waiting`.
    queue: UnboundedSender<(Change, Reply)>,
    waiting: Arc<AtomicUsize>,
}

impl Writer {
    /// `epoch` is the store actor's: a thread of an earlier one writes nothing.
    pub(super) fn spawn(arguments: &StoreArguments, epoch: u64, store: ActorRef<StoreMsg>) -> Self {
        let (queue, changes) = unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let thread = WriterThread {
            storage: arguments.storage.clone(),
            clock: arguments.clock.clone(),
            slot: arguments.slot.clone(),
            waiting: waiting.clone(),
            epoch,
        };
        if arguments.storage.blocks() {
            std::thread::Builder::new()
                .name("vman-store".to_owned())
                .spawn(move || thread.live(changes, &store))
                .expect("the store's one thread is started before anything depends on it");
        } else {
            tokio::spawn(thread.live_in_step(changes, store));
        }
        Self { queue, waiting }
    }

    /// `Err` means that the thread has ended.
    pub(super) fn enqueue(&self, change: Change, reply: Reply) -> Result<(), &'static str> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            let _ = reply.send(Err(StoreError::Busy));
            return Ok(());
        }
        // If the thread has ended, the reply is dropped with the message.
        let sent = self.queue.send((change, reply));
        sent.map_err(|_| "the store's writer has ended")
    }
}

struct WriterThread {
    storage: Arc<dyn Storage>,
    clock: Arc<dyn Clock>,
    slot: Arc<StoreSlot>,
    waiting: Arc<AtomicUsize>,
    epoch: u64,
}

impl WriterThread {
    /// Ends when the store actor is gone, or when the truth must be read again.
    fn live(&self, mut changes: UnboundedReceiver<(Change, Reply)>, store: &ActorRef<StoreMsg>) {
        while let Some(first) = changes.blocking_recv() {
            if let Err(why) = self.commit_with(first, &mut changes) {
                return lost(changes, store, why);
            }
        }
    }

    /// The same where a commit does not block.
    async fn live_in_step(
        self,
        mut changes: UnboundedReceiver<(Change, Reply)>,
        store: ActorRef<StoreMsg>,
    ) {
        while let Some(first) = changes.recv().await {
            if let Err(why) = self.commit_with(first, &mut changes) {
                return lost(changes, &store, why);
            }
        }
    }

    /// Commits `first` with whatever else waits.
    fn commit_with(
        &self,
        first: (Change, Reply),
        changes: &mut UnboundedReceiver<(Change, Reply)>,
    ) -> Result<(), String> {
        let mut group = vec![first];
        while group.len() < MAX_GROUP
            && let Ok(more) = changes.try_recv()
        {
            group.push(more);
        }
        self.waiting.fetch_sub(group.len(), Ordering::Relaxed);
        // Nothing is published before it is committed, so what a panic leaves
        // behind is whole.
        let commit = AssertUnwindSafe(|| self.commit(group));
        catch_unwind(commit).unwrap_or_else(|_| Err("the store's writer panicked".to_owned()))
    }

    fn commit(&self, group: Vec<(Change, Reply)>) -> Result<(), String> {
        let turn = self.slot.turn();
        if *turn != self.epoch {
            return Err("another writer has taken over".to_owned());
        }
        let now = self.clock.now();
        let before = self.slot.inventory();
        let mut next = Inventory::clone(&before);
        let (mut rows, mut accepted) = (RowBatch::new(), Vec::with_capacity(group.len()));
        let mut refused = Vec::new();
        let mut tallies = Vec::new();
        for (change, reply) in group {
            let tally = Tally::of(&change);
            match next.apply(change, now) {
                Ok((after, more)) => {
                    accepted.push((
                        Committed {
                            revision: after.revision,
                        },
                        reply,
                    ));
                    tallies.push(tally);
                    next = after;
                    rows.extend(more);
                }
                // What it conflicts with may be in this very group: it is true
                // only once that is durable.
                Err(guard) => refused.push((guard, reply)),
            }
        }
        let refuse = |refused: Vec<(Guard, Reply)>| {
            for (guard, reply) in refused {
                let _ = reply.send(Err(StoreError::Conflict(guard)));
            }
        };
        if accepted.is_empty() {
            refuse(refused);
            return Ok(());
        }
        rows.push(revision_row(next.revision));
        let (began, under_way) = (Instant::now(), self.slot.begin_commit());
        let committed = self.storage.commit(&rows);
        drop(under_way);
        let meters = &self.slot.meters;
        meters.commit_time.observe(began.elapsed());
        match committed {
            Ok(()) => {
                meters.batch.observe_number(accepted.len());
                for tally in &tallies {
                    meters.count(tally);
                }
                for event in next.events_after(before.revision) {
                    meters.count_event(event);
                    tell(event);
                }
                self.slot.publish(Arc::new(next));
                drop(turn);
                for (committed, reply) in accepted {
                    let _ = reply.send(Ok(committed));
                }
                refuse(refused);
                Ok(())
            }
            Err(error) => {
                meters.failed_commits.inc();
                let unknown = matches!(error, CommitError::Unknown(_));
                let told = StoreError::from(error.clone());
                for (_, reply) in accepted {
                    let _ = reply.send(Err(told.clone()));
                }
                // What holds without this group is a conflict all the same.
                for (guard, reply) in refused {
                    let holds = before.violated(std::slice::from_ref(&guard)).is_none();
                    let error = if holds {
                        told.clone()
                    } else {
                        StoreError::Conflict(guard)
                    };
                    let _ = reply.send(Err(error));
                }
                if unknown {
                    Err(error.to_string())
                } else {
                    Ok(())
                }
            }
        }
    }
}

/// Tells the store actor that its writer has ended. The queue is dropped first:
/// whoever waits in it learns that it does not know either.
fn lost(changes: UnboundedReceiver<(Change, Reply)>, store: &ActorRef<StoreMsg>, why: String) {
    drop(changes);
    let _ = store.cast(StoreMsg::WriterLost(why));
}
