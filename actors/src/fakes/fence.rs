//! The store's file as one daemon sees it: a daemon that was "killed" writes
//! nothing any more, whatever its threads still try.

use super::{storage::MemoryStorage, world::World};
use crate::ports::{CommitError, KeptCopy, LoadError, Row, Storage, Table, storage::KeyValue};
use std::sync::Arc;
use vman_model::UnixMs;

pub(super) struct FencedStorage {
    pub(super) inner: MemoryStorage,
    pub(super) world: Arc<World>,
    pub(super) daemon: u64,
}

impl Storage for FencedStorage {
    fn open(&self) -> Result<(), LoadError> {
        self.inner.open()
    }

    fn load(&self, table: Table) -> Result<Vec<KeyValue>, LoadError> {
        self.inner.load(table)
    }

    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<KeyValue>, LoadError> {
        self.inner.range(table, from, limit)
    }

    fn moment(&self, tables: &[Table]) -> Result<Vec<(Table, KeyValue)>, LoadError> {
        self.inner.moment(tables)
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, LoadError> {
        self.inner.get(table, key)
    }

    fn commit(&self, batch: &[Row]) -> Result<(), CommitError> {
        // Held until it is written, so that no new daemon reads in between.
        let _turn = self.world.commit_turn();
        if !self.world.is_present(self.daemon) {
            return Err(CommitError::Refused("this daemon was killed".to_owned()));
        }
        assert!(
            !self.world.commit_shall_panic(),
            "the storage panics as scripted"
        );
        self.inner.commit(batch)
    }

    fn blocks(&self) -> bool {
        self.world.storage_blocks()
    }

    fn backup(&self, suffix: &str) -> Result<String, CommitError> {
        self.inner.backup(suffix)
    }

    fn keep_copy(&self, at: UnixMs, keep: usize) -> Result<KeptCopy, CommitError> {
        self.inner.keep_copy(at, keep)
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }
}
