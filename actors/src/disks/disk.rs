//! Free-standing disks: made, deleted, grown and changed.
//!
//! A disk is made row first (`Making`), then its file, then the row becomes
//! `Made`; deleted the other way round. What a kill leaves in between has a row
//! that says so, and [`recover`] undoes the one and finishes the other. A file
//! without a row is never removed: the row may be what was lost.
//!
//! Must not: plug anything (the VM that has a disk does).

use super::{DisksHandle, SeenFiles};
use crate::{
    failpoint,
    ports::{Clock, DiskFiles, FileError, NewDiskFile},
    store::{StoreError, StoreHandle, Versioned},
};
use std::{fmt::Write as _, sync::Arc};
use vman_model::{
    Cause, Change, DiskFile, DiskFormat, DiskId, DiskOptions, DiskRecord, EventDraft, EventKind,
    Guard, IdempotencyKey, IdempotencyRecord, ImageKind, ImageName, Origin, Subject, UnixMs, VmId,
    Write, change::IdempotentAnswer,
};

const MIB: u64 = 1 << 20;
/// How often a change of a row that changed meanwhile is tried again.
const MAX_TRIES: usize = 3;

/// What a disk is made from.
#[derive(Clone, Debug)]
pub struct NewDisk {
    /// Its id; generated if it is not given.
    pub id: Option<DiskId>,
    /// Its size in MiB; the image's if it is not given.
    pub size_mib: Option<u64>,
    /// The format of its file.
    pub format: DiskFormat,
    /// The image it is a linked clone of.
    pub image: Option<ImageName>,
    /// The letter that is wished for.
    pub wished_letter: Option<u8>,
    /// How it behaves.
    pub options: DiskOptions,
    /// Who asks.
    pub origin: Origin,
    /// The client's key with the fingerprint of its request.
    pub idempotency: Option<(IdempotencyKey, [u8; 32])>,
}

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
fn event(id: &DiskId, kind: EventKind, detail: String, origin: Origin, at: UnixMs) -> EventDraft {
    EventDraft {
        at,
        subject: Subject::Disk(id.clone()),
        kind,
        from: None,
        to: None,
        reason: None,
        detail,
        incarnation: None,
        operation: None,
        cause: Cause {
            origin,
            input: kind.as_str().to_owned(),
            led_by: None,
        },
        previous: None,
    }
}

impl DisksHandle {
    /// Makes a disk. `Ok` means that its file is there and its row is durable.
    /// It is made to its end even if the caller goes away.
    pub async fn create_disk(
        &self,
        new: NewDisk,
        clock: Arc<dyn Clock>,
    ) -> Result<DiskId, DiskFault> {
        let handle = self.clone();
        let made = tokio::spawn(async move { handle.make(new, clock.as_ref()).await });
        made.await.unwrap_or_else(|error| {
            let what = "making a disk".to_owned();
            let error = error.to_string();
            Err(FileError::Io { what, error }.into())
        })
    }

    async fn make(&self, new: NewDisk, clock: &dyn Clock) -> Result<DiskId, DiskFault> {
        let (mut disk, file) = self.drafted(&new, clock)?;
        let mut guards = vec![Guard::DiskAbsent(disk.id.clone())];
        guards.extend(disk.image.iter().cloned().map(Guard::ImagePresent));
        let key = new.idempotency;
        guards.extend(key.iter().map(|(key, _)| Guard::KeyUnused(key.clone())));
        let begun = Change {
            guards,
            writes: vec![Write::PutDisk(disk.clone())],
            event: None,
        };
        self.store.commit(begun).await?;
        failpoint::hit("create.row");
        let made = match self.ensure(file).await {
            Ok(_) => {
                failpoint::hit("create.file");
                disk.file = DiskFile::Made;
                self.commit_made(&disk, key, new.origin, clock).await
            }
            Err(error) => Err(error.into()),
        };
        if let Err(error) = made {
            let certain = !matches!(&error, DiskFault::Store(error) if !error.is_certain());
            if certain {
                undo(self, &disk).await;
            }
            return Err(error);
        }
        failpoint::hit("create.committed");
        tracing::info!(disk_id = %disk.id, size_mib = disk.size_mib, "disk made");
        self.look_now(&disk).await;
        Ok(disk.id)
    }

