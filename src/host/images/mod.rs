//! Image files: streamed in under a temporary name, inspected, synced, and then given their name.
//!
//! Owns: `<storage>/images` and the `image-*` files in `<storage>/tmp`. Must not: know which image
//! is in use; the store does. Look next: [`upload`] for the streaming, [`super::inspect`] for what
//! is let in.

mod upload;

use super::{
    dirs::StorageDirs,
    folder::{Folder, Unfinished, blocking, file_error},
};
use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use upload::HostUpload;
use vman_actors::ports::{BoxFuture, FileError, ImageFiles, StagedImage, Upload};
use vman_model::ImageName;

/// The largest image that is taken, where nothing else is said: 1 TiB.
pub const DEFAULT_IMAGE_LIMIT: u64 = 1 << 40;

/// Image files under the storage path.
#[derive(Debug)]
pub struct HostImages {
    images: Folder,
    tmp: Folder,
    limit: u64,
    /// Tells this daemon's half-made files from those of an earlier one.
    instance: String,
    next: Arc<AtomicU64>,
}

impl HostImages {
    /// Image files in `dirs`, each of at most `limit` bytes. The folders must be there
    /// ([`super::dirs::StorageLock::acquire`] makes them).
    pub fn new(dirs: &StorageDirs, limit: u64) -> io::Result<Self> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        Ok(Self {
            images: Folder::open(&dirs.images())?,
            tmp: Folder::open(&dirs.tmp())?,
            limit,
            instance: format!("image-{:016x}-", u64::from_ne_bytes(random)),
            next: Arc::default(),
        })
    }
}

impl ImageFiles for HostImages {
    fn begin(&self, name: &ImageName) -> BoxFuture<'static, Result<Box<dyn Upload>, FileError>> {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let unfinished = Unfinished::new(&self.tmp, format!("{}{n}.part", self.instance));
        let (tmp, limit) = (self.tmp.clone(), self.limit);
        let what = format!("receiving image {name}");
        Box::pin(blocking("receiving an image", move || {
            let file = tmp
                .create(unfinished.name())
                .map_err(|error| file_error(&what, &error))?;
            Ok(Box::new(HostUpload::new(what, file, unfinished, limit)) as Box<dyn Upload>)
        }))
    }

    fn publish(
        &self,
        name: &ImageName,
        staged: StagedImage,
    ) -> BoxFuture<'static, Result<(), FileError>> {
        let (tmp, images, name) = (self.tmp.clone(), self.images.clone(), name.clone());
        Box::pin(blocking("naming an image", move || {
            // Whole: of a field alone that is used in here, the rest with its guard would be dropped
            // right away, and the file with it.
            let staged = staged;
            let what = format!("naming image {name}");
            let file = staged.path.file_name().and_then(|file| file.to_str());
            let Some(file) = file.filter(|file| tmp.path(file) == staged.path) else {
                return Err(FileError::Refused(format!(
                    "{what}: it was not staged here"
                )));
            };
            // In place of what has this name: a file without a record, for the caller has looked.
            tmp.move_to(file, &images, name.as_str(), true)
                .map_err(|error| file_error(&what, &error))
        }))
    }

    fn remove(&self, name: &ImageName) -> BoxFuture<'static, Result<(), FileError>> {
        let (images, name) = (self.images.clone(), name.clone());
        Box::pin(blocking("removing an image", move || {
            images
                .unlink(name.as_str())
                .and_then(|was_there| if was_there { images.sync() } else { Ok(()) })
                .map_err(|error| file_error(format!("removing image {name}"), &error))
        }))
    }

    fn path(&self, name: &ImageName) -> PathBuf {
        self.images.path(name.as_str())
    }

    fn sweep(&self, known: Vec<ImageName>) -> BoxFuture<'static, Result<(), FileError>> {
        let (tmp, images, ours) = (self.tmp.clone(), self.images.clone(), self.instance.clone());
        Box::pin(blocking("sweeping images", move || {
            sweep(&images, |name| known.iter().any(|k| k.as_str() == name))
                .and_then(|()| {
                    sweep(&tmp, |name| {
                        !name.starts_with("image-") || name.starts_with(&ours)
                    })
                })
                .map_err(|error| file_error("sweeping images", &error))
        }))
    }
}

fn sweep(folder: &Folder, keep: impl Fn(&str) -> bool) -> io::Result<()> {
    for name in folder.names()? {
        if !keep(&name) {
            folder.unlink(&name)?;
            tracing::warn!(
                file = %folder.path(&name).display(),
                "removed an image file that no record knows"
            );
        }
    }
    folder.sync()
}

#[cfg(test)]
mod tests;
