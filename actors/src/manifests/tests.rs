//! How a manifest reads back, and that the files follow the store.

use super::{codec, keep::Keeper};
use crate::{
    aside::Aside,
    fakes::{FakeHost, MemoryManifests},
    ports::{ManifestFiles, ManifestName},
    store::Inventory,
};
use proptest::prelude::*;
use std::sync::Arc;
use vman_model::{
    Change, DiskFile, DiskFormat, DiskId, DiskOptions, DiskRecord, Revision, TokenId, TokenName,
    TokenRecord, TokenScope, UnixMs, Write,
    manifest::{Kept, KeptKind},
};

fn disk(id: &str) -> DiskRecord {
    DiskRecord {
        id: DiskId::parse(id).unwrap(),
        size_mib: 64,
        format: DiskFormat::Qcow2,
        image: None,
        vm_id: None,
        root: false,
        created_at: UnixMs(1),
        options: DiskOptions::default(),
        file: DiskFile::Made,
        wished_letter: None,
    }
}

fn token(last_used_at: Option<UnixMs>) -> TokenRecord {
    TokenRecord {
        id: TokenId::parse("0a").unwrap(),
        name: TokenName::parse("ci").unwrap(),
        scope: TokenScope::Read,
        hash: [7; 32],
        created_at: UnixMs(1),
        expires_at: None,
        last_used_at,
    }
}

fn name(id: &str) -> ManifestName {
    ManifestName {
        kind: KeptKind::Disk,
        key: id.to_owned(),
    }
}

#[test]
fn a_manifest_reads_back_as_it_was_written_and_can_be_read_by_people() {
    let kept = Kept::Disk(disk("data"));
    let bytes = codec::encode(Revision(42), &kept);
    assert_eq!(codec::decode(&bytes), Ok((Revision(42), kept)));
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains("\"id\": \"data\""), "{text}");
}

#[test]
fn a_manifest_of_a_newer_version_is_refused_as_such() {
    let bytes = codec::encode(Revision(1), &Kept::Disk(disk("data")));
    let newer = String::from_utf8(bytes)
        .unwrap()
        .replace("\"vman_manifest\": 1", "\"vman_manifest\": 2");
    let error = codec::decode(newer.as_bytes()).unwrap_err();
    assert_eq!(error, codec::ManifestError::Newer { found: 2 });
}

proptest! {
    #[test]
    fn a_manifest_that_was_damaged_is_never_taken_for_another(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let kept = Kept::Disk(disk("data"));
        let mut bytes = codec::encode(Revision(42), &kept);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(read) = codec::decode(&bytes) {
            // White space, or the name of the version that wrote it.
            prop_assert_eq!(read, (Revision(42), kept));
        }
    }

    #[test]
    fn a_manifest_that_was_cut_short_is_refused(at in any::<prop::sample::Index>()) {
        let bytes = codec::encode(Revision(42), &Kept::Disk(disk("data")));
        // Without its last line break it is whole.
        let cut = &bytes[..at.index(bytes.len() - 1)];
        prop_assert!(codec::decode(cut).is_err());
    }
}

/// A keeper over files in memory, and the inventory it is shown.
struct Kit {
    host: FakeHost,
    keeper: Keeper,
    inventory: Arc<Inventory>,
}

impl Kit {
    fn new() -> Self {
        let host = FakeHost::new();
        let keeper = Keeper::new(host.ports().manifests, Aside::InStep);
        Self {
            host,
            keeper,
            inventory: Arc::default(),
        }
    }

    fn files(&self) -> &MemoryManifests {
        self.host.manifests()
    }

    /// The daemon starts again: what the files tell is not known any more.
    fn restart(&mut self) {
        let files: Arc<dyn ManifestFiles> = self.host.ports().manifests;
        self.keeper = Keeper::new(files, Aside::InStep);
    }

    async fn write(&mut self, write: Write) {
        self.commit(write);
        self.keeper.pass(self.inventory.clone()).await.unwrap();
    }

    fn commit(&mut self, write: Write) {
        let change = Change {
            writes: vec![write],
            ..Change::default()
        };
        let (next, _) = self.inventory.apply(change, UnixMs(1)).unwrap();
        self.inventory = Arc::new(next);
    }
}

#[tokio::test]
async fn the_files_follow_the_store() {
    let mut kit = Kit::new();
    kit.write(Write::PutDisk(disk("a"))).await;
    kit.write(Write::PutDisk(disk("b"))).await;
    assert_eq!(
        kit.files().written(),
        2,
        "what did not change is not written"
    );
    kit.write(Write::EraseDisk(DiskId::parse("a").unwrap()))
        .await;
    let left: Vec<_> = kit.files().files().into_keys().collect();
    assert_eq!(left, [name("b")]);
}

#[tokio::test]
async fn what_changes_by_the_minute_is_not_written() {
    let mut kit = Kit::new();
    kit.write(Write::PutToken(token(None))).await;
    kit.write(Write::PutToken(token(Some(UnixMs(77))))).await;
    assert_eq!(kit.files().written(), 1);
}

#[tokio::test]
async fn after_a_restart_files_that_differ_are_written_and_those_of_no_record_put_away() {
    let mut kit = Kit::new();
    for id in ["same", "stale", "rotten", "missing"] {
        kit.write(Write::PutDisk(disk(id))).await;
    }
    let rows = kit.files().files();
    let mut other = disk("stale");
    other.size_mib = 1;
    let stale = codec::encode(Revision(1), &Kept::Disk(other));
    let files = FakeHost::new();
    let manifests = files.manifests().clone();
    manifests.plant(name("same"), rows[&name("same")].clone());
    manifests.plant(name("stale"), stale);
    manifests.plant(name("rotten"), b"{".to_vec());
    manifests.plant(name("nobody"), rows[&name("same")].clone());
    let inventory = kit.inventory.clone();
    kit = Kit {
        keeper: Keeper::new(files.ports().manifests, Aside::InStep),
        host: files,
        inventory,
    };
    kit.keeper.pass(kit.inventory.clone()).await.unwrap();
    assert_eq!(manifests.written(), 3);
    assert_eq!(manifests.files().len(), 4);
    assert_eq!(manifests.trash(), [name("nobody")]);
}

#[tokio::test]
async fn an_inventory_of_nothing_takes_no_manifest_for_rubbish() {
    let mut kit = Kit::new();
    kit.files().plant(name("precious"), b"{}".to_vec());
    kit.keeper.pass(kit.inventory.clone()).await.unwrap();
    assert_eq!(kit.files().files().len(), 1);
}

#[tokio::test]
async fn what_could_not_be_written_is_written_when_there_is_space_again() {
    let mut kit = Kit::new();
    kit.write(Write::PutDisk(disk("a"))).await;
    kit.files().set_full(true);
    kit.commit(Write::PutDisk(disk("b")));
    assert!(kit.keeper.pass(kit.inventory.clone()).await.is_err());
    kit.restart();
    assert!(kit.keeper.pass(kit.inventory.clone()).await.is_err());
    kit.files().set_full(false);
    kit.keeper.pass(kit.inventory.clone()).await.unwrap();
    assert_eq!(kit.files().files().len(), 2);
}
