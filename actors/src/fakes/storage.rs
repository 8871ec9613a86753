//! A [`Storage`] in memory whose commits fail as a test asks.

use crate::ports::{CommitError, KeptCopy, LoadError, Row, Storage, Table, storage::KeyValue};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use vman_model::UnixMs;

/// What becomes of a commit that is still to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextCommit {
    /// It is written.
    Works,
    /// [`CommitError::NoSpace`]: not written, for certain.
    NoSpace,
    /// [`CommitError::ReadOnly`]: not written, for certain.
    ReadOnly,
    /// [`CommitError::Refused`]: not written, for certain.
    Refused,
    /// [`CommitError::Unknown`], and it was written.
    UnknownButWritten,
    /// [`CommitError::Unknown`], and it was not written.
    UnknownNotWritten,
    /// It is written after this time. The caller's thread is blocked meanwhile.
    Slow(Duration),
}

type Key = (Table, Vec<u8>);

#[derive(Debug, Default)]
struct Inner {
    /// What is "on disk": it survives an unknown outcome and a new opening.
    rows: BTreeMap<Key, Vec<u8>>,
    opened: bool,
    script: VecDeque<NextCommit>,
    next_open: VecDeque<LoadError>,
    commits: u64,
    opens: u64,
    backups: BTreeMap<String, BTreeMap<Key, Vec<u8>>>,
    next_backup: Option<CommitError>,
}

/// A storage in memory. Clones share it, as two handles of one file would: a
/// test keeps one, and gives a new daemon another.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage {
    inner: Arc<Mutex<Inner>>,
}

impl MemoryStorage {
    /// An empty storage, not opened yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says what becomes of the commit after those already said. Without a word
    /// a commit works.
    pub fn then(&self, next: NextCommit) {
        self.inner().script.push_back(next);
    }

    /// From here on commits work again, whatever was said before.
    pub fn forget_scripted(&self) {
        self.inner().script.clear();
    }

    /// The next `open` fails with this.
    pub fn fail_open(&self, error: LoadError) {
        self.inner().next_open.push_back(error);
    }

    /// Puts a row in behind the back of whoever has it open, as a bad disk would.
    pub fn plant(&self, row: Row) {
        apply(&mut self.inner().rows, &[row]);
    }

    /// The file is gone, with everything in it.
    pub fn lose(&self) {
        let mut inner = self.inner();
        inner.rows.clear();
        inner.opened = false;
    }

    /// How many commits were asked for, whatever became of them.
    pub fn commits(&self) -> u64 {
        self.inner().commits
    }

    /// The next backup fails with this.
    pub fn fail_backup(&self, error: CommitError) {
        self.inner().next_backup = Some(error);
    }

    /// The backup of this name as a storage of its own.
    pub fn restored(&self, suffix: &str) -> Option<MemoryStorage> {
        let rows = self.inner().backups.get(suffix)?.clone();
        let restored = MemoryStorage::new();
        restored.inner().rows = rows;
        Some(restored)
    }

    /// How often it was opened.
    pub fn opens(&self) -> u64 {
        self.inner().opens
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn readable(&self) -> Result<MutexGuard<'_, Inner>, LoadError> {
        let inner = self.inner();
        if inner.opened {
            return Ok(inner);
        }
        Err(LoadError::Io {
            path: "memory".to_owned(),
            error: "it must be opened".to_owned(),
        })
    }
}

fn apply(rows: &mut BTreeMap<Key, Vec<u8>>, batch: &[Row]) {
    for row in batch {
        let key = (row.table, row.key.clone());
        match &row.value {
            Some(value) => rows.insert(key, value.clone()),
            None => rows.remove(&key),
        };
    }
}

impl Storage for MemoryStorage {
    fn open(&self) -> Result<(), LoadError> {
        let mut inner = self.inner();
        inner.opens += 1;
        inner.opened = false;
        if let Some(error) = inner.next_open.pop_front() {
            return Err(error);
        }
        inner.opened = true;
        Ok(())
    }

    fn load(&self, table: Table) -> Result<Vec<KeyValue>, LoadError> {
        self.range(table, &[], usize::MAX)
    }

    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<KeyValue>, LoadError> {
        let inner = self.readable()?;
        Ok(inner
            .rows
            .range((table, from.to_vec())..)
            .take_while(|((of, _), _)| *of == table)
            .take(limit)
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect())
    }

