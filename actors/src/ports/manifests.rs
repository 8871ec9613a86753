//! The files of the manifests: one for each record that lasts.

use super::{BoxFuture, FileError};
use std::fmt;
use vman_model::manifest::KeptKind;

/// Which manifest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ManifestName {
    /// What it is of.
    pub kind: KeptKind,
    /// The record's key; an id, so harmless as the name of a file.
    pub key: String,
}

impl fmt::Display for ManifestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.as_str(), self.key)
    }
}

/// A manifest and its bytes.
pub type FoundManifest = (ManifestName, Vec<u8>);

/// What is to be done to a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestChange {
    /// Write it in place of what is there.
    Put(ManifestName, Vec<u8>),
    /// Remove it; its record was erased. No error if it is not there.
    Remove(ManifestName),
    /// Put it into the trash folder; its record is not known.
    PutAway(ManifestName),
}

/// Keeps manifests.
pub trait ManifestFiles: Send + Sync + 'static {
    /// All manifests with their bytes. Names that are none are left out.
    fn list(&self) -> BoxFuture<'static, Result<Vec<FoundManifest>, FileError>>;

    /// Makes all changes durable. Each file is whole at every moment; after an
    /// error some may be done. Idempotent.
    fn change(&self, changes: Vec<ManifestChange>) -> BoxFuture<'static, Result<(), FileError>>;
}
