//! What keeps a QEMU that a guest has taken over from what is not its own.
//!
//! Owns: finding out once what this host lets be done (by doing it, not by reading versions), a user
//! id for each life, and whose the files are. Must not: decide that a VM starts with less; the mode
//! does, and what lacks is told. Measures are independent: each is tried alone, so that one that
//! lacks takes no other with it. Look next: `abilities.rs` for the trials, `cage.rs` for what the child does, `landlock.rs` for the
//! files, `tool.rs` for the jail of qemu-img, `docs/security.md` for what each measure is worth.
//!
//! Files and users: the storage path, its `disks`, `images` and `vms` are entered by the group
//! `first_uid`, which all QEMUs have and nobody else; a VM's disks and console belong to the id of
//! its present life with mode 0600, images can be read by the group. Folders stay root's, so that no
//! QEMU can put a link where the daemon will look. A released VM's files go back to root.

mod abilities;
mod cage;
mod landlock;
mod root;
mod seccomp;
mod sys;
#[cfg(test)]
mod tests;
mod tool;

pub use cage::Cage;
pub use tool::{ToolJail, ToolNeeds};

use self::{abilities::Abilities, cage::User, root::Root};
use crate::config::{JailConfig, JailMode};
use crate::host::{
    cgroup::{self, Limits},
    qemu::{cmdline::Accel, layout::Layout},
};
use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::sync::OnceCell;
use vman_actors::ports::{AdoptPlan, Bounds, HostError, LaunchPlan};
use vman_model::{
    Incarnation, VmId, VmUuid,
    vm::{Confinement, Measure},
};

/// A folder changed this recently may change again within the same tick of its clock.
const SETTLED: Duration = Duration::from_secs(2);

/// User ids on their way into claims.
#[derive(Debug, Default)]
struct Pending {
    by_vm: BTreeMap<VmId, u32>,
    /// Where to look first: an id is used again as late as can be.
    next: u32,
}

