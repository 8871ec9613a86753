//! Time and randomness, passed in so that a test can own both.

use vman_model::{BootId, UnixMs};

/// Wall-clock time, the host's boot and random bytes.
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock time, for records and people. Deadlines use tokio's
    /// monotonic timers instead.
    fn now(&self) -> UnixMs;
    /// The boot the host is in.
    fn boot_id(&self) -> BootId;
    /// Random bytes from the operating system, for ids.
    fn random(&self) -> [u8; 16];
}
