//! Manifests in memory, which can be full.

use super::world::World;
use crate::ports::{
    BoxFuture, FileError, FoundManifest, ManifestChange, ManifestFiles, ManifestName,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// What lies in the folder of manifests. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryManifests {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    files: BTreeMap<ManifestName, Vec<u8>>,
    trash: Vec<ManifestName>,
    full: bool,
    written: u64,
}

impl MemoryManifests {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All there are.
    pub fn files(&self) -> BTreeMap<ManifestName, Vec<u8>> {
        self.inner().files.clone()
    }

    /// Puts a file there, as somebody else would.
    pub fn plant(&self, name: ManifestName, bytes: Vec<u8>) {
        self.inner().files.insert(name, bytes);
    }

    /// What was put away.
    pub fn trash(&self) -> Vec<ManifestName> {
        self.inner().trash.clone()
    }

    /// Whether nothing more can be written.
    pub fn set_full(&self, full: bool) {
        self.inner().full = full;
    }

    /// How many files were written.
    pub fn written(&self) -> u64 {
        self.inner().written
    }

    fn change(&self, changes: Vec<ManifestChange>) -> Result<(), FileError> {
        let mut inner = self.inner();
        for change in changes {
            match change {
                ManifestChange::Put(..) if inner.full => {
                    let what = "writing manifests".to_owned();
                    return Err(FileError::NoSpace { what });
                }
                ManifestChange::Put(name, bytes) => {
                    inner.written += 1;
                    inner.files.insert(name, bytes);
                }
                ManifestChange::Remove(name) => {
                    inner.files.remove(&name);
                }
                ManifestChange::PutAway(name) => {
                    inner.files.remove(&name);
                    inner.trash.push(name);
                }
            }
        }
        Ok(())
    }
}

/// The same as one daemon reaches it.
pub(super) struct FakeManifests {
    pub(super) world: Arc<World>,
    pub(super) daemon: u64,
    pub(super) files: MemoryManifests,
}

impl ManifestFiles for FakeManifests {
    fn list(&self) -> BoxFuture<'static, Result<Vec<FoundManifest>, FileError>> {
        let (world, daemon, files) = (self.world.clone(), self.daemon, self.files.clone());
        Box::pin(async move {
            world.pause(daemon, Duration::ZERO).await;
            Ok(files.files().into_iter().collect())
        })
    }

    fn change(&self, changes: Vec<ManifestChange>) -> BoxFuture<'static, Result<(), FileError>> {
        let (world, daemon, files) = (self.world.clone(), self.daemon, self.files.clone());
        Box::pin(async move {
            world.pause(daemon, Duration::ZERO).await;
            files.change(changes)
        })
    }
}
