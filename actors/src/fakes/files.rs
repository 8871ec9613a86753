//! Disk and image files that are only names and sizes: no bytes are kept.

use super::world::World;
use crate::ports::{
    BoxFuture, DiskFiles, FileError, ImageFiles, NewDiskFile, SeenFile, StagedImage, Upload,
};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::{
    fmt::Write,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use vman_model::{DiskFormat, DiskId, ImageFormat, ImageKind, ImageName};

/// The largest image: a file that a simulated host has no room for.
const MAX_IMAGE: u64 = 1 << 40;

pub(super) struct FakeDisks {
    pub(super) world: Arc<World>,
    pub(super) daemon: u64,
}

fn disk_path(id: &DiskId, format: DiskFormat) -> PathBuf {
    PathBuf::from(format!("/simulated/disks/{id}.{}", format.as_str()))
}

/// The VM whose script says what becomes of its root disk.
fn vm_of(disk: &DiskId) -> Option<vman_model::VmId> {
    vman_model::VmId::parse(disk.as_str().strip_suffix("-root")?).ok()
}

impl DiskFiles for FakeDisks {
    fn ensure(&self, disk: NewDiskFile) -> BoxFuture<'static, Result<PathBuf, FileError>> {
        let (world, daemon) = (self.world.clone(), self.daemon);
        Box::pin(async move {
            if let Some(vm) = vm_of(&disk.id) {
                let takes = world.script(&vm).disk_takes;
                world.pause(daemon, takes).await;
                if world.spend(&vm, |script| &mut script.disk_errors) {
                    let what = format!("making disk {}", disk.id);
                    return Err(FileError::NoSpace { what });
                }
            }
            if disk.made && !world.things().disks.contains(&disk.id) {
                let what = format!("disk {}", disk.id);
                let error = "its file is gone".to_owned();
                return Err(FileError::Io { what, error });
            }
            world.things().disks.insert(disk.id.clone());
            Ok(disk_path(&disk.id, disk.format))
        })
    }

    fn remove(&self, id: DiskId, _: DiskFormat) -> BoxFuture<'static, Result<(), FileError>> {
        let (world, daemon) = (self.world.clone(), self.daemon);
        Box::pin(async move {
            world.pause(daemon, Duration::ZERO).await;
            if world.things().uses_disk(&id) {
                world.violation(format!("disk {id} was removed under a QEMU"));
            }
            world.things().disks.remove(&id);
            Ok(())
        })
    }

    fn look(
        &self,
        disks: Vec<(DiskId, DiskFormat)>,
    ) -> BoxFuture<'static, Result<Vec<Option<SeenFile>>, FileError>> {
        let there = self.world.things().disks.clone();
        let seen = |(id, _): (DiskId, _)| there.contains(&id).then_some(SeenFile { allocated: 0 });
        let seen = disks.into_iter().map(seen).collect();
        Box::pin(async move { Ok(seen) })
    }

    fn space(&self) -> BoxFuture<'static, Result<u64, FileError>> {
        Box::pin(async { Ok(SPACE) })
    }
}

/// Room on the simulated storage, in bytes.
const SPACE: u64 = 1 << 40;

pub(super) struct FakeImages {
    pub(super) world: Arc<World>,
    pub(super) daemon: u64,
}

impl ImageFiles for FakeImages {
    fn begin(&self, name: &ImageName) -> BoxFuture<'static, Result<Box<dyn Upload>, FileError>> {
        let upload = FakeUpload {
            name: name.clone(),
            digest: Sha256::new(),
            head: Vec::new(),
            size: 0,
        };
        let (world, daemon) = (self.world.clone(), self.daemon);
        Box::pin(async move {
            world.pause(daemon, Duration::ZERO).await;
            Ok(Box::new(upload) as Box<dyn Upload>)
        })
    }

    fn publish(
        &self,
        name: &ImageName,
        staged: StagedImage,
    ) -> BoxFuture<'static, Result<(), FileError>> {
        let (world, name) = (self.world.clone(), name.clone());
        Box::pin(async move {
            world.things().images.insert(name, staged.file_size);
            Ok(())
        })
    }

    fn remove(&self, name: &ImageName) -> BoxFuture<'static, Result<(), FileError>> {
        let (world, name) = (self.world.clone(), name.clone());
        Box::pin(async move {
            world.things().images.remove(&name);
            Ok(())
        })
    }

    fn path(&self, name: &ImageName) -> PathBuf {
        PathBuf::from(format!("/simulated/images/{name}"))
    }

    fn sweep(&self, known: Vec<ImageName>) -> BoxFuture<'static, Result<(), FileError>> {
        self.world.image_sweeps.fetch_add(1, Ordering::SeqCst);
        let images = &mut self.world.things().images;
        images.retain(|name, _| known.contains(name));
        Box::pin(async { Ok(()) })
    }
}

struct FakeUpload {
    name: ImageName,
    digest: Sha256,
    /// The first bytes, where a format's header would be.
    head: Vec<u8>,
    size: u64,
}

const QCOW2_HEADER: usize = 72;

impl FakeUpload {
    fn staged(self, kind: ImageKind, expected: Option<String>) -> Result<StagedImage, FileError> {
        let mut actual = String::with_capacity(64);
        for byte in self.digest.finalize() {
            let _ = write!(actual, "{byte:02x}");
        }
        if let Some(expected) = expected.filter(|expected| *expected != actual) {
            return Err(FileError::Checksum { expected, actual });
        }
        if self.size == 0 {
            return Err(FileError::Refused("the image is empty".to_owned()));
        }
        let qcow2 = kind == ImageKind::Disk && self.head.starts_with(b"QFI\xfb");
        let (format, virtual_size) = if qcow2 {
            let size = self.head.get(24..32).and_then(|size| size.try_into().ok());
            let size = size.filter(|_| self.head.len() >= QCOW2_HEADER);
            let cut = || FileError::Refused("the qcow2 header is cut short".to_owned());
            (
                ImageFormat::Qcow2,
                size.map(u64::from_be_bytes).ok_or_else(cut)?,
            )
        } else {
            (ImageFormat::Raw, self.size)
        };
        Ok(StagedImage {
            path: PathBuf::from(format!("/simulated/images/.{}.part", self.name)),
            format,
            file_size: self.size,
            virtual_size,
            sha256: actual,
            guard: Box::new(()),
        })
    }
}

impl Upload for FakeUpload {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), FileError>> {
        let wanted = QCOW2_HEADER.saturating_sub(self.head.len());
        self.head.extend(bytes.iter().take(wanted));
        self.digest.update(&bytes);
        self.size += bytes.len() as u64;
        let over = self.size > MAX_IMAGE;
        Box::pin(async move {
            if over {
                return Err(FileError::TooLarge { limit: MAX_IMAGE });
            }
            Ok(())
        })
    }

    fn finish(
        self: Box<Self>,
        kind: ImageKind,
        sha256: Option<String>,
    ) -> BoxFuture<'static, Result<StagedImage, FileError>> {
        Box::pin(async move { self.staged(kind, sha256) })
    }
}
