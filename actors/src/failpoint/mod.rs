//! Named steps at which a test lets the daemon die: before and after every
//! durable write and every effect.
//!
//! A *point* is a way out of the daemon: a call of a port that changes
//! something, or, inside the real adapters, a QMP command or a file that gets
//! its name. Each has a step before and one after it. Nobody who decides or
//! dispatches an effect knows of points: the ports are watched as a whole
//! ([`watched`]), so a new effect is passed by the existing point of its port,
//! and a new method of a port does not compile before it has one.
//!
//! Without the feature `failpoints` nothing of this is in the daemon but an empty
//! [`hit`].
//! Look next: `ports.rs` for the doors, `process.rs` for how a process dies.

#[cfg(any(test, feature = "failpoints"))]
mod ports;
#[cfg(feature = "failpoints")]
mod process;

#[cfg(any(test, feature = "failpoints"))]
pub use ports::watched;
#[cfg(feature = "failpoints")]
pub use process::{Log, Process, arm, process};

use std::time::Duration;

/// The points of the ports, in the order of the ports. A commit is named after
/// the most telling of its rows.
pub const POINTS: &[&str] = &[
    "store.vm-stopped",
    "store.vm-claiming",
    "store.vm-launching",
    "store.vm-running",
    "store.vm-paused",
    "store.vm-stopping",
    "store.vm-killing",
    "store.vm-releasing",
    "store.vm-backoff",
    "store.vm-failed",
    "store.vm-unknown",
    "store.vm-erased",
    "store.disk",
    "store.disk-erased",
    "store.image",
    "store.image-erased",
    "store.template",
    "store.template-erased",
    "store.forward",
    "store.forward-erased",
    "store.token",
    "store.token-erased",
    "store.event",
    "hypervisor.confine",
    "hypervisor.launch",
    "hypervisor.adopt",
    "hypervisor.replace-tap",
    "hypervisor.forward-ports",
    "hypervisor.release",
    "hypervisor.erase",
    "hypervisor.trim-logs",
    "machine.pause",
    "machine.resume",
    "machine.reset",
    "machine.powerdown",
    "machine.terminate",
    "machine.kill",
    "machine.open",
    "machine.plug",
    "machine.unplug",
    "machine.resize",
    "machine.limit",
    "machine.plug-nic",
    "machine.unplug-nic",
    "machine.link-nic",
    "disks.ensure",
    "disks.remove",
    "images.begin",
    "images.write",
    "images.finish",
    "images.publish",
    "images.remove",
    "images.sweep",
    "folders.put-away",
    "folders.empty-trash",
    "network.settle",
    "network.claim",
    "network.release",
    "manifests.change",
];

/// The points inside the real adapters.
pub const HOST_POINTS: &[&str] = &[
    "file.move",
    "qmp.cont",
    "qmp.stop",
    "qmp.system_reset",
    "qmp.system_powerdown",
    "qmp.blockdev-add",
    "qmp.blockdev-del",
    "qmp.device_add",
    "qmp.device_del",
    "qmp.block_resize",
    "qmp.netdev_add",
    "qmp.netdev_del",
    "qmp.set_link",
];

/// Which side of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Nothing has been done yet.
    Before,
    /// It was done, and nobody was told.
    After,
}

/// Where a daemon is about to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step {
    /// One of [`POINTS`] or [`HOST_POINTS`].
    pub point: &'static str,
    /// Before or after it.
    pub side: Side,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let side = match self.side {
            Side::Before => "before",
            Side::After => "after",
        };
        write!(f, "{}.{side}", self.point)
    }
}

/// What becomes of a daemon at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Go,
    /// It goes on after this time, where it can wait.
    Late(Duration),
    /// It is dead, since now or since before.
    Dead,
}

/// Who is told of every step that is passed.
pub trait Watch: Send + Sync + 'static {
    /// A daemon comes to this step.
    fn pass(&self, step: Step) -> Fate;

    /// Whether a daemon that was late still lives.
    fn lives(&self) -> bool {
        true
    }
}

/// A step inside an adapter of the real host: of `room.what`, if that is one of
/// [`HOST_POINTS`].
#[cfg(feature = "failpoints")]
pub fn hit(room: &str, what: &str, side: Side) {
    process::hit(room, what, side);
}

/// Nothing: this build has no failpoints.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn hit(_: &str, _: &str, _: Side) {}
