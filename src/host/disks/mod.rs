//! Disk files: made whole or not at all.
//!
//! Owns: `<storage>/disks` and the `disk-*` files in `<storage>/tmp`; runs qemu-img. Must not: know
//! who uses a disk; the store does. Look next: [`tool`], [`super::folder`], [`super::inspect`].

mod tool;

use super::{
    dirs::StorageDirs,
    folder::{Folder, Unfinished, blocking, file_error, looking},
    inspect::{InspectError, virtual_size},
    jail::ToolJail,
};
use std::{
    ffi::OsString,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tool::{Call, QemuImg};
use vman_actors::ports::{BoxFuture, DiskFiles, FileError, NewDiskFile, SeenFile};
use vman_model::{DiskFormat, DiskId, ImageFormat, ImageName};

const MIB: u64 = 1 << 20;
/// The unit of a file's blocks (stat(2)).
const STAT_BLOCK: u64 = 512;
/// Disk files under the storage path.
#[derive(Clone, Debug)]
pub struct HostDisks {
    disks: Folder,
    tmp: Folder,
    images: Folder,
    tool: QemuImg,
    next: Arc<AtomicU64>,
}

impl HostDisks {
    /// Disk files in `dirs`, made by `qemu_img` in its jail (none: qcow2 disks cannot be made). The
    /// folders must be there ([`super::dirs::StorageLock::acquire`] makes them).
    pub fn new(dirs: &StorageDirs, qemu_img: Option<Arc<ToolJail>>) -> io::Result<Self> {
        Ok(Self {
            disks: Folder::open(&dirs.disks())?,
            tmp: Folder::open(&dirs.tmp())?,
            images: Folder::open(&dirs.images())?,
            tool: QemuImg::new(qemu_img),
            next: Arc::default(),
        })
    }

    async fn make(self, disk: NewDiskFile) -> Result<PathBuf, FileError> {
        let name = file_name(&disk.id, disk.format);
        let path = self.disks.path(&name);
        let what = format!("making disk {}", disk.id);
        let checked = self.clone();
        let (wanted, file) = (disk.clone(), name.clone());
        let told = what.clone();
        let there = looking("looking for a disk", move || {
            let size = checked
                .size_of(&file, wanted.format)
                .map_err(|error| file_error(&told, &error))?;
            match size {
                None if wanted.made => Err(FileError::Io {
                    what: format!("disk {}", wanted.id),
                    error: "its file is gone: restore it, or delete the disk".to_owned(),
                }),
                None => checked.fits(&wanted).map(|()| None),
                Some(size) => Ok(Some(size)),
            }
        })
        .await?;
        if let Some(size) = there {
            if size < disk.size_mib.saturating_mul(MIB) {
                self.grow(&disk, &name).await?;
            }
            return Ok(path);
        }
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let part = format!("disk-{}-{n}.part", std::process::id());
        let unfinished = Unfinished::new(&self.tmp, part);
        match disk.format {
            DiskFormat::Qcow2 => self.run_qemu_img(&what, &disk, &unfinished).await?,
            DiskFormat::Raw => self.make_raw(&what, &disk, &unfinished).await?,
        }
        blocking("naming a disk", move || {
            let named = || -> io::Result<()> {
                self.tmp.write(unfinished.name())?.sync_all()?;
                let part = unfinished.name();
                match self.tmp.move_to(part, &self.disks, &name, false) {
                    // Made by another call meanwhile; a guest may have it open already.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                    other => other,
                }
            };
            named().map_err(|error| file_error(what, &error))
        })
        .await?;
        Ok(path)
    }

    /// Whether a disk like this can be: size, format, image.
    fn fits(&self, disk: &NewDiskFile) -> Result<(), FileError> {
        let id = &disk.id;
        let Some(size) = disk.size_mib.checked_mul(MIB).filter(|size| *size > 0) else {
            return Err(FileError::Refused(format!(
                "disk {id} cannot have {} MiB",
                disk.size_mib
            )));
        };
        let Some((image, format)) = &disk.image else {
            return Ok(());
        };
        if disk.format == DiskFormat::Raw {
            return Err(FileError::Refused(format!(
                "disk {id} is to be a linked clone of image {image}: only a qcow2 disk can be one"
            )));
        }
        let image_size = self.image_size(image, *format)?;
        if size < image_size {
            return Err(FileError::Refused(format!(
                "disk {id} of {} MiB is smaller than image {image}, which needs {} MiB",
                disk.size_mib,
                image_size.div_ceil(MIB)
            )));
        }
        Ok(())
    }

    fn image_size(&self, image: &ImageName, format: ImageFormat) -> Result<u64, FileError> {
        let what = format!("reading image {image}");
        let mut file = match self.images.read(image.as_str()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(FileError::Refused(format!(
                    "the file of image {image} is gone"
                )));
            }
            other => other.map_err(|error| file_error(&what, &error))?,
        };
        virtual_size(format, &mut file).map_err(|error| match error {
            InspectError::Refused(why) => FileError::Refused(format!("image {image}: {why}")),
            InspectError::Io(error) => file_error(&what, &error),
        })
    }

    async fn make_raw(
        &self,
        what: &str,
        disk: &NewDiskFile,
        unfinished: &Unfinished,
    ) -> Result<(), FileError> {
        let (tmp, name) = (self.tmp.clone(), unfinished.name().to_owned());
        let (size, what) = (disk.size_mib * MIB, what.to_owned());
        blocking("making a disk", move || {
            tmp.create(&name)
                .and_then(|file| file.set_len(size))
                .map_err(|error| file_error(what, &error))
        })
        .await
    }

    async fn run_qemu_img(
        &self,
        what: &str,
        disk: &NewDiskFile,
        unfinished: &Unfinished,
    ) -> Result<(), FileError> {
        // The file qemu-img makes would be readable for all; made by us it is private, and
        // qemu-img keeps it.
        self.tmp
            .create(unfinished.name())
            .map_err(|error| file_error(what, &error))?;
        let call = Call {
            words: arguments(disk, unfinished),
            read: self.image_of(disk),
            write: unfinished.path(),
            largest: 0,
        };
        self.tool.run(what, call).await
    }

    /// The file of the image that a disk is a linked clone of.
    fn image_of(&self, disk: &NewDiskFile) -> Vec<PathBuf> {
        let image = disk.image.iter();
        image
            .map(|(name, _)| self.images.path(name.as_str()))
            .collect()
    }

    /// The size that a guest sees of a disk's file; none if it is not there. Two numbers of the
    /// header are read and nothing is believed but the size.
    fn size_of(&self, name: &str, format: DiskFormat) -> io::Result<Option<u64>> {
        let mut file = match self.disks.read(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        if format == DiskFormat::Raw {
            return Ok(Some(file.metadata()?.len()));
        }
        let mut head = [0; QCOW2_SIZE_END];
        let whole = match file.read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
            read => read.map(|()| true)?,
        };
        let (magic, size) = (&head[..4], &head[QCOW2_SIZE_END - 8..]);
        if !whole || magic != b"QFI\xfb" {
            return Err(io::Error::other("it is no qcow2 file any more"));
        }
        let size = size
            .iter()
            .fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
        Ok(Some(size))
    }

    /// Grows a file that no QEMU has open (qemu-img's own lock sees to that). Killed at any moment,
    /// the file has the old or the new size.
    async fn grow(&self, disk: &NewDiskFile, name: &str) -> Result<(), FileError> {
        let what = format!("growing disk {}", disk.id);
        let size = disk.size_mib.checked_mul(MIB).ok_or_else(|| {
            FileError::Refused(format!(
                "disk {} cannot have {} MiB",
                disk.id, disk.size_mib
            ))
        })?;
        match disk.format {
            DiskFormat::Qcow2 => {
                let (disks, file) = (self.disks.clone(), name.to_owned());
                let told = what.clone();
                let largest = blocking("growing a disk", move || {
                    let file = disks.read(&file).and_then(|file| file.metadata());
                    file.map(|file| file.len())
                        .map_err(|error| file_error(told, &error))
                })
                .await?;
                let write = self.disks.path(name);
                let call = Call {
                    words: resize_arguments(&write, size),
                    read: self.image_of(disk),
                    write,
                    largest,
                };
                self.tool.run(&what, call).await
            }
            DiskFormat::Raw => {
                let (disks, name) = (self.disks.clone(), name.to_owned());
                blocking("growing a disk", move || {
                    disks
                        .write(&name)
                        .and_then(|file| file.set_len(size).and_then(|()| file.sync_all()))
                        .map_err(|error| file_error(what, &error))
                })
                .await
            }
        }
    }
}

