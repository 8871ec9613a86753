//! Wall-clock time as the records keep it. Deadlines are not made of it: they
//! are monotonic timers that the actors hold, so a clock jump moves no deadline.

use serde::{Deserialize, Serialize};

/// Milliseconds since the UNIX epoch, for people and records.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct UnixMs(pub u64);

impl UnixMs {
    /// Milliseconds from `earlier` to `self`; 0 if the clock went backwards.
    pub fn since(self, earlier: UnixMs) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
