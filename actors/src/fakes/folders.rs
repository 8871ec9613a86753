//! Folders that list what the simulated host has.

use super::world::World;
use crate::ports::{BoxFuture, Folders, HostError};
use std::{sync::Arc, time::Duration};
use vman_model::{
    drift::{FileKind, Room, SeenFile, SeenFiles},
    vm::ProcessIdentity,
};

/// Older than any grace time.
const OLD_MS: u64 = 1_000_000_000;

pub(super) struct FakeFolders {
    pub(super) world: Arc<World>,
    pub(super) daemon: u64,
    pub(super) lasting: bool,
}

fn file(name: String, kind: FileKind, bytes: u64) -> SeenFile {
    SeenFile {
        name,
        kind,
        bytes,
        age_ms: OLD_MS,
    }
}

fn seen(world: &World) -> SeenFiles {
    let things = world.things();
    let mut files = SeenFiles::default();
    let disks = things.disks.iter();
    files
        .disks
        .extend(disks.map(|id| file(format!("{id}.qcow2"), FileKind::File, 1 << 20)));
    let images = things.images.iter();
    files
        .images
        .extend(images.map(|(name, bytes)| file(name.to_string(), FileKind::File, *bytes)));
    let consoles = things.consoles.keys();
    files
        .vm_folders
        .extend(consoles.map(|vm| file(vm.to_string(), FileKind::Folder, 0)));
    let live = things.qemus.values();
    files
        .runtime
        .extend(live.map(|qemu| file(qemu.told.vm.to_string(), FileKind::Folder, 0)));
    for ((room, name), stray) in &things.strays {
        let folder = match room {
            Room::Disks => &mut files.disks,
            Room::Images => &mut files.images,
            Room::VmFolders => &mut files.vm_folders,
            Room::Runtime => &mut files.runtime,
        };
        folder.retain(|there| there.name != *name);
        folder.push(stray.clone());
    }
    files
}

impl Folders for FakeFolders {
    fn look(&self) -> BoxFuture<'static, Result<Option<SeenFiles>, HostError>> {
        let (world, lasting) = (self.world.clone(), self.lasting);
        Box::pin(async move { Ok(lasting.then(|| seen(&world))) })
    }

    fn holds_ours(&self, _: ProcessIdentity) -> BoxFuture<'static, Result<bool, HostError>> {
        Box::pin(async { Ok(true) })
    }

    fn put_away(
        &self,
        room: Room,
        name: String,
        grace: Duration,
    ) -> BoxFuture<'static, Result<bool, HostError>> {
        let (world, daemon) = (self.world.clone(), self.daemon);
        Box::pin(async move {
            world.pause(daemon, Duration::ZERO).await;
            let key = (room, name);
            let mut things = world.things();
            let old = |file: &SeenFile| u128::from(file.age_ms) > grace.as_millis();
            if !things.strays.get(&key).is_some_and(old) {
                return Ok(false);
            }
            things.strays.remove(&key);
            things.trash.push(key);
            Ok(true)
        })
    }

    fn empty_trash(&self, _: Duration) -> BoxFuture<'static, Result<usize, HostError>> {
        Box::pin(async { Ok(0) })
    }
}
