//! How others use the DiskRegistry.

use super::{DisksMsg, HeldFile};
use crate::{
    ports::{DiskFiles, FileError, ImageFiles, NewDiskFile, SeenFile, Upload},
    slot::Slot,
    store::{StoreError, StoreHandle},
};
use std::{path::PathBuf, sync::Arc};
use tokio::sync::oneshot;
use vman_model::{
    Cause, Change, DiskFile, DiskFormat, DiskId, DiskRecord, EventDraft, EventKind, Guard,
    ImageKind, ImageName, ImageRecord, Origin, Subject, UnixMs, Write,
};

/// The seat of the DiskRegistry.
#[derive(Default)]
pub struct DisksSlot {
    pub(super) actor: Slot<DisksMsg>,
    /// Whether this daemon has swept the images folder: later there are uploads
    /// of its own in it.
    pub(super) swept: std::sync::atomic::AtomicBool,
    /// What was last seen of the files.
    pub(super) seen: SeenFiles,
}

/// What was last seen of a disk's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastSeen {
    /// Nobody has looked yet.
    NotYet,
    /// There was none.
    NoFile,
    /// This.
    File(SeenFile),
}

impl LastSeen {
    /// Whether a disk that had a file has none any more.
    pub fn is_lost(self, disk: &DiskRecord) -> bool {
        disk.file == DiskFile::Made && self == LastSeen::NoFile
    }
}

/// What was last seen of the disks' files: reads ask it and no file system.
#[derive(Default)]
pub struct SeenFiles(std::sync::RwLock<std::collections::HashMap<DiskId, Option<SeenFile>>>);

impl SeenFiles {
    pub(super) fn note(&self, found: impl Iterator<Item = (DiskId, Option<SeenFile>)>) {
        let mut seen = self
            .0
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.extend(found);
    }

    /// Forgets what is no disk any more.
    pub(super) fn keep(&self, known: impl Fn(&DiskId) -> bool) {
        let mut seen = self
            .0
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.retain(|id, _| known(id));
    }

    fn forget(&self, id: &DiskId) {
        let mut seen = self
            .0
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.remove(id);
    }

    fn get(&self, id: &DiskId) -> LastSeen {
        let seen = self
            .0
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match seen.get(id) {
            None => LastSeen::NotYet,
            Some(None) => LastSeen::NoFile,
            Some(Some(file)) => LastSeen::File(*file),
        }
    }
}

/// Why an image was not taken or not deleted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Its file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its record.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An image of that name is there.
    #[error("an image named {0} exists: delete it first, or choose another name")]
    Exists(ImageName),
    /// An upload or a deletion of that name is under way.
    #[error("an upload or a deletion of image {0} is under way")]
    BeingUploaded(ImageName),
    /// No image of that name.
    #[error("no image named {0}")]
    NotFound(ImageName),
    /// It is used.
    #[error("image {name} is used by {}", users.join(", "))]
    InUse {
        /// The image.
        name: ImageName,
        /// Who uses it.
        users: Vec<String>,
    },
}

/// Disks and images, as others see them.
#[derive(Clone)]
pub struct DisksHandle {
    pub(super) slot: Arc<DisksSlot>,
    images: Arc<dyn ImageFiles>,
    pub(super) files: Arc<dyn DiskFiles>,
    pub(super) store: StoreHandle,
    uploads: Arc<std::sync::Mutex<std::collections::BTreeSet<ImageName>>>,
}

fn gone() -> FileError {
    FileError::Io {
        what: "disk registry".to_owned(),
        error: "it is being restarted; try again".to_owned(),
    }
}

/// An upload under way. Dropping it leaves nothing.
pub struct StartedUpload {
    name: ImageName,
    kind: ImageKind,
    upload: Box<dyn Upload>,
    handle: DisksHandle,
    _turn: UploadTurn,
}

struct UploadTurn(DisksHandle, ImageName);

impl Drop for UploadTurn {
    fn drop(&mut self) {
        self.0.uploading().remove(&self.1);
    }
}

impl DisksHandle {
    /// A handle that stays good across restarts of the actor.
    pub fn new(
        slot: Arc<DisksSlot>,
        files: Arc<dyn DiskFiles>,
        images: Arc<dyn ImageFiles>,
        store: StoreHandle,
    ) -> Self {
        Self {
            slot,
            files,
            images,
            store,
            uploads: Arc::default(),
        }
    }

    fn uploading(&self) -> std::sync::MutexGuard<'_, std::collections::BTreeSet<ImageName>> {
        self.uploads
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The file that a disk is to have, as its row says.
    pub(crate) fn file_of(&self, disk: &DiskRecord) -> NewDiskFile {
        let inventory = self.store.inventory();
        let image = disk
            .image
            .as_ref()
            .and_then(|name| inventory.images.get(name));
        NewDiskFile {
            id: disk.id.clone(),
            format: disk.format,
            size_mib: disk.size_mib,
            image: image.map(|image| (image.value.name.clone(), image.value.format)),
            made: disk.file == DiskFile::Made,
        }
    }

    /// Makes the file of a disk unless it is there, and answers its path.
    pub async fn ensure(&self, disk: NewDiskFile) -> Result<PathBuf, FileError> {
        Ok(self.hold(disk).await?.path)
    }

