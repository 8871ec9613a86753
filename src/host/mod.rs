//! The real adapters: everything that touches the operating system.
//!
//! Owns: QEMU processes and their monitors, proc(5). Must not: decide what a VM does next (the
//! model does), know of actors or of HTTP. Look next: [`qemu`] for a VM's process and its command
//! line, [`qmp`] for the protocol spoken with it.

pub mod proc;
pub mod qemu;
pub mod qmp;
