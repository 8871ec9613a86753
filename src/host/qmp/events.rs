//! The bounded queue between a monitor and whoever follows its events.
//!
//! Owns: coalescing. An event that waits is replaced by the next one of its kind and subject, which
//! takes the later place in line, so what is read is always the latest of each kind in the order in
//! which the latest came, and a storm costs no more memory than there are kinds. Must not: block the
//! reader of the socket. Look next: `client.rs`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};
use tokio::sync::Notify;

use super::error::Lost;
use super::wire::Event;

/// How many kinds of events may wait. QEMU 7.2 has 56 events, most without a subject; a VM has a few
/// dozen devices. Beyond it the oldest is dropped and counted.
pub const MAX_WAITING: usize = 256;

/// About how many bytes may wait, whatever their number: a hostile QEMU could make each event a MiB.
pub const MAX_WAITING_BYTES: usize = 4 * 1024 * 1024;

/// The fields that make two events of one name different news.
const SUBJECT: &[&str] = &[
    "device",
    "id",
    "node-name",
    "path",
    "qom-path",
    "reason",
    "operation",
    "action",
    "guest",
];

/// How much of a subject's name is looked at, in characters: our own ids are shorter.
const MAX_SUBJECT: usize = 200;

/// What comes out of the queue.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// An event.
    Event(Event),
    /// This many events were dropped before the next one: ask for the state anew.
    Missed(u64),
    /// The connection ended; nothing follows.
    Lost(Lost),
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<(String, Event)>,
    bytes: usize,
    missed: u64,
    lost: Option<Lost>,
    told: bool,
}

#[derive(Debug, Default)]
pub(super) struct EventQueue {
    waiting: Mutex<Waiting>,
    news: Notify,
}

impl EventQueue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, mut event: Event) {
        let key = kind_and_subject(&event);
        let mut waiting = self.lock();
        let same = waiting.events.iter().rposition(|(known, _)| *known == key);
        if let Some((_, older)) = same.and_then(|at| waiting.events.remove(at)) {
            waiting.bytes -= weight_of(&older);
            event.coalesced = older.coalesced + 1;
        }
        waiting.bytes += weight_of(&event);
        waiting.events.push_back((key, event));
        while waiting.events.len() > MAX_WAITING
            || (waiting.bytes > MAX_WAITING_BYTES && waiting.events.len() > 1)
        {
            let Some((_, oldest)) = waiting.events.pop_front() else {
                break;
            };
            waiting.bytes -= weight_of(&oldest);
            waiting.missed += oldest.coalesced + 1;
        }
        drop(waiting);
        self.news.notify_one();
    }

    pub(super) fn close(&self, why: Lost) {
        self.lock().lost.get_or_insert(why);
        self.news.notify_one();
    }

    fn take(&self) -> Taken {
        let mut waiting = self.lock();
        if waiting.missed > 0 {
            return Taken::Next(Incoming::Missed(std::mem::take(&mut waiting.missed)));
        }
        if let Some((_, event)) = waiting.events.pop_front() {
            waiting.bytes -= weight_of(&event);
            return Taken::Next(Incoming::Event(event));
        }
        let Some(why) = waiting.lost else {
            return Taken::NothingYet;
        };
        if std::mem::replace(&mut waiting.told, true) {
            return Taken::Ended;
        }
        Taken::Next(Incoming::Lost(why))
    }
}

enum Taken {
    Next(Incoming),
    NothingYet,
    Ended,
}

/// The events of one connection. Dropping it does not close the connection.
#[derive(Debug)]
pub struct Events {
    pub(super) queue: Arc<EventQueue>,
}

impl Events {
    /// The next event. [`Incoming::Lost`] comes once, after all others, then `None`. Cancel-safe.
    pub async fn next(&mut self) -> Option<Incoming> {
        loop {
            match self.queue.take() {
                Taken::Next(incoming) => return Some(incoming),
                Taken::Ended => return None,
                Taken::NothingYet => self.queue.news.notified().await,
            }
        }
    }
}

/// About what an event costs, in bytes: its text and a word or two for each value.
fn weight_of(event: &Event) -> usize {
    fn weigh(value: &Value) -> usize {
        size_of::<Value>()
            + match value {
                Value::Null | Value::Bool(_) | Value::Number(_) => 0,
                Value::String(text) => text.len(),
                Value::Array(values) => values.iter().map(weigh).sum(),
                Value::Object(fields) => weigh_fields(fields),
            }
    }
    fn weigh_fields(fields: &Map<String, Value>) -> usize {
        fields
            .iter()
            .map(|(name, value)| name.len() + weigh(value))
            .sum()
    }
    event.name.len() + weigh_fields(&event.data)
}

fn kind_and_subject(event: &Event) -> String {
    let mut key = event.name.clone();
    for field in SUBJECT {
        match event.data.get(*field) {
            Some(Value::String(text)) => {
                key.push('\0');
                key.extend(text.chars().take(MAX_SUBJECT));
            }
            Some(Value::Bool(flag)) => key.push_str(if *flag { "\0yes" } else { "\0no" }),
            _ => {}
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(name: &str, data: &Value) -> Event {
        let data = data.as_object().cloned().unwrap_or_else(Map::new);
        Event {
            name: name.into(),
            data,
            timestamp: None,
            coalesced: 0,
        }
    }

    fn events() -> (Arc<EventQueue>, Events) {
        let queue = Arc::new(EventQueue::default());
        (Arc::clone(&queue), Events { queue })
    }

    #[tokio::test]
    async fn the_last_of_a_kind_wins_and_comes_last() {
        let (queue, mut events) = events();
        for name in ["STOP", "RESUME", "STOP"] {
            queue.push(event(name, &json!({})));
        }
        queue.push(event(
            "SHUTDOWN",
            &json!({"guest": true, "reason": "guest-shutdown"}),
        ));
        queue.push(event(
            "SHUTDOWN",
            &json!({"guest": false, "reason": "host-qmp-quit"}),
        ));
        queue.close(Lost::Closed);
        let mut seen = Vec::new();
        while let Some(incoming) = events.next().await {
            seen.push(match incoming {
                Incoming::Event(event) => (event.name, event.coalesced),
                Incoming::Missed(count) => ("missed".into(), count),
                Incoming::Lost(_) => ("lost".into(), 0),
            });
        }
        let expected = [
            ("RESUME", 0),
            ("STOP", 1),
            ("SHUTDOWN", 0),
            ("SHUTDOWN", 0),
            ("lost", 0),
        ];
        assert_eq!(seen, expected.map(|(name, count)| (name.to_owned(), count)));
    }

    #[tokio::test]
    async fn too_many_kinds_drop_the_oldest_and_say_how_many() {
        let (queue, mut events) = events();
        for index in 0..MAX_WAITING + 10 {
            queue.push(event("ODD", &json!({"id": index.to_string()})));
        }
        assert_eq!(events.next().await, Some(Incoming::Missed(10)));
        let Some(Incoming::Event(first)) = events.next().await else {
            panic!("an event")
        };
        assert_eq!(first.data["id"], "10");
    }

    #[tokio::test]
    async fn events_of_a_mib_each_do_not_pile_up() {
        let (queue, mut events) = events();
        let big = "x".repeat(1024 * 1024);
        for index in 0..50 {
            queue.push(event("BIG", &json!({"id": index.to_string(), "junk": big})));
        }
        assert!(queue.lock().bytes <= MAX_WAITING_BYTES);
        let Some(Incoming::Missed(missed)) = events.next().await else {
            panic!("a count")
        };
        assert!(missed >= 46, "{missed}");
    }
}