    /// Makes the file of a disk unless it is there. Nobody else works on it until what is answered is dropped.
    pub async fn hold(&self, disk: NewDiskFile) -> Result<HeldFile, FileError> {
        let actor = self.slot.actor.get().ok_or_else(gone)?;
        let (reply, answer) = oneshot::channel();
        actor
            .cast(DisksMsg::Ensure(disk, reply))
            .map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Removes the file of a disk. Idempotent.
    pub async fn remove(&self, id: DiskId, format: DiskFormat) -> Result<(), FileError> {
        let actor = self.slot.actor.get().ok_or_else(gone)?;
        let (reply, answer) = oneshot::channel();
        actor
            .cast(DisksMsg::Remove(id, format, reply))
            .map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Bytes that can still be written to the storage.
    pub async fn space(&self) -> Result<u64, FileError> {
        self.files.space().await
    }

    /// What was last seen of a disk's file.
    pub fn seen(&self, id: &DiskId) -> LastSeen {
        self.slot.seen.get(id)
    }

    pub(super) fn forget(&self, id: &DiskId) {
        self.slot.seen.forget(id);
    }

    /// Where an image's file is.
    pub fn image_path(&self, name: &ImageName) -> PathBuf {
        self.images.path(name)
    }

    /// Begins to stream an image in.
    pub async fn begin_upload(
        &self,
        name: ImageName,
        kind: ImageKind,
    ) -> Result<StartedUpload, ImageError> {
        if self.store.inventory().images.contains_key(&name) {
            return Err(ImageError::Exists(name));
        }
        if !self.uploading().insert(name.clone()) {
            return Err(ImageError::BeingUploaded(name));
        }
        let turn = UploadTurn(self.clone(), name.clone());
        let upload = self.images.begin(&name).await?;
        Ok(StartedUpload {
            name,
            kind,
            upload,
            handle: self.clone(),
            _turn: turn,
        })
    }

    /// That there is no record of this name, for certain: an upload before may
    /// have ended with an unknown outcome, which only a store that has read its
    /// file again tells.
    fn check_absent(&self, name: &ImageName) -> Result<(), ImageError> {
        if !self.store.is_running() {
            return Err(StoreError::Unavailable.into());
        }
        if self.store.inventory().images.contains_key(name) {
            return Err(ImageError::Exists(name.clone()));
        }
        Ok(())
    }

    /// Deletes an image that nothing uses: its record first, so that nothing can
    /// begin to use it, then its file (a file without a record is swept at start).
    pub async fn delete_image(
        &self,
        name: ImageName,
        origin: Origin,
        now: UnixMs,
    ) -> Result<(), ImageError> {
        // Or the file that is removed below could be a later upload's.
        if !self.uploading().insert(name.clone()) {
            return Err(ImageError::BeingUploaded(name));
        }
        let _turn = UploadTurn(self.clone(), name.clone());
        let change = Change {
            guards: vec![
                Guard::ImagePresent(name.clone()),
                Guard::ImageUnused(name.clone()),
            ],
            writes: vec![Write::EraseImage(name.clone())],
            event: Some(image_event(&name, EventKind::ImageDeleted, origin, now)),
        };
        match self.store.commit(change).await {
            Ok(_) => Ok(self.images.remove(&name).await?),
            Err(StoreError::Conflict(Guard::ImagePresent(name))) => Err(ImageError::NotFound(name)),
            Err(StoreError::Conflict(Guard::ImageUnused(name))) => {
                let users = self.store.inventory().users_of_image(&name);
                Err(ImageError::InUse { name, users })
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl StartedUpload {
    /// Takes the next bytes.
    pub async fn write(&mut self, bytes: bytes::Bytes) -> Result<(), ImageError> {
        Ok(self.upload.write(bytes).await?)
    }

    /// All bytes came: verifies, inspects, names the file and commits the record.
    pub async fn finish(
        self,
        sha256: Option<String>,
        origin: Origin,
        now: UnixMs,
    ) -> Result<ImageRecord, ImageError> {
        let staged = self.upload.finish(self.kind, sha256).await?;
        let record = ImageRecord {
            name: self.name.clone(),
            kind: self.kind,
            format: staged.format,
            file_size: staged.file_size,
            virtual_size: staged.virtual_size,
            sha256: staged.sha256.clone(),
            created_at: now,
        };
        self.handle.check_absent(&self.name)?;
        self.handle.images.publish(&self.name, staged).await?;
        let change = Change {
            guards: vec![Guard::ImageAbsent(self.name.clone())],
            writes: vec![Write::PutImage(record.clone())],
            event: Some(image_event(
                &self.name,
                EventKind::ImageCreated,
                origin,
                now,
            )),
        };
        match self.handle.store.commit(change).await {
            Ok(_) => Ok(record),
            Err(error) => {
                // Where it is certain that there is no record there shall be no
                // file; otherwise the next start sweeps what has none. That this
                // change was not written does not say that no earlier one was.
                if error.is_certain() && self.handle.check_absent(&self.name).is_ok() {
                    let _ = self.handle.images.remove(&self.name).await;
                }
                Err(error.into())
            }
        }
    }
}

fn image_event(name: &ImageName, kind: EventKind, origin: Origin, now: UnixMs) -> EventDraft {
    EventDraft::new(
        now,
        Subject::Image(name.clone()),
        kind,
        format!(
            "image {name} {}",
            if kind == EventKind::ImageCreated {
                "is ready"
            } else {
                "was deleted"
            }
        ),
        Cause::new(origin, kind.as_str()),
    )
}
