//! Disk and image files under the storage path. Every file comes to be under a
//! temporary name, is synced, renamed, and its directory synced.

use super::BoxFuture;
use bytes::Bytes;
use std::path::PathBuf;
use vman_model::{DiskFormat, DiskId, ImageFormat, ImageKind, ImageName};

/// Why a file could not be made, read or removed. Nothing half-made is left.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The storage is full.
    #[error("{what}: no space left on the storage")]
    NoSpace {
        /// What was being done.
        what: String,
    },
    /// The content is not what it must be; a client's fault.
    #[error("{0}")]
    Refused(String),
    /// More bytes than the limit; a client's fault.
    #[error("more than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The checksum does not match; a client's fault.
    #[error("checksum mismatch: the upload is {actual}, {expected} was promised")]
    Checksum {
        /// What the client promised, lower-case hex.
        expected: String,
        /// What came, lower-case hex.
        actual: String,
    },
    /// A tool that is needed is missing.
    #[error("{0}")]
    NoTool(String),
    /// Anything else the system said.
    #[error("{what}: {error}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        error: String,
    },
}

/// A disk file to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDiskFile {
    /// The disk.
    pub id: DiskId,
    /// Its format.
    pub format: DiskFormat,
    /// The size a guest sees, in MiB.
    pub size_mib: u64,
    /// The image it is a linked clone of.
    pub image: Option<(ImageName, ImageFormat)>,
    /// It was made before: a missing file is an error and no empty one takes
    /// its place.
    pub made: bool,
}

/// What is seen of a disk's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenFile {
    /// Bytes it takes on the host's storage.
    pub allocated: u64,
}

/// Disk files, by id.
pub trait DiskFiles: Send + Sync + 'static {
    /// Makes the file unless it is there already, grows it if it is smaller than
    /// the disk, and answers its path. Never shrinks.
    fn ensure(&self, disk: NewDiskFile) -> BoxFuture<'static, Result<PathBuf, FileError>>;
    /// Removes the file. Idempotent.
    fn remove(&self, id: DiskId, format: DiskFormat) -> BoxFuture<'static, Result<(), FileError>>;
    /// Looks at the files of these disks, in their order; none where there is
    /// no file.
    fn look(
        &self,
        disks: Vec<(DiskId, DiskFormat)>,
    ) -> BoxFuture<'static, Result<Vec<Option<SeenFile>>, FileError>>;
    /// Bytes that can still be written to the storage.
    fn space(&self) -> BoxFuture<'static, Result<u64, FileError>>;
}

/// An image that was streamed in, inspected and synced under a temporary name.
/// Dropped without [`ImageFiles::publish`], its file is removed.
#[derive(Debug)]
pub struct StagedImage {
    /// Its temporary file.
    pub path: PathBuf,
    /// The inspected format.
    pub format: ImageFormat,
    /// Bytes of the file.
    pub file_size: u64,
    /// Bytes of the disk a guest would see.
    pub virtual_size: u64,
    /// SHA-256, lower-case hex.
    pub sha256: String,
    /// Removes the temporary file when it is dropped.
    pub guard: Box<dyn Send + Sync + std::fmt::Debug>,
}

/// A file that is being streamed in. Dropping it removes what came so far.
pub trait Upload: Send {
    /// Takes the next bytes.
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), FileError>>;
    /// All bytes came: checks the checksum (SHA-256, lower-case hex) if one was
    /// promised, inspects and flattens the file, and syncs it.
    fn finish(
        self: Box<Self>,
        kind: ImageKind,
        sha256: Option<String>,
    ) -> BoxFuture<'static, Result<StagedImage, FileError>>;
}

/// Image files, by name.
pub trait ImageFiles: Send + Sync + 'static {
    /// Begins to stream a file in.
    fn begin(&self, name: &ImageName) -> BoxFuture<'static, Result<Box<dyn Upload>, FileError>>;
    /// Gives a staged file its name. Called right before the image's record is
    /// committed; a file without a record is removed at the next start.
    fn publish(
        &self,
        name: &ImageName,
        staged: StagedImage,
    ) -> BoxFuture<'static, Result<(), FileError>>;
    /// Removes the file. Idempotent.
    fn remove(&self, name: &ImageName) -> BoxFuture<'static, Result<(), FileError>>;
    /// Where an image's file is.
    fn path(&self, name: &ImageName) -> PathBuf;
    /// Removes temporary files and files of no known image, at start.
    fn sweep(&self, known: Vec<ImageName>) -> BoxFuture<'static, Result<(), FileError>>;
}
