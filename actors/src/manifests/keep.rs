//! One pass: from what the files tell to what the inventory holds.
//!
//! The first pass reads all files and rewrites those that differ; each later one
//! looks only at what differs between two inventories, which share what they have
//! in common. A pass that failed is not remembered, so the next does it again.

use super::codec;
use crate::{
    aside::Aside,
    ports::{FileError, FoundManifest, ManifestChange, ManifestFiles, ManifestName},
    store::{Inventory, Versioned},
};
use imbl::{OrdMap, ordmap::DiffItem};
use std::{collections::BTreeMap, sync::Arc};
use vman_model::{
    Revision,
    manifest::{Kept, KeptKind},
};

pub(super) struct Keeper {
    files: Arc<dyn ManifestFiles>,
    aside: Aside,
    /// What the files tell; none before the first pass.
    kept: Option<Arc<Inventory>>,
}

impl Keeper {
    pub(super) fn new(files: Arc<dyn ManifestFiles>, aside: Aside) -> Self {
        Self {
            files,
            aside,
            kept: None,
        }
    }

    pub(super) async fn pass(&mut self, now: Arc<Inventory>) -> Result<(), FileError> {
        // Aside: what a thousand VMs that start have changed takes milliseconds to write down, and
        // to let go of what was before takes another.
        let (before, inventory) = (self.kept.clone(), now.clone());
        let changes = if let Some(before) = before {
            let telling = move || between(&before, &inventory);
            self.aside.run(telling).await
        } else {
            let files = self.files.list().await?;
            let telling = move || against_files(&inventory, files);
            self.aside.run(telling).await
        };
        if !changes.is_empty() {
            self.files.change(changes).await?;
        }
        let before = self.kept.replace(now);
        self.aside.run(move || drop(before)).await;
        Ok(())
    }
}

/// What to do to files of which nothing is known. A manifest without a record is
/// put away and not deleted: the store may be older than it, as after a backup
/// was put back.
fn against_files(now: &Inventory, files: Vec<FoundManifest>) -> Vec<ManifestChange> {
    let mut there: BTreeMap<ManifestName, Vec<u8>> = files.into_iter().collect();
    let mut changes = Vec::new();
    each(now, |revision, kept| {
        let name = name_of(&kept);
        let told = there.remove(&name);
        let same = told
            .and_then(|bytes| codec::decode(&bytes).ok())
            .is_some_and(|(_, told)| told == kept);
        if !same {
            changes.push(ManifestChange::Put(name, codec::encode(revision, &kept)));
        }
    });
    // A record that was set aside may be made again of its manifest, and an
    // inventory of nothing is no reason to take what tells of one for rubbish.
    let understood = now.quarantined.is_empty() && !is_empty(now);
    if understood {
        for name in there.into_keys() {
            tracing::warn!(manifest = %name, "a manifest of no record is put away");
            changes.push(ManifestChange::PutAway(name));
        }
    } else if !there.is_empty() {
        tracing::warn!(
            manifests = there.len(),
            "manifests of no record are left as they are: not every record is understood"
        );
    }
    changes
}

fn is_empty(inventory: &Inventory) -> bool {
    let mut any = false;
    each(inventory, |_, _| any = true);
    !any
}

/// What to do to the files that tell of `before`.
fn between(before: &Inventory, now: &Inventory) -> Vec<ManifestChange> {
    let mut all = Vec::new();
    let out = &mut all;
    diff(
        &before.templates,
        &now.templates,
        |record| Kept::Template(record.clone()),
        out,
    );
    diff(&before.vms, &now.vms, Kept::of_vm, out);
    diff(
        &before.disks,
        &now.disks,
        |record| Kept::Disk(record.clone()),
        out,
    );
    diff(
        &before.images,
        &now.images,
        |record| Kept::Image(record.clone()),
        out,
    );
    diff(
        &before.leases,
        &now.leases,
        |record| Kept::Lease(record.clone()),
        out,
    );
    diff(
        &before.forwards,
        &now.forwards,
        |record| Kept::Forward(record.clone()),
        out,
    );
    diff(&before.tokens, &now.tokens, Kept::of_token, out);
    all
}

type Rows<K, V> = OrdMap<K, Arc<Versioned<V>>>;

fn diff<K: Ord + Clone, V: Clone + PartialEq>(
    before: &Rows<K, V>,
    now: &Rows<K, V>,
    keep: impl Fn(&V) -> Kept,
    changes: &mut Vec<ManifestChange>,
) {
    for item in before.diff(now) {
        let (old, new) = match item {
            DiffItem::Add(_, new) => (None, Some(new)),
            DiffItem::Update { old, new } => (Some(old.1), Some(new.1)),
            DiffItem::Remove(_, old) => (Some(old), None),
        };
        let old = old.map(|row| keep(&row.value));
        let Some(row) = new else {
            changes.extend(old.map(|kept| ManifestChange::Remove(name_of(&kept))));
            continue;
        };
        let kept = keep(&row.value);
        if old.as_ref() != Some(&kept) {
            let bytes = codec::encode(row.revision, &kept);
            changes.push(ManifestChange::Put(name_of(&kept), bytes));
        }
    }
}

/// Every record that has a manifest, with the revision of its last change.
pub(super) fn each(inventory: &Inventory, mut take: impl FnMut(Revision, Kept)) {
    for kind in KeptKind::ALL {
        match kind {
            KeptKind::Template => rows(
                &inventory.templates,
                |r| Kept::Template(r.clone()),
                &mut take,
            ),
            KeptKind::Vm => rows(&inventory.vms, Kept::of_vm, &mut take),
            KeptKind::Disk => rows(&inventory.disks, |r| Kept::Disk(r.clone()), &mut take),
            KeptKind::Image => rows(&inventory.images, |r| Kept::Image(r.clone()), &mut take),
            KeptKind::Lease => rows(&inventory.leases, |r| Kept::Lease(r.clone()), &mut take),
            KeptKind::Forward => rows(&inventory.forwards, |r| Kept::Forward(r.clone()), &mut take),
            KeptKind::Token => rows(&inventory.tokens, Kept::of_token, &mut take),
        }
    }
}

fn rows<K: Ord + Clone, V: Clone>(
    rows: &Rows<K, V>,
    keep: impl Fn(&V) -> Kept,
    take: &mut impl FnMut(Revision, Kept),
) {
    for row in rows.values() {
        take(row.revision, keep(&row.value));
    }
}

pub(super) fn name_of(kept: &Kept) -> ManifestName {
    ManifestName {
        kind: kept.kind(),
        key: kept.key().to_owned(),
    }
}
