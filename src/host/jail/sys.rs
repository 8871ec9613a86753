//! The system calls of a jail that neither std nor rustix has, each with its errors as `io::Error`.
//!
//! All may be called between fork and exec: none allocates or takes a lock.

use std::{
    ffi::{c_int, c_long, c_ulong},
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

const PR_CAPBSET_DROP: c_int = 24;
const PR_SET_SECCOMP: c_int = 22;
const SECCOMP_MODE_FILTER: c_ulong = 2;
const PR_SET_NO_NEW_PRIVS: c_int = 38;
const PR_CAP_AMBIENT: c_int = 47;
const PR_CAP_AMBIENT_CLEAR_ALL: c_ulong = 4;
/// Capabilities are numbered; the kernel knows 41 of them (6.18) and refuses the numbers beyond.
const MOST_CAPABILITIES: c_ulong = 64;
const CLONE_NEWNS: c_int = 0x0002_0000;
const CLONE_NEWIPC: c_int = 0x0800_0000;
const CLONE_NEWNET: c_int = 0x4000_0000;
/// Landlock's numbers are the same on every architecture.
const SYS_LANDLOCK_CREATE_RULESET: c_long = 444;
const SYS_LANDLOCK_ADD_RULE: c_long = 445;
const SYS_LANDLOCK_RESTRICT_SELF: c_long = 446;
const LANDLOCK_CREATE_RULESET_VERSION: c_ulong = 1;
const LANDLOCK_RULE_PATH_BENEATH: c_ulong = 1;

#[allow(unsafe_code)]
// SAFETY: declared as in the manual pages of the C library that std links.
unsafe extern "C" {
    fn prctl(option: c_int, ...) -> c_int;
    fn unshare(flags: c_int) -> c_int;
    fn setgroups(size: usize, list: *const u32) -> c_int;
    fn setresgid(real: u32, effective: u32, saved: u32) -> c_int;
    fn setresuid(real: u32, effective: u32, saved: u32) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
}

fn done(result: c_int) -> io::Result<()> {
    if result == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// Never again more privileges than now, whatever is executed.
#[allow(unsafe_code)]
pub(super) fn set_no_new_privileges() -> io::Result<()> {
    let (one, zero): (c_ulong, c_ulong) = (1, 0);
    // SAFETY: touches no memory.
    done(unsafe { prctl(PR_SET_NO_NEW_PRIVS, one, zero, zero, zero) })
}

/// Leaves nothing that the next exec could make capabilities of. `bounding` is for who may empty
/// that set: without it an exec by root has everything again.
#[allow(unsafe_code)]
pub(super) fn give_up_capabilities(bounding: bool) -> io::Result<()> {
    let zero: c_ulong = 0;
    // SAFETY: touches no memory.
    done(unsafe { prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, zero, zero, zero) })?;
    if !bounding {
        return Ok(());
    }
    for capability in 0..MOST_CAPABILITIES {
        // SAFETY: touches no memory.
        match done(unsafe { prctl(PR_CAPBSET_DROP, capability, zero, zero, zero) }) {
            // There is no such capability.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            other => other?,
        }
    }
    Ok(())
}

/// What of the kernel's a process has to itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Namespaces {
    /// Message queues, semaphores and shared memory.
    pub(super) ipc: bool,
    /// Mounts.
    pub(super) mount: bool,
    /// Links, addresses, and abstract UNIX sockets.
    pub(super) network: bool,
}

/// Has these to itself from now on.
#[allow(unsafe_code)]
pub(super) fn enter_namespaces(own: Namespaces) -> io::Result<()> {
    let flag = |wanted: bool, flag: c_int| if wanted { flag } else { 0 };
    let flags = flag(own.ipc, CLONE_NEWIPC)
        | flag(own.mount, CLONE_NEWNS)
        | flag(own.network, CLONE_NEWNET);
    if flags == 0 {
        return Ok(());
    }
    // SAFETY: touches no memory; changes this process alone.
    done(unsafe { unshare(flags) })
}

