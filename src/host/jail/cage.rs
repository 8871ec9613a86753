//! What a child does between fork and exec to confine itself.
//!
//! Owns: the order. Must not: allocate, lock, or look anything up; `mod.rs` has done that before.

use super::{
    root::Root,
    seccomp,
    sys::{self, Namespaces},
};
use rustix::{
    fs::{Mode, OFlags, open},
    process::{Resource, Rlimit, setrlimit},
};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

/// Descriptors of a QEMU: images, sockets, eventfds of each queue; far fewer are needed.
const MOST_FILES: u64 = 8_192;
/// Threads of a private user: 255 processors, workers, I/O.
const MOST_THREADS: u64 = 2_048;
/// The kernel's choice when memory is short: QEMU before the daemon.
const OOM_SCORE: &[u8] = b"300";

/// Whom the child becomes.
#[derive(Debug)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) groups: Vec<u32>,
}

/// All that was prepared for one child.
#[derive(Debug, Default)]
pub struct Cage {
    pub(super) user: Option<User>,
    pub(super) landlock: Option<OwnedFd>,
    pub(super) ipc: bool,
    /// A network without any link.
    pub(super) network: bool,
    /// What is mounted for it, if that is its own.
    pub(super) root: Option<Root>,
    /// No socket can be made.
    pub(super) offline: bool,
    /// Whether the bounding set can be emptied, which root may.
    pub(super) bounding: bool,
}

impl Cage {
    /// Confines the calling process for good, in the order in which each step is still permitted.
    pub(crate) fn enter(&self) -> io::Result<()> {
        // While it is still the daemon's user.
        let files = OFlags::WRONLY | OFlags::CLOEXEC;
        let score = open(c"/proc/self/oom_score_adj", files, Mode::empty())?;
        rustix::io::write(&score, OOM_SCORE)?;
        limit(Resource::Core, 0)?;
        limit(Resource::Nofile, MOST_FILES)?;
        sys::enter_namespaces(Namespaces {
            ipc: self.ipc,
            mount: self.root.is_some(),
            network: self.network,
        })?;
        if let Some(root) = &self.root {
            root.enter()?;
        }
        sys::give_up_capabilities(self.bounding)?;
        if let Some(user) = &self.user {
            limit(Resource::Nproc, MOST_THREADS)?;
            sys::become_user(user.uid, user.uid, &user.groups)?;
        }
        sys::set_no_new_privileges()?;
        if let Some(rules) = &self.landlock {
            sys::landlock_restrict(rules.as_fd())?;
        }
        if self.offline {
            seccomp::forbid_sockets()?;
        }
        Ok(())
    }
}

/// Bounds what the calling process uses of something.
pub(super) fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let hard = rustix::process::getrlimit(resource).maximum;
    // A lower bound that is set already stays; raising it may not be ours to do.
    let most = Some(hard.map_or(most, |hard| hard.min(most)));
    setrlimit(
        resource,
        Rlimit {
            current: most,
            maximum: most,
        },
    )?;
    Ok(())
}
