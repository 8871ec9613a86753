//! Scripted fakes of the ports: they fail, hang, answer late and twice, as a
//! test asks. They pass the same contract suites as the real adapters
//! ([`crate::ports::contract`]).
//!
//! [`FakeHost`] is a whole simulated host: flow tests run the tree on it, and
//! `VMAN_OPERATOR_DRY_RUN=1` the whole daemon. Its QEMUs live in it and not in
//! the ports, so they outlive a tree as real ones outlive the daemon.
//! Must not: keep global state, or grow without bound.
//! Look next: `host.rs` (what a test says to the host), `script.rs` (how a VM's
//! QEMU behaves), `world.rs` (what is on the host, and what must never be).

mod clock;
mod disks;
mod fence;
mod files;
mod folders;
mod host;
mod hypervisor;
pub mod manifests;
mod network;
mod script;
pub mod storage;
mod world;

pub use clock::FakeClock;
pub use host::FakeHost;
pub use manifests::MemoryManifests;
pub use network::plain_bridge;
pub use script::{Act, Launch, Powerdown, Script};
pub use storage::{MemoryStorage, NextCommit};
pub use world::{LiveQemu, Signalled};
