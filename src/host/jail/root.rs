//! A root of its own for a QEMU: what it may open is there, each at its usual path, and nothing else.
//!
//! Owns: the list of mounts, made before the fork, and the making of them in the child. What is
//! there is what Landlock lets be opened (`landlock.rs` has the list), so either stands in for the
//! other. Must not: allocate or look anything up in the child, or make a folder on the host.

use super::landlock::{DEVICES, Own, READ, SYSTEM};
use rustix::{
    fs::{Mode, OFlags, mkdir, open, symlink},
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
        mount_remount, unmount,
    },
    process::{chdir, pivot_root, umask},
};
use std::{
    collections::BTreeSet,
    ffi::CString,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// What a child does, one after the other.
#[derive(Debug)]
enum Step {
    Folder(CString),
    /// An empty file, to be mounted over.
    File(CString),
    Link {
        to: CString,
        at: CString,
    },
    Bind {
        from: CString,
        at: CString,
        flags: Option<MountFlags>,
    },
}

/// A root that can be entered once.
#[derive(Debug)]
pub(super) struct Root {
    base: CString,
    steps: Vec<Step>,
}

/// How something may be used.
#[derive(Clone, Copy)]
enum Use {
    Read,
    Write,
    Device,
}

impl Root {
    /// All that is on this host of what may be opened. `base` is an empty folder, the same for all:
    /// each mounts over it where nobody else sees it. Blocks.
    pub(super) fn of(own: &Own, base: &Path) -> io::Result<Self> {
        fs::create_dir_all(base)?;
        let mut plan = Plan::new(base);
        let system = SYSTEM.iter().chain(READ).map(Path::new);
        let read = own.program.iter().chain(&own.read).map(PathBuf::as_path);
        for path in system.chain(read) {
            plan.show(path, Use::Read)?;
        }
        for path in &own.write {
            plan.show(path, Use::Write)?;
        }
        for path in DEVICES {
            plan.show(Path::new(path), Use::Device)?;
        }
        Ok(Self {
            base: c_string(base)?,
            steps: plan.steps,
        })
    }

    /// Leaves the host's root for this one, for good. The mount namespace is the caller's own.
    pub(super) fn enter(&self) -> io::Result<()> {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change(c"/", private)?;
        let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount(c"vman", &self.base, c"tmpfs", quiet, c"mode=0755,size=1m")?;
        // What is made here others pass through.
        let mask = umask(Mode::empty());
        for step in &self.steps {
            step.go()?;
        }
        umask(mask);
        chdir(&self.base)?;
        // The new root over the old one, which then is on top of it (pivot_root(2), last example).
        pivot_root(c".", c".")?;
        unmount(c".", UnmountFlags::DETACH)?;
        chdir(c"/")?;
        mount_remount(c"/", MountFlags::BIND | MountFlags::RDONLY | quiet, c"")?;
        Ok(())
    }
}

impl Step {
    fn go(&self) -> io::Result<()> {
        let (folder, file) = (Mode::from_raw_mode(0o755), Mode::from_raw_mode(0o644));
        match self {
            Self::Folder(at) => mkdir(at, folder)?,
            Self::File(at) => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                drop(open(at, flags, file)?);
            }
            Self::Link { to, at } => symlink(to, at)?,
            Self::Bind { from, at, flags } => {
                mount_bind_recursive(from, at)?;
                if let Some(flags) = flags {
                    mount_remount(at, MountFlags::BIND | *flags, c"")?;
                }
            }
        }
        Ok(())
    }
}

/// Steps in the making.
struct Plan<'a> {
    base: &'a Path,
    steps: Vec<Step>,
    /// What is there already: folders of ours, and whatever was mounted.
    there: BTreeSet<PathBuf>,
    bound: Vec<PathBuf>,
}

impl<'a> Plan<'a> {
    fn new(base: &'a Path) -> Self {
        Self {
            base,
            steps: Vec::new(),
            there: BTreeSet::from([PathBuf::from("/")]),
            bound: Vec::new(),
        }
    }

    /// Where `path` is while the root is made.
    fn at(&self, path: &Path) -> io::Result<CString> {
        let below = path
            .strip_prefix("/")
            .map_err(|_| io::ErrorKind::InvalidInput)?;
        c_string(&self.base.join(below))
    }

    fn is_bound(&self, path: &Path) -> bool {
        self.bound.iter().any(|bound| path.starts_with(bound))
    }

    /// Shows a path at its place, and where it leads to at that place too; what is not on this host
    /// is left out.
    fn show(&mut self, path: &Path, how: Use) -> io::Result<()> {
        let Ok(found) = path.canonicalize() else {
            return Ok(());
        };
        if fs::symlink_metadata(path)?.is_symlink() {
            if !self.is_bound(path) && self.there.insert(path.to_owned()) {
                self.folders_above(path)?;
                let (to, at) = (c_string(&fs::read_link(path)?)?, self.at(path)?);
                self.steps.push(Step::Link { to, at });
            }
            return if self.is_bound(&found) {
                Ok(())
            } else {
                self.bind(&found, &found, how)
            };
        }
        if found != path {
            self.bind(&found, &found, how)?;
        }
        self.bind(&found, path, how)
    }

    fn bind(&mut self, from: &Path, path: &Path, how: Use) -> io::Result<()> {
        let is_folder = fs::metadata(from)?.is_dir();
        // What is mounted already has its own folders: nothing may be made in it.
        if !self.is_bound(path) && self.there.insert(path.to_owned()) {
            self.folders_above(path)?;
            let at = self.at(path)?;
            self.steps.push(if is_folder {
                Step::Folder(at)
            } else {
                Step::File(at)
            });
        }
        let quiet = MountFlags::NOSUID | MountFlags::NODEV;
        let flags = match how {
            Use::Read => Some(quiet | MountFlags::RDONLY),
            Use::Write => Some(quiet | MountFlags::NOEXEC),
            Use::Device => None,
        };
        self.steps.push(Step::Bind {
            from: c_string(from)?,
            at: self.at(path)?,
            flags,
        });
        self.bound.push(path.to_owned());
        Ok(())
    }

    fn folders_above(&mut self, path: &Path) -> io::Result<()> {
        let mut above: Vec<_> = path.ancestors().skip(1).collect();
        above.reverse();
        for folder in above {
            if !self.is_bound(folder) && self.there.insert(folder.to_owned()) {
                let at = self.at(folder)?;
                self.steps.push(Step::Folder(at));
            }
        }
        Ok(())
    }
}

fn c_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}
