//! Lists that many ask for, kept as they were written until something changes.
//!
//! Only for lists that depend on the inventory alone: its revision says whether a
//! kept one is still good. Must not: grow without bound, or keep what is old.

use super::paging::WrittenList;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};
use vman_model::Revision;

/// All that is kept, in bytes: a list of 4,000 VMs, or forty pages of a hundred.
/// What is longer is written anew for each who asks.
const MAX_BYTES: usize = 4 << 20;

/// The lists of one revision by the words they were asked for with.
#[derive(Default)]
pub(crate) struct KeptLists(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    revision: Revision,
    bytes: usize,
    lists: BTreeMap<Box<str>, WrittenList>,
}

impl KeptLists {
    /// The list of this revision, written now if it is not kept.
    pub(super) fn get<E>(
        &self,
        revision: Revision,
        words: &str,
        write: impl FnOnce() -> Result<WrittenList, E>,
    ) -> Result<WrittenList, E> {
        // Nothing of a kept list breaks when another reader panics.
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let kept = lock();
            if kept.revision == revision
                && let Some(list) = kept.lists.get(words)
            {
                return Ok(list.clone());
            }
        }
        let list = write()?;
        lock().keep(revision, words, &list);
        Ok(list)
    }
}

impl Kept {
    fn keep(&mut self, revision: Revision, words: &str, list: &WrittenList) {
        if revision < self.revision {
            return;
        }
        if revision > self.revision {
            *self = Kept {
                revision,
                ..Kept::default()
            };
        }
        let bytes = list.body.len() + words.len();
        if self.bytes + bytes <= MAX_BYTES && !self.lists.contains_key(words) {
            self.bytes += bytes;
            self.lists.insert(words.into(), list.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(lists: &KeptLists, revision: u64, words: &str, body: &str) -> String {
        let write = || Ok::<_, ()>(WrittenList::of(body.to_owned()));
        let list = lists.get(Revision(revision), words, write).unwrap();
        String::from_utf8(list.body.to_vec()).unwrap()
    }

    #[test]
    fn a_list_is_written_once_for_each_revision_and_each_question() {
        let lists = KeptLists::default();
        assert_eq!(ask(&lists, 1, "", "a"), "a");
        assert_eq!(ask(&lists, 1, "", "never written"), "a");
        assert_eq!(ask(&lists, 1, "limit=1", "b"), "b");
        assert_eq!(ask(&lists, 2, "", "c"), "c");
        assert_eq!(ask(&lists, 1, "", "late"), "late", "of an earlier revision");
        assert_eq!(ask(&lists, 2, "", "never written"), "c");
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        let lists = KeptLists::default();
        let half = "x".repeat(MAX_BYTES / 2);
        for n in 0..4 {
            ask(&lists, 1, &n.to_string(), &half);
        }
        let kept = lists.0.lock().unwrap();
        assert!(kept.bytes <= MAX_BYTES, "{}", kept.bytes);
        assert_eq!(kept.lists.len(), 1);
    }
}
