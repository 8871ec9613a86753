//! One file that is being streamed in.

use super::super::{
    folder::{Unfinished, blocking, file_error},
    inspect::{InspectError, inspect},
};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::{fmt::Write as _, fs::File, io::Write as _};
use vman_actors::ports::{BoxFuture, FileError, StagedImage, Upload};
use vman_model::ImageKind;

/// What the blocking thread works with; one at a time.
struct Sink {
    file: File,
    hash: Sha256,
    written: u64,
}

/// One file that is being streamed in. Dropped, it removes what came so far.
pub(super) struct HostUpload {
    what: String,
    /// None while a write is under way; gone for good if that write failed or was abandoned.
    sink: Option<Sink>,
    unfinished: Unfinished,
    limit: u64,
}

impl HostUpload {
    pub(super) fn new(what: String, file: File, unfinished: Unfinished, limit: u64) -> Self {
        Self {
            what,
            sink: Some(Sink {
                file,
                hash: Sha256::new(),
                written: 0,
            }),
            unfinished,
            limit,
        }
    }

    fn interrupted(&self) -> FileError {
        FileError::Io {
            what: self.what.clone(),
            error: "an earlier part of it was not written".to_owned(),
        }
    }
}

impl Upload for HostUpload {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), FileError>> {
        Box::pin(async move {
            let Some(mut sink) = self.sink.take() else {
                return Err(self.interrupted());
            };
            if bytes.len() as u64 > self.limit - sink.written {
                return Err(FileError::TooLarge { limit: self.limit });
            }
            let what = self.what.clone();
            let sink = blocking("receiving an image", move || {
                sink.file
                    .write_all(&bytes)
                    .map_err(|error| file_error(what, &error))?;
                sink.hash.update(&bytes);
                sink.written += bytes.len() as u64;
                Ok(sink)
            })
            .await?;
            self.sink = Some(sink);
            Ok(())
        })
    }

    fn finish(
        mut self: Box<Self>,
        kind: ImageKind,
        sha256: Option<String>,
    ) -> BoxFuture<'static, Result<StagedImage, FileError>> {
        Box::pin(async move {
            let Some(sink) = self.sink.take() else {
                return Err(self.interrupted());
            };
            blocking("finishing an image", move || {
                stage(&self.what, sink, self.unfinished, kind, sha256)
            })
            .await
        })
    }
}

fn stage(
    what: &str,
    mut sink: Sink,
    unfinished: Unfinished,
    kind: ImageKind,
    promised: Option<String>,
) -> Result<StagedImage, FileError> {
    let actual = hex(&sink.hash.finalize());
    if let Some(expected) = promised.filter(|promised| !promised.eq_ignore_ascii_case(&actual)) {
        return Err(FileError::Checksum { expected, actual });
    }
    let inspected = inspect(kind, &mut sink.file).map_err(|error| match error {
        InspectError::Refused(why) => FileError::Refused(why),
        InspectError::Io(error) => file_error(what, &error),
    })?;
    sink.file
        .sync_all()
        .map_err(|error| file_error(what, &error))?;
    Ok(StagedImage {
        path: unfinished.path(),
        format: inspected.format,
        file_size: sink.written,
        virtual_size: inspected.virtual_size,
        sha256: actual,
        guard: Box::new(unfinished),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
