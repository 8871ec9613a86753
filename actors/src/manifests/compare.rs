//! Holds manifests against records, for who wants to know whether they tell the same.
//!
//! Must not: write (the keeper does, `keep.rs`).

use super::{codec, keep};
use crate::{
    ports::{FoundManifest, ManifestName},
    store::Inventory,
};
use std::collections::BTreeMap;

/// The manifests that tell something else than the records, and how.
pub(crate) fn differing(
    inventory: &Inventory,
    files: &[FoundManifest],
) -> BTreeMap<ManifestName, String> {
    let mut there: BTreeMap<_, _> = files.iter().map(|(name, bytes)| (name, bytes)).collect();
    let mut differ = BTreeMap::new();
    keep::each(inventory, |_, kept| {
        let name = keep::name_of(&kept);
        let wrong = match there.remove(&name).map(|bytes| codec::decode(bytes)) {
            None => "is missing".to_owned(),
            Some(Err(error)) => format!("cannot be read: {error}"),
            Some(Ok((_, told))) if told != kept => {
                "tells something else than the record".to_owned()
            }
            Some(Ok(_)) => return,
        };
        differ.insert(name, wrong);
    });
    // One of a record that was set aside tells what that was.
    if inventory.quarantined.is_empty() {
        let strangers = there.into_keys().cloned();
        differ.extend(strangers.map(|name| (name, "is of no record".to_owned())));
    }
    differ
}
