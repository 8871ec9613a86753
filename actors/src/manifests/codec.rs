//! How a manifest looks: JSON that a person can read, with a version and a
//! checksum over the record and its revision.
//!
//! A released version's records never change their form; a new version reads the
//! old one. Unlike the store's rows a manifest need not be small, but must be
//! legible when everything else is lost.

use serde::{Deserialize, Serialize};
use vman_model::{Revision, manifest::Kept};

/// The version this build writes.
pub const VERSION: u32 = 1;

/// Why a manifest cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Written by a newer VMAN.
    #[error("version {found} is newer than this build's {VERSION}: use the VMAN that wrote it")]
    Newer {
        /// Its version.
        found: u32,
    },
    /// Cut short, or changed since it was written.
    #[error("{0}")]
    Corrupt(String),
}

#[derive(Deserialize)]
struct Head {
    vman_manifest: u32,
}

#[derive(Serialize)]
struct Writing<'a> {
    vman_manifest: u32,
    written_by: &'static str,
    revision: Revision,
    crc32c: u32,
    record: &'a Kept,
}

#[derive(Deserialize)]
struct Reading {
    revision: Revision,
    crc32c: u32,
    record: Kept,
}

fn checksum(revision: Revision, kept: &Kept) -> u32 {
    crc32c::crc32c(&json(&(revision, kept)))
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("a record has no map with keys that are no text")
}

/// A manifest's bytes.
pub fn encode(revision: Revision, kept: &Kept) -> Vec<u8> {
    let manifest = Writing {
        vman_manifest: VERSION,
        written_by: env!("CARGO_PKG_VERSION"),
        revision,
        crc32c: checksum(revision, kept),
        record: kept,
    };
    let mut bytes = serde_json::to_vec_pretty(&manifest)
        .expect("a record has no map with keys that are no text");
    bytes.push(b'\n');
    bytes
}

/// Reads a manifest.
pub fn decode(bytes: &[u8]) -> Result<(Revision, Kept), ManifestError> {
    let corrupt = |error: serde_json::Error| ManifestError::Corrupt(error.to_string());
    let head: Head = serde_json::from_slice(bytes).map_err(corrupt)?;
    if head.vman_manifest > VERSION {
        return Err(ManifestError::Newer {
            found: head.vman_manifest,
        });
    }
    let read: Reading = serde_json::from_slice(bytes).map_err(corrupt)?;
    if read.crc32c != checksum(read.revision, &read.record) {
        return Err(ManifestError::Corrupt(
            "its checksum does not match: it was changed since it was written".to_owned(),
        ));
    }
    Ok((read.revision, read.record))
}