    fn drafted(
        &self,
        new: &NewDisk,
        clock: &dyn Clock,
    ) -> Result<(DiskRecord, NewDiskFile), DiskFault> {
        let id = new.id.clone().unwrap_or_else(|| generated_id(clock));
        let inventory = self.store.inventory();
        let image = match &new.image {
            None => None,
            Some(name) => {
                let row = inventory.images.get(name);
                let disk = row.filter(|row| row.value.kind == ImageKind::Disk);
                let disk = disk.ok_or_else(|| DiskFault::NoImage(name.clone()))?;
                Some(disk.value.clone())
            }
        };
        let least_mib = image.as_ref().map(|image| image.virtual_size.div_ceil(MIB));
        let size_mib = new.size_mib.or(least_mib).ok_or(DiskFault::NoSize)?;
        if let (Some(least_mib), Some(image)) = (least_mib, &image)
            && size_mib < least_mib
        {
            return Err(DiskFault::TooSmall {
                size_mib,
                what: format!("its image {}", image.name),
                least_mib,
            });
        }
        let file = NewDiskFile {
            id: id.clone(),
            format: new.format,
            size_mib,
            image: image.map(|image| (image.name, image.format)),
            made: false,
        };
        let disk = DiskRecord {
            id,
            size_mib,
            format: new.format,
            image: new.image.clone(),
            vm_id: None,
            root: false,
            created_at: clock.now(),
            options: new.options.clone(),
            file: DiskFile::Making,
            wished_letter: new.wished_letter,
        };
        Ok((disk, file))
    }

    async fn commit_made(
        &self,
        disk: &DiskRecord,
        key: Option<(IdempotencyKey, [u8; 32])>,
        origin: Origin,
        clock: &dyn Clock,
    ) -> Result<(), DiskFault> {
        let now = clock.now();
        let mut change = Change {
            guards: Vec::new(),
            writes: vec![Write::PutDisk(disk.clone())],
            event: None,
        };
        if let Some((key, fingerprint)) = key {
            change.guards.push(Guard::KeyUnused(key.clone()));
            change.writes.push(Write::PutIdempotency(IdempotencyRecord {
                key,
                fingerprint,
                answer: IdempotentAnswer::Disk(disk.id.clone()),
                created_at: now,
            }));
        }
        let told = format!("disk {} of {} MiB was made", disk.id, disk.size_mib);
        change.event = Some(event(&disk.id, EventKind::DiskCreated, told, origin, now));
        self.store.commit(change).await?;
        Ok(())
    }

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
        failpoint::hit("delete.row");
        self.remove(disk.id.clone(), disk.format).await?;
        failpoint::hit("delete.file");
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
        failpoint::hit("resize.row");
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
        failpoint::hit("resize.done");
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

/// Removes what a disk that came to nothing has left, and its row.
async fn undo(handle: &DisksHandle, disk: &DiskRecord) {
    if let Err(error) = handle.remove(disk.id.clone(), disk.format).await {
        tracing::warn!(disk_id = %disk.id, %error, "a half-made disk stays until the next start");
        return;
    }
    erase_row(&handle.store, &disk.id).await;
}

async fn erase_row(store: &StoreHandle, id: &DiskId) {
    let erase = Change {
        guards: Vec::new(),
        writes: vec![Write::EraseDisk(id.clone())],
        event: None,
    };
    if let Err(error) = store.commit(erase).await {
        tracing::warn!(disk_id = %id, %error, "the row of a disk stays until the next start");
    }
}

/// At the start of a daemon: undoes what was being made, finishes what was being
/// deleted.
pub(super) async fn recover(store: &StoreHandle, files: &dyn DiskFiles) {
    let inventory = store.inventory();
    for row in inventory.disks.values() {
        let disk = &row.value;
        if !matches!(disk.file, DiskFile::Making | DiskFile::Deleting) {
            continue;
        }
        match files.remove(disk.id.clone(), disk.format).await {
            Ok(()) => {
                erase_row(store, &disk.id).await;
                tracing::info!(disk_id = %disk.id, state = ?disk.file, "a disk that a daemon was at was removed");
            }
            Err(error) => tracing::warn!(disk_id = %disk.id, %error, "a half-made disk stays"),
        }
    }
}

fn generated_id(clock: &dyn Clock) -> DiskId {
    let mut id = "disk-".to_owned();
    for byte in &clock.random()[..6] {
        let _ = write!(id, "{byte:02x}");
    }
    DiskId::parse(&id).expect("hex and a hyphen are an id")
}