    fn moment(&self, tables: &[Table]) -> Result<Vec<(Table, KeyValue)>, LoadError> {
        let inner = self.readable()?;
        let rows = inner.rows.iter();
        let wanted = rows.filter(|((table, _), _)| tables.contains(table));
        Ok(wanted
            .map(|((table, key), value)| (*table, (key.clone(), value.clone())))
            .collect())
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, LoadError> {
        let inner = self.readable()?;
        Ok(inner.rows.get(&(table, key.to_vec())).cloned())
    }

    fn commit(&self, batch: &[Row]) -> Result<(), CommitError> {
        let next = {
            let mut inner = self.inner();
            inner.commits += 1;
            if !inner.opened {
                return Err(CommitError::Refused("it must be opened".to_owned()));
            }
            inner.script.pop_front().unwrap_or(NextCommit::Works)
        };
        if let NextCommit::Slow(time) = next {
            // Not under the lock: a slow commit must not delay a reader.
            std::thread::sleep(time);
        }
        let mut inner = self.inner();
        let unknown = || CommitError::Unknown("as scripted".to_owned());
        match next {
            NextCommit::NoSpace => return Err(CommitError::NoSpace),
            NextCommit::ReadOnly => return Err(CommitError::ReadOnly),
            NextCommit::Refused => return Err(CommitError::Refused("as scripted".to_owned())),
            NextCommit::UnknownNotWritten => {
                inner.opened = false;
                return Err(unknown());
            }
            NextCommit::UnknownButWritten => {
                apply(&mut inner.rows, batch);
                inner.opened = false;
                return Err(unknown());
            }
            NextCommit::Works | NextCommit::Slow(_) => apply(&mut inner.rows, batch),
        }
        Ok(())
    }

    fn backup(&self, suffix: &str) -> Result<String, CommitError> {
        let mut inner = self.inner();
        if let Some(error) = inner.next_backup.take() {
            return Err(error);
        }
        let rows = inner.rows.clone();
        inner.backups.insert(suffix.to_owned(), rows);
        Ok(format!("memory{suffix}"))
    }

    fn keep_copy(&self, at: UnixMs, keep: usize) -> Result<KeptCopy, CommitError> {
        let meta = |error: LoadError| CommitError::Refused(error.to_string());
        let meta = self.load(Table::Meta).map_err(meta)?;
        let file = self.backup(&format!("-{:020}", at.0))?;
        let mut inner = self.inner();
        let dated = |name: &&String| name.starts_with('-');
        let names: Vec<_> = inner.backups.keys().filter(dated).cloned().collect();
        let old = &names[..names.len().saturating_sub(keep)];
        for name in old {
            inner.backups.remove(name);
        }
        Ok(KeptCopy {
            file,
            bytes: 0,
            meta,
            removed: old.iter().map(|name| format!("memory{name}")).collect(),
        })
    }

    fn size(&self) -> u64 {
        let sum = |(key, value): (&Key, &Vec<u8>)| key.1.len() + value.len();
        self.inner().rows.iter().map(sum).sum::<usize>() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::contract::storage::storage_contract;

    fn row(key: &str) -> Row {
        Row {
            table: Table::Vms,
            key: key.into(),
            value: Some(vec![1]),
        }
    }

    #[test]
    fn the_memory_storage_keeps_the_contract() {
        storage_contract(MemoryStorage::new);
    }

    #[test]
    fn after_an_unknown_outcome_it_refuses_until_it_is_opened_and_then_tells_the_truth() {
        for (next, written) in [
            (NextCommit::UnknownButWritten, true),
            (NextCommit::UnknownNotWritten, false),
        ] {
            let storage = MemoryStorage::new();
            storage.open().unwrap();
            storage.then(next);
            let error = storage.commit(&[row("a")]).unwrap_err();
            assert!(matches!(error, CommitError::Unknown(_)));
            assert!(matches!(
                storage.commit(&[row("b")]),
                Err(CommitError::Refused(_))
            ));
            assert!(storage.load(Table::Vms).is_err());
            storage.open().unwrap();
            assert_eq!(
                storage.load(Table::Vms).unwrap().len(),
                usize::from(written)
            );
        }
    }

    #[test]
    fn a_certain_failure_writes_nothing_and_the_next_commit_works() {
        let storage = MemoryStorage::new();
        storage.open().unwrap();
        storage.then(NextCommit::NoSpace);
        assert_eq!(storage.commit(&[row("a")]), Err(CommitError::NoSpace));
        assert_eq!(storage.load(Table::Vms), Ok(vec![]));
        storage.commit(&[row("a")]).unwrap();
        assert_eq!(storage.load(Table::Vms).unwrap().len(), 1);
    }
}
