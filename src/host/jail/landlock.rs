//! Which files a QEMU may open, whoever it runs as.
//!
//! Owns: the list. Sockets, consoles' descriptors and TAPs are inherited open and need no rule. A
//! path that this host does not have is left out: less is allowed then, never more.

use super::sys::{self, RulesetAttr};
use rustix::fs::{Mode, OFlags, open};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
/// Everything of version 1: the three above, and making and removing of each kind.
const ALL_OF_1: u64 = (1 << 13) - 1;
/// Moving between folders, since version 2.
const REFER: u64 = 1 << 13;
/// Since version 3.
const TRUNCATE: u64 = 1 << 14;
/// Since version 5.
const IOCTL_DEV: u64 = 1 << 15;
/// Abstract UNIX sockets of others, and signals to others, since version 6.
const SCOPES: u64 = 0b11;

/// Read and executed: programs, libraries, firmware.
pub(super) const SYSTEM: &[&str] = &["/usr", "/bin", "/sbin", "/lib", "/lib64", "/nix/store"];
/// Read: the loader's cache, the zone, what resolves names for the user-mode network, the number of
/// processors, itself.
pub(super) const READ: &[&str] = &[
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/resolv.conf",
    "/run/systemd/resolve",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/sys/devices/system",
    "/sys/kernel/mm",
    "/proc",
];
pub(super) const DEVICES: &[&str] = &[
    "/dev/null",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
    "/dev/kvm",
    "/dev/vhost-net",
];

/// The same for a tool: the loader's cache, the number of processors.
const TOOL_READ: &[&str] = &["/etc/ld.so.cache", "/sys/devices/system"];
const TOOL_DEVICES: &[&str] = &["/dev/null", "/dev/urandom"];

/// What one VM, or one call of a tool, may open beside the system's own.
pub(super) struct Own {
    /// The program's own folder.
    pub(super) program: Option<PathBuf>,
    /// Only read: images.
    pub(super) read: Vec<PathBuf>,
    /// Read and written: a VM's own files, and the disks.
    pub(super) write: Vec<PathBuf>,
}

fn handled(version: u32) -> u64 {
    let since = |first: u32, right: u64| if version >= first { right } else { 0 };
    ALL_OF_1 | since(2, REFER) | since(3, TRUNCATE) | since(5, IOCTL_DEV)
}

/// The rules of a QEMU, or why there are none.
pub(super) fn rules(own: &Own) -> io::Result<OwnedFd> {
    ruleset(own, READ, DEVICES)
}

/// The rules of a tool, or why there are none.
pub(super) fn tool_rules(own: &Own) -> io::Result<OwnedFd> {
    ruleset(own, TOOL_READ, TOOL_DEVICES)
}

fn ruleset(own: &Own, read: &[&str], devices: &[&str]) -> io::Result<OwnedFd> {
    let version = sys::landlock_version();
    if version == 0 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let handled = handled(version);
    let attr = RulesetAttr {
        handled_access_fs: handled,
        handled_access_net: 0,
        scoped: if version >= 6 { SCOPES } else { 0 },
    };
    let size = match version {
        0..4 => 8,
        4..6 => 16,
        _ => size_of::<RulesetAttr>(),
    };
    let ruleset = sys::landlock_create(&attr, size)?;
    let allow = |path: &Path, access: u64| allow(&ruleset, path, access & handled);
    for path in SYSTEM.iter().map(Path::new).chain(own.program.as_deref()) {
        allow(path, EXECUTE | READ_FILE | READ_DIR)?;
    }
    let read = read.iter().map(Path::new);
    for path in read.chain(own.read.iter().map(PathBuf::as_path)) {
        allow(path, READ_FILE | READ_DIR)?;
    }
    for path in devices {
        allow(Path::new(path), READ_FILE | WRITE_FILE | IOCTL_DEV)?;
    }
    for path in &own.write {
        allow(path, READ_FILE | WRITE_FILE | READ_DIR | TRUNCATE)?;
    }
    Ok(ruleset)
}

fn allow(ruleset: &OwnedFd, path: &Path, access: u64) -> io::Result<()> {
    let opened = match open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let is_folder = rustix::fs::fstat(&opened)?.st_mode & 0o170_000 == 0o040_000;
    // What is for folders alone is refused for a file.
    let access = if is_folder {
        access
    } else {
        access & !READ_DIR
    };
    sys::landlock_allow(ruleset.as_fd(), opened.as_fd(), access)
}
