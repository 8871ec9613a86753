//! Free-standing disks: deleted, grown and changed.
//!
//! A deletion is a row that says so (`Deleting`), then the file, then the row; one
//! that a kill has cut short is finished by the next start. Must not: plug anything
//! (the VM that has a disk does). Look next: `making.rs`.

use super::{DisksHandle, SeenFiles};
use crate::{
    ports::{DiskFiles, FileError, NewDiskFile},
    store::{StoreError, Versioned},
};
use std::sync::Arc;
use vman_model::{
    Cause, Change, DiskFile, DiskFormat, DiskId, DiskOptions, DiskRecord, EventDraft, EventKind,
    Guard, ImageName, Origin, Subject, UnixMs, VmId, Write,
};

/// How often a change of a row that changed meanwhile is tried again.
const MAX_TRIES: usize = 3;

/// Why something was not done to a disk. Except after `Store(Unknown)` nothing
/// has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskFault {
    /// The name is taken.
    #[error("a disk named {0} exists")]
    Exists(DiskId),
    /// No such disk.
    #[error("no disk named {0}")]
    NotFound(DiskId),
    /// It belongs to a VM.
    #[error("disk {disk} is attached to VM {vm}")]
    Attached {
        /// The disk.
        disk: DiskId,
        /// The VM.
        vm: VmId,
    },
    /// It is being made or deleted.
    #[error("disk {0} is being made or deleted")]
    Busy(DiskId),
    /// The image it names is not there, or is no disk image.
    #[error("there is no disk image named {0}")]
    NoImage(ImageName),
    /// Neither a size nor an image was given.
    #[error("a size is needed where no image is given")]
    NoSize,
    /// It is smaller than its image, or than it was.
    #[error("a disk of {size_mib} MiB is smaller than {what} of {least_mib} MiB")]
    TooSmall {
        /// The size asked for.
        size_mib: u64,
        /// What it must not be smaller than.
        what: String,
        /// The least size.
        least_mib: u64,
    },
    /// The idempotency key was used meanwhile.
    #[error("the idempotency key was used meanwhile")]
    KeyInUse,
    /// Its file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its row.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for DiskFault {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict(Guard::DiskAbsent(id)) => DiskFault::Exists(id),
            StoreError::Conflict(Guard::DiskFree(id) | Guard::DiskRevision(id, _)) => {
                DiskFault::Busy(id)
            }
            StoreError::Conflict(Guard::ImagePresent(name)) => DiskFault::NoImage(name),
            StoreError::Conflict(Guard::KeyUnused(_)) => DiskFault::KeyInUse,
            other => DiskFault::Store(other),
        }
    }
}

type Row = Arc<Versioned<DiskRecord>>;

/// An event about a disk.
pub(super) fn event(
    id: &DiskId,
    kind: EventKind,
    detail: String,
    origin: Origin,
    at: UnixMs,
) -> EventDraft {
    let cause = Cause::new(origin, kind.as_str());
    EventDraft::new(at, Subject::Disk(id.clone()), kind, detail, cause)
}

impl DisksHandle {
    fn row(&self, id: &DiskId) -> Result<Row, DiskFault> {
        let inventory = self.store.inventory();
        let row = inventory.disks.get(id).cloned();
        row.ok_or_else(|| DiskFault::NotFound(id.clone()))
    }

    fn free_row(&self, id: &DiskId) -> Result<Row, DiskFault> {
        let row = self.row(id)?;
        match &row.value.vm_id {
            Some(vm) => Err(DiskFault::Attached {
                disk: id.clone(),
                vm: vm.clone(),
            }),
            None if !row.value.is_free() => Err(DiskFault::Busy(id.clone())),
            None => Ok(row),
        }
    }

    /// Deletes a disk that belongs to no VM, and its file.
    pub async fn delete_disk(
        &self,
        id: DiskId,
        origin: Origin,
        now: UnixMs,
    ) -> Result<(), DiskFault> {
        let mut disk = self.free_row(&id)?.value.clone();
        disk.file = DiskFile::Deleting;
        let begun = Change {
            guards: vec![Guard::DiskFree(id.clone())],
            writes: vec![Write::PutDisk(disk.clone())],
            event: None,
        };
        match self.store.commit(begun).await {
            // It may have gone to a VM, or another deletion was first.
            Err(StoreError::Conflict(_)) => {
                self.free_row(&id)?;
                return Err(DiskFault::Busy(id));
            }
            other => other?,
        };
        let handle = self.clone();
        let done = tokio::spawn(async move { handle.finish_deletion(disk, origin, now).await });
        done.await.unwrap_or(Err(DiskFault::Busy(id)))
    }

