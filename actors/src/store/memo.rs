//! What a reader has derived from a record: kept beside it, and gone with it.

use bytes::Bytes;
use std::{fmt, sync::OnceLock};
use vman_model::Revision;

/// A place beside a record for what readers make of it, its JSON for one, so that
/// it is made once for each revision and not once for each request. A new revision
/// has a new, empty one. It is no part of the record: rows that differ in it only
/// are equal.
#[derive(Default)]
pub struct Memo(OnceLock<Box<(Revision, Bytes)>>);

impl Memo {
    /// What was derived, made now if it was not. `besides` is the revision of what
    /// else goes into it: what was derived with another is not told, but made anew
    /// and not kept.
    pub fn get<E>(
        &self,
        besides: Revision,
        make: impl FnOnce() -> Result<Bytes, E>,
    ) -> Result<Bytes, E> {
        match self.0.get().map(AsRef::as_ref) {
            Some((of, kept)) if *of == besides => Ok(kept.clone()),
            Some(_) => make(),
            None => {
                let made = make()?;
                // Whoever was first has made the same.
                let _ = self.0.set(Box::new((besides, made.clone())));
                Ok(made)
            }
        }
    }
}

impl Clone for Memo {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Memo {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Memo {}

impl fmt::Debug for Memo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memo")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once_for_each_of_what_it_was_made_from() {
        let memo = Memo::default();
        let made = |besides, text: &'static str| {
            memo.get(Revision(besides), || {
                Ok::<_, ()>(Bytes::from_static(text.as_bytes()))
            })
        };
        assert_eq!(made(1, "first"), Ok(Bytes::from_static(b"first")));
        assert_eq!(made(1, "never made"), Ok(Bytes::from_static(b"first")));
        assert_eq!(made(2, "other"), Ok(Bytes::from_static(b"other")));
        let failed = Memo::default().get(Revision(1), || Err::<Bytes, _>("no"));
        assert_eq!(failed, Err("no"));
        assert!(memo == memo.clone(), "it is no part of a row");
    }
}
