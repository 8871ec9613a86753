//! The real adapters: everything that touches the operating system.
//!
//! Must not: decide what a VM does next (the model does), know of actors or of HTTP. Look next:
//! [`qemu`] for a VM's process and its command line, [`qmp`] for the protocol spoken with it,
//! [`store_redb`] for the durable rows, [`dirs`] for the layout of the storage path, [`images`]
//! and [`disks`] for the files in it, [`jail`] for what confines a QEMU, [`cgroup`] for how much of the host it may use.

pub mod capacity;
pub mod cgroup;
pub mod clock;
pub mod descriptors;
pub mod dirs;
pub mod disks;
pub mod folder;
pub mod folders;
pub mod groups;
pub mod images;
pub mod inspect;
pub mod installation;
pub mod jail;
pub mod manifests;
pub mod net;
pub mod proc;
pub mod qemu;
pub mod qmp;
pub mod store_redb;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod turns;