/// Where the size ends in a qcow2 header: its eighth field, big-endian.
const QCOW2_SIZE_END: usize = 32;

fn resize_arguments(path: &std::path::Path, size: u64) -> Vec<OsString> {
    let mut words: Vec<OsString> = ["resize", "-q", "-f", "qcow2"].map(OsString::from).into();
    words.push(path.into());
    words.push(size.to_string().into());
    words
}

fn file_name(id: &DiskId, format: DiskFormat) -> String {
    format!("{id}.{}", format.as_str())
}

/// The words for qemu-img. None of them is split at commas, and a path that begins with a slash is
/// never taken for a protocol. The backing file is named relative to the disk, so that the storage
/// path may be moved; `tmp` and `disks` lie side by side, so the name is right in both.
fn arguments(disk: &NewDiskFile, unfinished: &Unfinished) -> Vec<OsString> {
    let mut words: Vec<OsString> = ["create", "-q", "-f", disk.format.as_str()]
        .map(OsString::from)
        .into();
    if let Some((image, format)) = &disk.image {
        words.extend(["-F", format.as_str(), "-b"].map(OsString::from));
        words.push(format!("../images/{image}").into());
    }
    words.push(unfinished.path().into());
    words.push(format!("{}M", disk.size_mib).into());
    words
}