/// The jail of this host's QEMUs.
#[derive(Debug)]
pub struct Jail {
    config: JailConfig,
    layout: Layout,
    binary: PathBuf,
    abilities: OnceCell<Abilities>,
    pending: Mutex<Pending>,
    /// The images folder's time when all in it could be read by the group.
    images_shared: Mutex<Option<SystemTime>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Jail {
    /// Nothing is tried yet.
    pub fn new(config: JailConfig, layout: Layout, binary: PathBuf) -> Self {
        Self {
            config,
            layout,
            binary,
            abilities: OnceCell::new(),
            pending: Mutex::default(),
            images_shared: Mutex::default(),
        }
    }

    async fn abilities(&self, accel: Accel) -> &Abilities {
        self.abilities.get_or_init(|| self.find_out(accel)).await
    }

    /// In a sentence, for health.
    pub async fn describe(&self, accel: Accel) -> String {
        let found = self.abilities(accel).await;
        let words: Vec<_> = found
            .measures
            .iter()
            .map(|measure| measure.as_str())
            .collect();
        let mut text = words.join(", ");
        for lacking in found.lacking.iter().chain(&found.left_out) {
            text += "; without ";
            text += lacking;
        }
        text
    }

    /// How the VM's next QEMU is confined; with QEMU's own network stack or without.
    pub async fn confine(
        &self,
        vm: &VmId,
        taken: &BTreeSet<u32>,
        user_network: bool,
        accel: Accel,
    ) -> Result<Confinement, HostError> {
        let found = self.abilities(accel).await;
        if self.config.mode == JailMode::Require && !found.lacking.is_empty() {
            return Err(HostError(format!(
                "VMAN_JAIL=require, and this host starts a QEMU without {}",
                found.lacking.join("; without ")
            )));
        }
        let uid = if found.measures.contains(&Measure::OwnUser) {
            Some(self.take_uid(vm, taken)?)
        } else {
            None
        };
        // QEMU's own network stack speaks to the host's.
        let fits = |measure: &Measure| !user_network || *measure != Measure::NetworkNamespace;
        let measures = found.measures.iter().copied().filter(fits);
        Ok(Confinement {
            uid,
            measures: measures.collect(),
        })
    }

    /// An id that neither a claim holds nor another VM is about to.
    fn take_uid(&self, vm: &VmId, taken: &BTreeSet<u32>) -> Result<u32, HostError> {
        // The first is the group's.
        let (first, count) = (self.config.first_uid + 1, self.config.uids - 1);
        let mut pending = lock(&self.pending);
        pending.by_vm.remove(vm);
        let start = pending.next;
        let ids = (0..count).map(|n| first + (start + n) % count);
        let held = |id: &u32| taken.contains(id) || pending.by_vm.values().any(|other| other == id);
        let Some(uid) = ids.into_iter().find(|id| !held(id)) else {
            return Err(HostError(format!(
                "all {count} user ids for QEMUs are in use: raise VMAN_JAIL_UIDS"
            )));
        };
        pending.next = (uid - first + 1) % count;
        pending.by_vm.insert(vm.clone(), uid);
        Ok(uid)
    }

    /// Prepares what the child of this plan needs; none where nothing is confined. Blocks.
    pub fn cage(&self, plan: &LaunchPlan) -> io::Result<Option<Cage>> {
        let has = |measure| plan.confinement.measures.contains(&measure);
        if !has(Measure::NoNewPrivileges) {
            return Ok(None);
        }
        let user = plan.confinement.uid.map(|uid| self.user(uid));
        let own = self.own(&plan.vm);
        let landlock = has(Measure::Landlock).then(|| landlock::rules(&own));
        let root = has(Measure::MountNamespace).then(|| Root::of(&own, &self.layout.empty()));
        Ok(Some(Cage {
            user,
            landlock: landlock.transpose()?,
            ipc: has(Measure::IpcNamespace),
            network: has(Measure::NetworkNamespace),
            root: root.transpose()?,
            // QEMU's own filter, and the user-mode network, which makes sockets.
            offline: false,
            bounding: is_root(),
        }))
    }

    /// Makes the life's control groups, with its limits. Blocks.
    pub fn make_groups(&self, life: &Life, accel: Accel) -> io::Result<()> {
        let Some(found) = self.abilities.get().filter(|_| life.is_bounded()) else {
            return Ok(());
        };
        let (name, limits) = life.groups(accel);
        let note = self.layout.cgroups(&life.vm);
        found.cgroups.make(&name, &limits, life.measures(), &note)
    }

    /// Puts a process into its life's control groups: its CPUs still stand. Blocks.
    pub fn close_behind(&self, life: &Life, accel: Accel, pid: u32) -> io::Result<()> {
        let Some(found) = self.abilities.get().filter(|_| life.is_bounded()) else {
            return Ok(());
        };
        let (name, limits) = life.groups(accel);
        let note = self.layout.cgroups(&life.vm);
        let groups = &found.cgroups;
        groups.take_in(pid, &name, &limits, life.measures(), &note)
    }

    /// Whether a process is in its life's control groups. Blocks for a read of each.
    pub fn is_closed_behind(&self, life: &Life, pid: u32) -> io::Result<bool> {
        Ok(!life.is_bounded() || cgroup::is_within(pid, &self.layout.cgroups(&life.vm))?)
    }

    /// Puts the process of a launch that was cut off into the groups it had not come to.
    pub async fn close_again(
        self: Arc<Self>,
        life: Life,
        accel: Accel,
        pid: u32,
    ) -> io::Result<()> {
        self.abilities(accel).await;
        let closed = tokio::task::spawn_blocking(move || {
            self.make_groups(&life, accel)?;
            self.close_behind(&life, accel, pid)
        });
        closed.await?
    }

    /// How many of the VM's processes the kernel has ended for memory in its present life; none
    /// where that is not counted. Blocks.
    pub fn oom_kills(&self, vm: &VmId) -> io::Result<Option<u64>> {
        cgroup::oom_kills(&self.layout.cgroups(vm))
    }

    fn user(&self, uid: u32) -> User {
        let mut groups = vec![self.config.first_uid];
        if let Some(found) = self.abilities.get() {
            groups.extend(&found.groups);
        }
        User { uid, groups }
    }

    fn own(&self, vm: &VmId) -> landlock::Own {
        landlock::Own {
            program: program_folder(&self.binary),
            read: vec![self.layout.storage.join("images")],
            write: vec![self.layout.storage.join("disks"), self.layout.files(vm)],
        }
    }

    /// Gives the VM's files to the user of this life. `files` are those in its own folder. Blocks.
    pub fn hand_over(&self, plan: &LaunchPlan, files: &[PathBuf]) -> io::Result<()> {
        let Some(uid) = plan.confinement.uid else {
            return Ok(());
        };
        let folder = self.layout.files(&plan.vm);
        give(&folder, None, Some(uid))?;
        fs::set_permissions(&folder, Permissions::from_mode(0o710))?;
        let disks = plan.disks.iter().map(|disk| &disk.path);
        for file in files.iter().chain(disks) {
            give(file, Some(uid), None)?;
        }
        self.share_images()
    }

    fn is_ours(&self, uid: u32) -> bool {
        (self.config.first_uid..self.config.first_uid + self.config.uids).contains(&uid)
    }

    /// Lets the group read every image. An upload changes the folder's time, so that nothing is
    /// looked at again while nothing is new.
    fn share_images(&self) -> io::Result<()> {
        let folder = self.layout.storage.join("images");
        let changed = fs::metadata(&folder)?.modified()?;
        let mut shared = lock(&self.images_shared);
        if *shared == Some(changed) {
            return Ok(());
        }
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                give(&entry.path(), None, Some(self.config.first_uid))?;
                fs::set_permissions(entry.path(), Permissions::from_mode(0o640))?;
            }
        }
        let settled = changed.elapsed().is_ok_and(|age| age > SETTLED);
        *shared = settled.then_some(changed);
        Ok(())
    }

    /// Takes a VM's disks back, removes its control groups and forgets its id; it has no QEMU. Blocks.
    pub fn take_back(&self, vm: &VmId) -> io::Result<()> {
        cgroup::remove(&self.layout.cgroups(vm))?;
        let folder = self.layout.files(vm);
        // Where the id is found also by a daemon that did not hand it out.
        let uid = match fs::symlink_metadata(&folder) {
            Ok(found) => found.gid(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        if self.is_ours(uid) {
            for entry in fs::read_dir(self.layout.storage.join("disks"))? {
                let entry = entry?;
                if entry.metadata().is_ok_and(|found| found.uid() == uid) {
                    give(&entry.path(), Some(0), None)?;
                }
            }
            give(&folder, None, Some(0))?;
            fs::set_permissions(&folder, Permissions::from_mode(0o700))?;
        }
        lock(&self.pending).by_vm.remove(vm);
        Ok(())
    }
}

/// Whether a disk belongs to the user of a QEMU that runs. Two system calls.
pub fn has_disk(pid: u32, disk: &Path) -> io::Result<bool> {
    Ok(fs::symlink_metadata(disk)?.uid() == user_of(pid)?)
}

/// Gives a disk to the user of a QEMU that runs already: called before it is plugged into it.
/// Repeatable; blocks for a system call or two.
pub fn hand_disk(pid: u32, disk: &Path) -> io::Result<()> {
    give(disk, Some(user_of(pid)?), None)
}

fn user_of(pid: u32) -> io::Result<u32> {
    Ok(fs::metadata(format!("/proc/{pid}"))?.uid())
}

/// Takes a disk back from a QEMU that has let go of it. Repeatable; blocks as [`hand_disk`] does.
pub fn take_disk(disk: &Path) -> io::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    if fs::symlink_metadata(disk)?.uid() == own {
        return Ok(());
    }
    give(disk, Some(own), None)
}

