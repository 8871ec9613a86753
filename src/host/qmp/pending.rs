//! Which commands wait for a reply, and how far each has come.
//!
//! Owns: ids and correlation. Must not: do I/O. An id that is unknown (a previous client's, a second
//! reply, one that came after its deadline) is counted and dropped.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::oneshot;

use super::error::Lost;

/// How a command ended, as far as the connection knows.
#[derive(Debug)]
pub(super) enum Answer {
    Return(Value),
    Error { class: String, desc: String },
    Lost { sent: bool, why: Lost },
}

#[derive(Debug)]
struct Waiter {
    sent: bool,
    answer: oneshot::Sender<Answer>,
}

#[derive(Debug)]
struct Table {
    next_id: u64,
    waiters: HashMap<u64, Waiter>,
    lost: Option<Lost>,
}

#[derive(Debug)]
pub(super) struct Pending {
    table: Mutex<Table>,
}

impl Pending {
    pub(super) fn new(first_id: u64) -> Self {
        let table = Table {
            next_id: first_id,
            waiters: HashMap::new(),
            lost: None,
        };
        Self {
            table: Mutex::new(table),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn register(&self) -> Result<(u64, oneshot::Receiver<Answer>), Lost> {
        let mut table = self.lock();
        if let Some(why) = table.lost {
            return Err(why);
        }
        let id = table.next_id;
        table.next_id = id.wrapping_add(1);
        let (answer, receiver) = oneshot::channel();
        table.waiters.insert(
            id,
            Waiter {
                sent: false,
                answer,
            },
        );
        Ok((id, receiver))
    }

    /// Marks what is about to be written; `false` if nobody waits for it any more.
    pub(super) fn mark_sent(&self, ids: &[u64]) -> bool {
        let mut table = self.lock();
        let mut wanted = false;
        for id in ids {
            if let Some(waiter) = table.waiters.get_mut(id) {
                waiter.sent = true;
                wanted = true;
            }
        }
        wanted
    }

    /// Forgets a command; whether it had been sent.
    pub(super) fn forget(&self, id: u64) -> bool {
        self.lock()
            .waiters
            .remove(&id)
            .is_some_and(|waiter| waiter.sent)
    }

    /// Hands a reply to its waiter; `false` if there is none.
    pub(super) fn answer(&self, id: u64, answer: Answer) -> bool {
        let mut table = self.lock();
        // A reply to what was not sent yet is not ours: an id guessed by chance or malice.
        if !table.waiters.get(&id).is_some_and(|waiter| waiter.sent) {
            return false;
        }
        // A waiter that is gone has been forgotten a moment ago: the reply is late, not unknown.
        table
            .waiters
            .remove(&id)
            .is_some_and(|waiter| waiter.answer.send(answer).is_ok())
    }

    pub(super) fn close(&self, why: Lost) {
        let waiters = {
            let mut table = self.lock();
            table.lost.get_or_insert(why);
            std::mem::take(&mut table.waiters)
        };
        for (_, waiter) in waiters {
            // The waiter may have gone at its deadline: it has its answer then.
            let _ = waiter.answer.send(Answer::Lost {
                sent: waiter.sent,
                why,
            });
        }
    }
}