/// Becomes another user for good, which ends all capabilities too.
#[allow(unsafe_code)]
pub(super) fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: the list is as long as is said, and only read.
    done(unsafe { setgroups(groups.len(), groups.as_ptr()) })?;
    // SAFETY: touches no memory.
    done(unsafe { setresgid(gid, gid, gid) })?;
    // SAFETY: touches no memory.
    done(unsafe { setresuid(uid, uid, uid) })
}

/// The version of Landlock that the kernel has and lets be used; 0 for none.
#[allow(unsafe_code)]
pub(super) fn landlock_version() -> u32 {
    let (none, no_size): (c_ulong, usize) = (0, 0);
    // SAFETY: with this flag the kernel takes no attributes, and answers a number.
    let version = unsafe {
        syscall(
            SYS_LANDLOCK_CREATE_RULESET,
            none,
            no_size,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).unwrap_or(0)
}

/// `struct landlock_ruleset_attr` of version 6; earlier kernels take its beginning.
#[repr(C)]
pub(super) struct RulesetAttr {
    pub(super) handled_access_fs: u64,
    pub(super) handled_access_net: u64,
    pub(super) scoped: u64,
}

/// A set of rules, of which the kernel reads `size` bytes.
#[allow(unsafe_code)]
pub(super) fn landlock_create(attr: &RulesetAttr, size: usize) -> io::Result<OwnedFd> {
    let (size, flags) = (size.min(size_of::<RulesetAttr>()), 0 as c_ulong);
    // SAFETY: the attributes are of the kernel's layout and at least `size` bytes long.
    let fd = unsafe {
        syscall(
            SYS_LANDLOCK_CREATE_RULESET,
            std::ptr::from_ref(attr),
            size,
            flags,
        )
    };
    match RawFd::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor, close-on-exec, for us alone.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `struct landlock_path_beneath_attr`
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// Lets `access` be had beneath `path`.
#[allow(unsafe_code)]
pub(super) fn landlock_allow(
    ruleset: BorrowedFd<'_>,
    path: BorrowedFd<'_>,
    access: u64,
) -> io::Result<()> {
    let rule = PathBeneath {
        allowed_access: access,
        parent_fd: path.as_raw_fd(),
    };
    let flags: c_ulong = 0;
    // SAFETY: the rule is of the kernel's layout and lives through the call.
    let added = unsafe {
        syscall(
            SYS_LANDLOCK_ADD_RULE,
            ruleset.as_raw_fd(),
            LANDLOCK_RULE_PATH_BENEATH,
            std::ptr::from_ref(&rule),
            flags,
        )
    };
    done(c_int::try_from(added).unwrap_or(-1))
}

/// Keeps this process to the rules for good. Needs no-new-privileges.
#[allow(unsafe_code)]
pub(super) fn landlock_restrict(ruleset: BorrowedFd<'_>) -> io::Result<()> {
    let flags: c_ulong = 0;
    // SAFETY: touches no memory.
    let restricted = unsafe { syscall(SYS_LANDLOCK_RESTRICT_SELF, ruleset.as_raw_fd(), flags) };
    done(c_int::try_from(restricted).unwrap_or(-1))
}

/// One instruction of a filter: `struct sock_filter` of classic BPF.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    operand: u32,
}

impl Instruction {
    /// The jumps count instructions after the next.
    pub(super) const fn new(code: u16, if_true: u8, if_false: u8, operand: u32) -> Self {
        Self {
            code,
            if_true,
            if_false,
            operand,
        }
    }
}

/// `struct sock_fprog`
#[repr(C)]
struct Program {
    length: u16,
    instructions: *const Instruction,
}

/// Filters the calls of this process for good. Needs no-new-privileges.
#[allow(unsafe_code)]
pub(super) fn filter_calls(filter: &[Instruction]) -> io::Result<()> {
    let program = Program {
        length: u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: filter.as_ptr(),
    };
    let program = std::ptr::from_ref(&program);
    // SAFETY: the program is of the kernel's layout, as long as it says, and only read.
    done(unsafe { prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program) })
}
