//! A filter of system calls for a tool that has to do with files alone: no socket can be made.
//!
//! Owns: the filter's instructions. Must not: allow what no-new-privileges does not allow to be
//! filtered (see `cage.rs` for the order). QEMU brings a filter of its own (`-sandbox`).
//!
//! io_uring is refused too: it makes sockets without a call of its own. QEMU's tools (7.2) go on
//! without it.

use super::sys::{self, Instruction};
use std::io;

/// What the kernel calls this architecture, and the number of its call `socket`.
#[cfg(target_arch = "x86_64")]
const HERE: Option<(u32, u32)> = Some((0xc000_003e, 41));
#[cfg(target_arch = "aarch64")]
const HERE: Option<(u32, u32)> = Some((0xc000_00b7, 198));
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const HERE: Option<(u32, u32)> = None;

/// The same number on every architecture.
const IO_URING_SETUP: u32 = 425;
/// Numbers from here on are x86-64's second set of calls (x32); other architectures have none.
const SECOND_SET: u32 = 0x4000_0000;

const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_ERRNO` with EPERM.
const REFUSE: u32 = 0x0005_0001;
/// Where `struct seccomp_data` has the call's number and the architecture.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// What the calling process asks of the kernel from now on makes no socket.
pub(super) fn forbid_sockets() -> io::Result<()> {
    let (architecture, socket) = HERE.ok_or(io::ErrorKind::Unsupported)?;
    sys::filter_calls(&filter(architecture, socket))
}

fn filter(architecture: u32, socket: u32) -> [Instruction; 8] {
    let step = |code, k| Instruction::new(code, 0, 0, k);
    [
        step(LOAD_WORD, ARCHITECTURE),
        // Another architecture's calls have other numbers: none of them.
        Instruction::new(JUMP_IF_EQUAL, 0, 5, architecture),
        step(LOAD_WORD, NUMBER),
        Instruction::new(JUMP_IF_AT_LEAST, 3, 0, SECOND_SET),
        Instruction::new(JUMP_IF_EQUAL, 2, 0, socket),
        Instruction::new(JUMP_IF_EQUAL, 1, 0, IO_URING_SETUP),
        step(RETURN, ALLOW),
        step(RETURN, REFUSE),
    ]
}
