//! What was answered, and so must hold after whatever dies.

use crate::support::{daemon::Daemon, http::Answer};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Mutex};

/// The lists, and the field by which each row is known.
const LISTS: [(&str, &str); 6] = [
    ("/vms", "id"),
    ("/disks", "id"),
    ("/images", "name"),
    ("/templates", "name"),
    ("/tokens", "name"),
    ("/network/forwards", "id"),
];

/// What is known of a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    There,
    Gone,
    /// The daemon died over the request, or does not know itself.
    Unknown,
}

/// A thing: the list it stands in, and its id.
pub(crate) type Thing = (&'static str, String);

/// All that was answered. What nobody asked for is not there.
#[derive(Default)]
pub(crate) struct Knowledge(Mutex<BTreeMap<Thing, Known>>);

impl Knowledge {
    fn of(&self, thing: &Thing) -> Known {
        let all = self.0.lock().unwrap();
        all.get(thing).copied().unwrap_or(Known::Gone)
    }

    fn set(&self, thing: &Thing, is: Known) {
        self.0.lock().unwrap().insert(thing.clone(), is);
    }

    /// Sends a request that makes or ends things, and learns from the answer.
    pub(crate) fn over<E>(
        &self,
        things: &[Thing],
        makes: bool,
        send: impl FnOnce() -> Result<Answer, E>,
    ) -> Result<Answer, E> {
        let before: Vec<_> = things.iter().map(|thing| self.of(thing)).collect();
        for thing in things {
            self.set(thing, Known::Unknown);
        }
        let answer = send()?;
        for (thing, before) in things.iter().zip(before) {
            self.set(thing, learnt(thing, makes, before, &answer));
        }
        Ok(answer)
    }

    /// Holds it against what there is; what was unknown is seen.
    pub(crate) fn hold(&self, daemon: &Daemon, when: &str) {
        for (list, key) in LISTS {
            let rows = daemon.get(list);
            let there = |id: &str| {
                let rows = rows.as_array().unwrap().iter();
                rows.filter(|row| row[key] == id).count()
            };
            let mut all = self.0.lock().unwrap();
            for ((_, id), known) in all.iter_mut().filter(|((of, _), _)| *of == list) {
                let count = there(id);
                assert!(count <= 1, "{when}: {list}/{id} is there {count} times");
                match known {
                    Known::There => {
                        assert_eq!(count, 1, "{when}: {list}/{id} was answered and is lost");
                    }
                    Known::Gone => assert_eq!(count, 0, "{when}: {list}/{id} came back"),
                    Known::Unknown if count == 1 => *known = Known::There,
                    Known::Unknown => *known = Known::Gone,
                }
            }
        }
    }
}

/// What is known of a thing by the answer to a request that makes or ends it.
fn learnt(thing: &Thing, makes: bool, before: Known, answer: &Answer) -> Known {
    let (status, told) = (answer.status, String::from_utf8_lossy(&answer.body));
    match (makes, status, before) {
        (true, 201, Known::There) => panic!("{thing:?} was made twice: {told}"),
        (true, 201, _) => Known::There,
        (true, 409, Known::Gone) if exists(answer) => panic!("{thing:?} came back: {told}"),
        (false, 404, Known::There) => panic!("{thing:?} was answered and is lost: {told}"),
        (false, 204 | 404, _) => Known::Gone,
        // Not even the daemon knows, or not yet.
        (_, 202 | 503, _) => Known::Unknown,
        // A refusal changes nothing.
        _ => before,
    }
}

/// Whether it was refused because it is there.
fn exists(answer: &Answer) -> bool {
    let told: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let code = told["code"].as_str().unwrap_or_default();
    answer.status == 409 && code.ends_with("_exists")
}
