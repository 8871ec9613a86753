//! Another file in the place of one that was lost.
//!
//! The new one is made whole beside it first; the old one, if there is any, is
//! kept under a dated name and never deleted. Killed between the two renames
//! there is no file but its marker: the next start refuses, and this can be done
//! again.

use super::{
    RedbStorage,
    create::{beside, mark, marker},
};
use crate::host::dirs::sync_dir;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A store that is made to take another's place.
pub struct Replacement {
    path: PathBuf,
    new: PathBuf,
}

impl Replacement {
    /// For the store at `path`. What an earlier one left is removed.
    pub fn of(path: &Path) -> io::Result<Self> {
        let new = beside(path, ".rebuilt");
        for left in [new.clone(), marker(&new), beside(&new, ".new")] {
            match fs::remove_file(&left) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(Self {
            path: path.to_owned(),
            new,
        })
    }

    /// The new store, empty until it is filled. To be dropped before
    /// [`Replacement::put_in_place`].
    pub fn storage(&self) -> RedbStorage {
        RedbStorage::new(&self.new)
    }

    /// Gives the new store its place; answers where the old one is kept.
    /// `stamp` dates its name.
    pub fn put_in_place(self, stamp: &str) -> io::Result<Option<PathBuf>> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let aside = beside(&self.path, &format!(".lost-{stamp}"));
        // The marker first: from here on a store that is missing is lost, not new.
        mark(&marker(&self.path))?;
        let kept = match renameat_with(CWD, &self.path, CWD, &aside, RenameFlags::NOREPLACE) {
            Ok(()) => Some(aside),
            Err(rustix::io::Errno::NOENT) => None,
            Err(error) => return Err(error.into()),
        };
        fs::rename(&self.new, &self.path)?;
        sync_dir(folder)?;
        fs::remove_file(marker(&self.new))?;
        sync_dir(folder)?;
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vman_actors::ports::{Row, Storage, Table};

    fn filled(replacement: &Replacement) {
        let storage = replacement.storage();
        storage.open().unwrap();
        let row = Row {
            table: Table::Vms,
            key: b"a".to_vec(),
            value: Some(vec![1]),
        };
        storage.commit(&[row]).unwrap();
    }

    #[test]
    fn the_new_store_takes_the_place_and_the_old_one_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vman.redb");
        fs::write(&path, b"rotten").unwrap();
        for (stamp, old) in [("1", true), ("2", true)] {
            let replacement = Replacement::of(&path).unwrap();
            filled(&replacement);
            let kept = replacement.put_in_place(stamp).unwrap();
            assert_eq!(kept.is_some(), old);
        }
        assert_eq!(
            fs::read(dir.path().join("vman.redb.lost-1")).unwrap(),
            b"rotten"
        );
        let storage = RedbStorage::new(&path);
        storage.open().unwrap();
        assert_eq!(storage.load(Table::Vms).unwrap().len(), 1);
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 4, "the store, its marker, and two that were kept");
    }

    #[test]
    fn what_was_lost_while_it_took_its_place_is_refused_and_done_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vman.redb");
        mark(&marker(&path)).unwrap();
        assert!(RedbStorage::new(&path).open().is_err());
        for _ in 0..2 {
            filled(&Replacement::of(&path).unwrap());
        }
        let replacement = Replacement::of(&path).unwrap();
        filled(&replacement);
        assert_eq!(replacement.put_in_place("1").unwrap(), None);
        RedbStorage::new(&path).open().unwrap();
    }
}
