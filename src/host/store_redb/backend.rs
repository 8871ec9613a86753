//! The file under the database, with three guarantees that redb does not give by itself.
//!
//! 1. **A corrupt file stays as it is.** Opening repairs and marks the file. Until the open is
//!    known to have succeeded, all writes are kept in memory ([`Trial`]); then they are carried out
//!    in the order in which they came, syncs included, so that this is as crash-safe as the repair.
//! 2. **A full disk is found out before a commit, not in the midst of it.** Growing the file
//!    allocates its blocks at once, and so does the first creation (redb leaves holes).
//! 3. **A failed commit is classified.** A transaction exists once the header names it. While the
//!    header was not touched since [`Watch::begin`], the transaction certainly was not written.
//!
//! Must not: know of tables or rows. Look next: the parent module.

use redb::{BackendError, StorageBackend, backends::FileBackend};
use std::{
    fs::File,
    io,
    ops::Bound,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

/// redb's header is within the first page (redb 4: 320 bytes of 4096).
const HEADER_PAGE: u64 = 4096;

/// What the file went through since a transaction began.
#[derive(Debug, Default)]
pub(super) struct Watch {
    header_touched: AtomicBool,
    first_error: Mutex<Option<io::Error>>,
}

impl Watch {
    /// A transaction begins.
    pub(super) fn begin(&self) {
        self.header_touched.store(false, Ordering::SeqCst);
        *lock(&self.first_error) = None;
    }

    /// Whether the header was written, or tried to be, since the transaction began.
    pub(super) fn header_touched(&self) -> bool {
        self.header_touched.load(Ordering::SeqCst)
    }

    /// The first error of the file since the transaction began. redb's own may only tell that
    /// there was an earlier one.
    pub(super) fn take_error(&self) -> Option<io::Error> {
        lock(&self.first_error).take()
    }

    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result {
            let mut first = lock(&self.first_error);
            if first.is_none() {
                *first = Some(match error.raw_os_error() {
                    Some(code) => io::Error::from_raw_os_error(code),
                    None => io::Error::new(error.kind(), error.to_string()),
                });
            }
        }
        result
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One change that was put off.
#[derive(Debug)]
enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    SetLen(u64),
    Sync,
}

/// Changes that are kept in memory until it is known that the file can be read.
#[derive(Debug)]
struct Trial {
    base_len: u64,
    len: u64,
    changes: Vec<Change>,
}

impl Trial {
    fn read(&self, file: &dyn StorageBackend, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.saturating_add(out.len() as u64);
        if end > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let from_file = cut(out.len(), self.base_len.saturating_sub(offset));
        file.read(offset, &mut out[..from_file])?;
        out[from_file..].fill(0);
        for change in &self.changes {
            match change {
                Change::Write { offset: at, bytes } => overlay(offset, out, *at, bytes),
                Change::SetLen(len) => {
                    let kept = cut(out.len(), len.saturating_sub(offset));
                    out[kept..].fill(0);
                }
                Change::Sync => {}
            }
        }
        Ok(())
    }
}

/// Allocates the blocks from `from` to `to`; what is there stays as it is.
pub(super) fn allocate(file: &File, from: u64, to: u64) -> io::Result<()> {
    let flags = rustix::fs::FallocateFlags::empty();
    match rustix::fs::fallocate(file, flags, from, to - from) {
        Ok(()) => Ok(()),
        // This file system cannot: the length alone will have to do.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn cut(len: usize, available: u64) -> usize {
    usize::try_from(available).map_or(len, |available| len.min(available))
}

/// Copies the part of `bytes` (which lie at `at`) that overlaps `out` (which lies at `offset`).
fn overlay(offset: u64, out: &mut [u8], at: u64, bytes: &[u8]) {
    let start = offset.max(at);
    let end = (offset + out.len() as u64).min(at + bytes.len() as u64);
    if start < end {
        let length = cut(out.len(), end - start);
        let to = cut(out.len(), start - offset);
        let from = cut(bytes.len(), start - at);
        out[to..to + length].copy_from_slice(&bytes[from..from + length]);
    }
}

/// The file under the database.
#[derive(Debug)]
pub(super) struct GuardedFile {
    file: Box<dyn StorageBackend>,
    /// The same open file, to allocate blocks; none where nothing is to be written.
    raw: Option<File>,
    watch: Arc<Watch>,
    /// Some while the open is on trial, and for ever where the file is opened for reading only.
    trial: RwLock<Option<Trial>>,
    read_only: bool,
}

impl GuardedFile {
    /// The file, on trial.
    pub(super) fn new(
        file: File,
        read_only: bool,
        watch: Arc<Watch>,
        wrap: &dyn Fn(FileBackend) -> Box<dyn StorageBackend>,
    ) -> io::Result<Self> {
        let raw = if read_only {
            None
        } else {
            Some(file.try_clone()?)
        };
        let len = file.metadata()?.len();
        let backend = FileBackend::new(file).map_err(io::Error::other)?;
        Ok(Self {
            file: wrap(backend),
            raw,
            watch,
            trial: RwLock::new(Some(Trial {
                base_len: len,
                len,
                changes: Vec::new(),
            })),
            read_only,
        })
    }

    /// The open has succeeded: carries out what was put off. From now on every change goes to the
    /// file.
    pub(super) fn accept(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        let mut trial = self.trial.write().unwrap_or_else(PoisonError::into_inner);
        for change in trial.take().map(|t| t.changes).unwrap_or_default() {
            self.watch.note(match change {
                Change::Write { offset, bytes } => self.file.write(offset, &bytes),
                Change::SetLen(len) => self.resize(len),
                Change::Sync => self.file.sync_data(),
            })?;
        }
        Ok(())
    }

    /// Sets the length; what is added has its blocks allocated.
    fn resize(&self, len: u64) -> io::Result<()> {
        let old = self.file.len()?;
        if let (Some(raw), true) = (&self.raw, len > old) {
            allocate(raw, old, len)?;
        }
        self.file.set_len(len)
    }

    fn trial<T>(&self, then: impl FnOnce(&mut Trial) -> T) -> Option<T> {
        // The common case, no trial, takes the shared lock only.
        if self
            .trial
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none()
        {
            return None;
        }
        let mut trial = self.trial.write().unwrap_or_else(PoisonError::into_inner);
        trial.as_mut().map(then)
    }
}

impl StorageBackend for GuardedFile {
    fn len(&self) -> io::Result<u64> {
        match self.trial(|trial| trial.len) {
            Some(len) => Ok(len),
            None => self.watch.note(self.file.len()),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let result = self
            .trial(|trial| trial.read(&*self.file, offset, out))
            .unwrap_or_else(|| self.file.read(offset, out));
        self.watch.note(result)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let on_trial = self.trial(|trial| {
            trial.len = len;
            trial.changes.push(Change::SetLen(len));
        });
        match on_trial {
            Some(()) => Ok(()),
            None => self.watch.note(self.resize(len)),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.trial(|trial| trial.changes.push(Change::Sync)) {
            Some(()) => Ok(()),
            None => self.watch.note(self.file.sync_data()),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let on_trial = self.trial(|trial| {
            trial.len = trial.len.max(offset + data.len() as u64);
            trial.changes.push(Change::Write {
                offset,
                bytes: data.to_vec(),
            });
        });
        if on_trial.is_some() {
            return Ok(());
        }
        if offset < HEADER_PAGE {
            self.watch.header_touched.store(true, Ordering::SeqCst);
        }
        self.watch.note(self.file.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        if self.read_only {
            // The kernel gives no exclusive lock on a descriptor that cannot write.
            self.file.try_lock_shared_range(start, end)
        } else {
            self.file.try_lock_range(start, end)
        }
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

/// The same file for redb, which wants to own its backend.
#[derive(Debug)]
pub(super) struct Shared(pub(super) Arc<GuardedFile>);

impl StorageBackend for Shared {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }
    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }
    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_range(start, end)
    }
    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_shared_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }
    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}