impl DiskFiles for HostDisks {
    fn ensure(&self, disk: NewDiskFile) -> BoxFuture<'static, Result<PathBuf, FileError>> {
        Box::pin(self.clone().make(disk))
    }

    fn remove(&self, id: DiskId, format: DiskFormat) -> BoxFuture<'static, Result<(), FileError>> {
        let disks = self.disks.clone();
        Box::pin(blocking("removing a disk", move || {
            disks
                .unlink(&file_name(&id, format))
                .and_then(|was_there| if was_there { disks.sync() } else { Ok(()) })
                .map_err(|error| file_error(format!("removing disk {id}"), &error))
        }))
    }

    fn look(
        &self,
        disks: Vec<(DiskId, DiskFormat)>,
    ) -> BoxFuture<'static, Result<Vec<Option<SeenFile>>, FileError>> {
        let folder = self.disks.clone();
        Box::pin(blocking("looking at disks", move || {
            let look = |(id, format): (DiskId, DiskFormat)| match folder
                .read(&file_name(&id, format))
                .and_then(|file| file.metadata())
            {
                Ok(file) => Ok(Some(SeenFile {
                    allocated: file.blocks() * STAT_BLOCK,
                })),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(file_error(format!("looking at disk {id}"), &error)),
            };
            disks.into_iter().map(look).collect()
        }))
    }

    fn space(&self) -> BoxFuture<'static, Result<u64, FileError>> {
        let folder = self.disks.clone();
        Box::pin(blocking("looking for space", move || {
            folder
                .space()
                .map_err(|error| file_error("looking for space", &error))
        }))
    }
}

#[cfg(test)]
mod tests;
