//! VMAN's supervision tree, one folder an actor, and the ports it acts through.
//!
//! Must not: touch processes, files, sockets or the database; the ports do.
//! Look next: [`root`] for the tree, [`vm`] for the life of a VM, [`store`] for
//! what is durable, [`ports`] for what is outside.

mod aside;
pub mod disks;
pub mod failpoint;
#[cfg(any(test, feature = "fakes"))]
pub mod fakes;
pub mod mailbox;
pub mod manifests;
pub mod meters;
pub mod network;
pub mod observer;
#[cfg(any(test, feature = "fakes"))]
pub mod oracle;
pub mod ports;
pub mod power;
pub mod root;
pub mod slot;
pub mod store;
pub mod templates;
pub mod tokens;
pub mod vm;

pub use root::{Handles, Ports, Pulse, StartError, Tree, TreeSettings};
