//! QEMU on this host: its command line, its process, and finding it again.

pub mod adopt;
pub mod cmdline;
pub mod process;
pub mod sockets;
#[cfg(test)]
pub(crate) mod testing;