/// One life of a VM's QEMU, and what it is held to.
#[derive(Clone, Debug)]
pub struct Life {
    vm: VmId,
    uuid: VmUuid,
    incarnation: Incarnation,
    bounds: Bounds,
}

impl Life {
    /// The one that begins.
    pub fn of(plan: &LaunchPlan) -> Self {
        Self {
            vm: plan.vm.clone(),
            uuid: plan.uuid,
            incarnation: plan.incarnation,
            bounds: Bounds {
                cpu_count: plan.cpu_count,
                ram_mib: plan.ram_mib,
                resources: plan.resources,
                measures: plan.confinement.measures.clone(),
            },
        }
    }

    /// The one that is looked for; none of one that is to end.
    pub fn looked_for(plan: &AdoptPlan) -> Option<Self> {
        Some(Self {
            vm: plan.vm.clone(),
            uuid: plan.uuid,
            incarnation: plan.incarnation,
            bounds: plan.bounds.clone()?,
        })
    }

    fn measures(&self) -> &[Measure] {
        &self.bounds.measures
    }

    fn is_bounded(&self) -> bool {
        self.measures().iter().copied().any(cgroup::is_of_groups)
    }

    /// The name of its control groups, and what they bound.
    fn groups(&self, accel: Accel) -> (String, Limits) {
        let Bounds {
            cpu_count,
            ram_mib,
            resources,
            ..
        } = self.bounds;
        let limits = Limits::of(cpu_count, ram_mib, accel, resources);
        // The first part is for people, the second is no other daemon's.
        let name = format!("{}.{}.{}", self.vm, self.uuid, self.incarnation);
        (name, limits)
    }
}

/// Where a program is, if it is not where the system's are.
fn program_folder(binary: &Path) -> Option<PathBuf> {
    let found = binary.canonicalize().ok()?;
    let folder = found.parent().filter(|folder| *folder != Path::new("/"))?;
    (!folder.starts_with("/usr")).then(|| folder.to_owned())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Changes whose a file is; a link itself and not what it points to.
fn give(path: &Path, owner: Option<u32>, group: Option<u32>) -> io::Result<()> {
    let (owner, group) = (owner.map(Uid::from_raw), group.map(Gid::from_raw));
    Ok(chownat(CWD, path, owner, group, AtFlags::SYMLINK_NOFOLLOW)?)
}