    async fn finish_deletion(
        &self,
        disk: DiskRecord,
        origin: Origin,
        now: UnixMs,
    ) -> Result<(), DiskFault> {
        self.remove(disk.id.clone(), disk.format).await?;
        let told = format!("disk {} was deleted", disk.id);
        let erase = Change {
            guards: Vec::new(),
            writes: vec![Write::EraseDisk(disk.id.clone())],
            event: Some(event(&disk.id, EventKind::DiskDeleted, told, origin, now)),
        };
        self.store.commit(erase).await?;
        self.forget(&disk.id);
        tracing::info!(disk_id = %disk.id, "disk deleted");
        Ok(())
    }

    /// Grows a disk that belongs to no VM.
    pub async fn resize_disk(
        &self,
        id: &DiskId,
        size_mib: u64,
        origin: Origin,
        now: UnixMs,
    ) -> Result<(), DiskFault> {
        let row = self.free_row(id)?;
        check_growth(&row.value, size_mib)?;
        let before = row.value.size_mib;
        let told = format!("disk {id} was grown from {before} to {size_mib} MiB");
        let change = Change {
            guards: vec![
                Guard::DiskFree(id.clone()),
                Guard::DiskRevision(id.clone(), row.revision),
            ],
            writes: vec![Write::SizeDisk(id.clone(), size_mib)],
            event: Some(event(id, EventKind::DiskChanged, told, origin, now)),
        };
        self.store.commit(change).await?;
        self.grow_file(id, before).await
    }

    /// Brings the file of a disk that no QEMU has open to the size of its row. Where
    /// that fails the row says `before` again.
    pub async fn grow_file(&self, id: &DiskId, before: u64) -> Result<(), DiskFault> {
        let row = self.row(id)?;
        let disk = &row.value;
        if disk.file == DiskFile::OnDemand && disk.root {
            // Its file comes with this size, or is grown before its next use.
            return Ok(());
        }
        let file = NewDiskFile {
            made: true,
            ..self.file_of(disk)
        };
        if let Err(error) = self.ensure(file).await {
            let back = Change {
                guards: vec![Guard::DiskRevision(id.clone(), row.revision)],
                writes: vec![Write::SizeDisk(id.clone(), before)],
                event: None,
            };
            if let Err(error) = self.store.commit(back).await {
                tracing::warn!(disk_id = %id, %error, "a disk's size could not be set back");
            }
            return Err(error.into());
        }
        self.look_now(disk).await;
        Ok(())
    }

    /// Changes a disk's options.
    pub async fn change_disk(
        &self,
        id: &DiskId,
        change: impl Fn(&mut DiskOptions),
        origin: Origin,
        now: UnixMs,
    ) -> Result<(), DiskFault> {
        for _ in 0..MAX_TRIES {
            let row = self.row(id)?;
            let mut disk = row.value.clone();
            change(&mut disk.options);
            let told = format!("the options of disk {id} were changed");
            let event = event(id, EventKind::DiskChanged, told, origin.clone(), now);
            let put = Change {
                guards: vec![Guard::DiskRevision(id.clone(), row.revision)],
                writes: vec![Write::PutDisk(disk)],
                event: Some(event),
            };
            match self.store.commit(put).await {
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return Ok(()),
            }
        }
        Err(DiskFault::Busy(id.clone()))
    }

    /// Looks at one file now, for the next who reads.
    pub async fn look_now(&self, disk: &DiskRecord) {
        look(
            self.files.as_ref(),
            &self.slot.seen,
            vec![(disk.id.clone(), disk.format)],
        )
        .await;
    }
}

/// Whether a disk may have this size.
pub fn check_growth(disk: &DiskRecord, size_mib: u64) -> Result<(), DiskFault> {
    if size_mib >= disk.size_mib {
        return Ok(());
    }
    Err(DiskFault::TooSmall {
        size_mib,
        what: format!("disk {}", disk.id),
        least_mib: disk.size_mib,
    })
}

/// Notes what is seen of files.
pub(super) async fn look(
    files: &dyn DiskFiles,
    seen: &SeenFiles,
    disks: Vec<(DiskId, DiskFormat)>,
) {
    let ids: Vec<_> = disks.iter().map(|(id, _)| id.clone()).collect();
    match files.look(disks).await {
        Ok(found) => seen.note(ids.into_iter().zip(found)),
        Err(error) => tracing::warn!(%error, "cannot look at the disks' files"),
    }
}
