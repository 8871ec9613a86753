//! Disk files: made whole or not at all.
//!
//! Owns: `<storage>/disks` and the `disk-*` files in `<storage>/tmp`; runs qemu-img. Must not: know
//! who uses a disk; the store does. Look next: [`super::folder`], [`super::inspect`].

use super::{
    dirs::StorageDirs,
    folder::{Folder, Unfinished, blocking, file_error},
    inspect::{InspectError, virtual_size},
};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::{
    ffi::OsString,
    io,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    time::timeout,
};
use vman_actors::ports::{BoxFuture, DiskFiles, FileError, NewDiskFile};
use vman_model::{DiskFormat, DiskId, ImageFormat, ImageName};

const MIB: u64 = 1 << 20;
/// An empty qcow2 file is 200 KiB; qemu-img needs milliseconds for it. A storage that takes a
/// minute is not going to come back.
const QEMU_IMG_DEADLINE: Duration = Duration::from_mins(1);
/// Of what qemu-img says: enough for its sentence.
const STDERR_LIMIT: u64 = 4096;
/// What qemu-img may use: it reads the headers of files that came from outside.
const LIMITS: [(Resource, u64); 3] = [
    (Resource::As, 2 << 30),
    (Resource::Cpu, 30),
    (Resource::Core, 0),
];

/// Disk files under the storage path.
#[derive(Clone, Debug)]
pub struct HostDisks {
    disks: Folder,
    tmp: Folder,
    images: Folder,
    qemu_img: Option<PathBuf>,
    next: Arc<AtomicU64>,
}

impl HostDisks {
    /// Disk files in `dirs`, made by `qemu_img` (none: qcow2 disks cannot be made). The folders
    /// must be there ([`super::dirs::StorageLock::acquire`] makes them).
    pub fn new(dirs: &StorageDirs, qemu_img: Option<PathBuf>) -> io::Result<Self> {
        Ok(Self {
            disks: Folder::open(&dirs.disks())?,
            tmp: Folder::open(&dirs.tmp())?,
            images: Folder::open(&dirs.images())?,
            qemu_img,
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
        let there = blocking("looking for a disk", move || {
            if checked
                .disks
                .has(&file)
                .map_err(|error| file_error(&told, &error))?
            {
                return Ok(true);
            }
            checked.fits(&wanted)?;
            Ok(false)
        })
        .await?;
        if there {
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
        let missing = |why: String| {
            FileError::NoTool(format!(
                "{what}: {why}; install qemu-utils or name it in VMAN_QEMU_IMG"
            ))
        };
        let Some(tool) = &self.qemu_img else {
            return Err(missing("qemu-img was not found".to_owned()));
        };
        let failed = |error: String| FileError::Io {
            what: format!("{what}: qemu-img"),
            error,
        };
        // The file qemu-img makes would be readable for all; made by us it is private, and
        // qemu-img keeps it.
        self.tmp
            .create(unfinished.name())
            .map_err(|error| file_error(what, &error))?;
        let mut child = Command::new(tool)
            .args(arguments(disk, unfinished))
            .env_clear()
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            // Unlike a guest, a half-made file is worth nothing.
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                    missing(format!("{}: {error}", tool.display()))
                }
                _ => failed(error.to_string()),
            })?;
        limit(&child);
        match timeout(QEMU_IMG_DEADLINE, ended(&mut child)).await {
            Ok(Ok((true, _))) => Ok(()),
            Ok(Ok((false, said))) if said.contains("No space left on device") => {
                Err(FileError::NoSpace {
                    what: what.to_owned(),
                })
            }
            Ok(Ok((false, said))) => Err(failed(said)),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => {
                // The file must not be written to once its name is gone.
                let _ = child.kill().await;
                let seconds = QEMU_IMG_DEADLINE.as_secs();
                Err(failed(format!("it was not done after {seconds} s")))
            }
        }
    }
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

/// Best effort: it bounds what a hostile header could make of qemu-img.
fn limit(child: &Child) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let Some(pid) = pid.and_then(Pid::from_raw) else {
        return;
    };
    for (resource, value) in LIMITS {
        let bound = Rlimit {
            current: Some(value),
            maximum: Some(value),
        };
        if let Err(error) = prlimit(Some(pid), resource, bound) {
            tracing::debug!(%error, "qemu-img ran without a limit");
        }
    }
}

/// Whether it succeeded, and the end of what it said.
async fn ended(child: &mut Child) -> io::Result<(bool, String)> {
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(STDERR_LIMIT).read_to_end(&mut said).await?;
    }
    let status = child.wait().await?;
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    let said = if said.is_empty() {
        status.to_string()
    } else {
        said
    };
    Ok((status.success(), said))
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
}

#[cfg(test)]
mod tests;
