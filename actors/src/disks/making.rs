//! Disks are made: the row first (`Making`), then the file, then the row becomes
//! `Made`.
//!
//! What a kill leaves in between has a row that says so, and [`recover`] undoes it,
//! as it finishes a deletion (`disk.rs`). A file without a row is never removed: the
//! row may be what was lost.

use super::{
    DisksHandle,
    disk::{DiskFault, event},
};
use crate::{
    ports::{Clock, DiskFiles, FileError, NewDiskFile},
    store::StoreHandle,
};
use std::{fmt::Write as _, sync::Arc};
use vman_model::{
    Change, DiskFile, DiskFormat, DiskId, DiskOptions, DiskRecord, EventKind, Guard,
    IdempotencyKey, IdempotencyRecord, ImageKind, ImageName, Origin, Write,
    change::IdempotentAnswer,
};

const MIB: u64 = 1 << 20;

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
        let made = match self.ensure(file).await {
            Ok(_) => {
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
