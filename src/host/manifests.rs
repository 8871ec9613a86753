//! The files of the manifests: `<storage>/manifests/<table>/<key>.json`.
//!
//! A folder of their own: beside disks and images a manifest could take an
//! image's name, and a VM's own folder says that the VM was started once. It is
//! on the same file system as what it tells of, and goes with it into a copy.
//! Owns: that each file is whole at every moment (temporary name, sync, rename,
//! folder synced). Must not: know what is in a manifest.

use super::{
    dirs::{StorageDirs, sync_dir},
    folder::{blocking, file_error},
    folders,
};
use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use vman_actors::ports::{
    BoxFuture, FileError, FoundManifest, ManifestChange, ManifestFiles, ManifestName,
};
use vman_model::manifest::KeptKind;

const ENDING: &str = ".json";
/// A manifest is a few kilobytes; nobody's gigabyte is read into memory.
const MAX_BYTES: u64 = 4 << 20;

/// Manifests under the storage path.
#[derive(Clone, Debug)]
pub struct HostManifests {
    root: PathBuf,
    tmp: PathBuf,
    trash: PathBuf,
}

impl HostManifests {
    /// Below `dirs`; folders are made when they are needed.
    pub fn new(dirs: &StorageDirs) -> Self {
        Self {
            root: dirs.manifests(),
            tmp: dirs.tmp(),
            trash: dirs.trash(),
        }
    }

    fn folder(&self, kind: KeptKind) -> PathBuf {
        self.root.join(kind.as_str())
    }

    fn path(&self, name: &ManifestName) -> PathBuf {
        self.folder(name.kind).join(format!("{}{ENDING}", name.key))
    }

    /// All manifests with their bytes. Blocks.
    pub fn read_all(&self) -> io::Result<Vec<FoundManifest>> {
        let mut all = Vec::new();
        for kind in KeptKind::ALL {
            for key in keys(&self.folder(kind))? {
                let name = ManifestName { kind, key };
                match read(&self.path(&name)) {
                    Ok(bytes) => all.push((name, bytes)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(all)
    }

    fn make_folder(&self, kind: KeptKind) -> io::Result<()> {
        let folder = self.folder(kind);
        if folder.is_dir() {
            return Ok(());
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)?;
        sync_dir(&self.root)?;
        sync_dir(self.root.parent().unwrap_or(Path::new("/")))
    }

    fn put(&self, name: &ManifestName, bytes: &[u8]) -> io::Result<()> {
        self.make_folder(name.kind)?;
        // The keeper writes one at a time, and the folder is emptied at start.
        let new = self.tmp.join("manifest.part");
        let written = write_synced(&new, bytes).and_then(|()| fs::rename(&new, self.path(name)));
        if written.is_err() {
            // It is tried again, but perhaps not soon.
            let _ = fs::remove_file(&new);
        }
        written
    }

    fn change_all(&self, changes: Vec<ManifestChange>) -> io::Result<()> {
        let mut touched = BTreeSet::new();
        for change in changes {
            match change {
                ManifestChange::Put(name, bytes) => {
                    self.put(&name, &bytes)?;
                    touched.insert(name.kind);
                }
                ManifestChange::Remove(name) => {
                    if there(fs::remove_file(self.path(&name)))? {
                        touched.insert(name.kind);
                    }
                }
                ManifestChange::PutAway(name) => {
                    let label = format!("manifests-{}-{}{ENDING}", name.kind.as_str(), name.key);
                    let put = folders::into_trash(&self.trash, &self.path(&name), &label);
                    if there(put)? {
                        touched.insert(name.kind);
                    }
                }
            }
        }
        // One for all names of a folder: a thousand new VMs are not a thousand of these.
        for kind in touched {
            sync_dir(&self.folder(kind))?;
        }
        Ok(())
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Whether there was something.
fn there(done: io::Result<()>) -> io::Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn keys(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut keys = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let key = name.to_str().and_then(|name| name.strip_suffix(ENDING));
        if let (Some(key), true) = (key, entry.file_type()?.is_file()) {
            keys.push(key.to_owned());
        }
    }
    keys.sort();
    Ok(keys)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?
        .take(MAX_BYTES)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl ManifestFiles for HostManifests {
    fn list(&self) -> BoxFuture<'static, Result<Vec<FoundManifest>, FileError>> {
        let files = self.clone();
        let what = "reading manifests";
        Box::pin(blocking(what, move || {
            files.read_all().map_err(|error| file_error(what, &error))
        }))
    }

    fn change(&self, changes: Vec<ManifestChange>) -> BoxFuture<'static, Result<(), FileError>> {
        let files = self.clone();
        let what = "writing manifests";
        Box::pin(blocking(what, move || {
            files
                .change_all(changes)
                .map_err(|error| file_error(what, &error))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::dirs::StorageLock;

    fn name(key: &str) -> ManifestName {
        ManifestName {
            kind: KeptKind::Disk,
            key: key.to_owned(),
        }
    }

    #[test]
    fn what_is_put_is_there_with_its_bytes_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let lock = StorageLock::acquire(dir.path()).unwrap();
        let files = HostManifests::new(lock.dirs());
        assert_eq!(files.read_all().unwrap(), []);
        let put = |key: &str, bytes: &[u8]| ManifestChange::Put(name(key), bytes.to_vec());
        files
            .change_all(vec![put("a", b"1"), put("b", b"2"), put("a", b"3")])
            .unwrap();
        let all = [(name("a"), b"3".to_vec()), (name("b"), b"2".to_vec())];
        assert_eq!(files.read_all().unwrap(), all);
        let gone = vec![
            ManifestChange::Remove(name("a")),
            ManifestChange::Remove(name("a")),
        ];
        files.change_all(gone).unwrap();
        assert_eq!(files.read_all().unwrap(), all[1..]);
    }

    #[test]
    fn what_is_put_away_lies_in_the_trash() {
        let dir = tempfile::tempdir().unwrap();
        let lock = StorageLock::acquire(dir.path()).unwrap();
        let files = HostManifests::new(lock.dirs());
        files
            .change_all(vec![ManifestChange::Put(name("a"), b"1".to_vec())])
            .unwrap();
        for _ in 0..2 {
            files
                .change_all(vec![ManifestChange::PutAway(name("a"))])
                .unwrap();
        }
        assert_eq!(files.read_all().unwrap(), []);
        let trash: Vec<_> = fs::read_dir(lock.dirs().trash()).unwrap().collect();
        let entry = trash[0].as_ref().unwrap().file_name();
        assert!(entry.to_str().unwrap().ends_with("-manifests-disks-a.json"));
        assert_eq!(trash.len(), 1);
    }

    #[test]
    fn files_that_are_no_manifests_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let lock = StorageLock::acquire(dir.path()).unwrap();
        let files = HostManifests::new(lock.dirs());
        files
            .change_all(vec![ManifestChange::Put(name("a"), b"1".to_vec())])
            .unwrap();
        fs::write(lock.dirs().manifests().join("disks/notes.txt"), "x").unwrap();
        fs::create_dir(lock.dirs().manifests().join("disks/b.json")).unwrap();
        assert_eq!(files.read_all().unwrap().len(), 1);
    }
}
