//! How fast a network card may be, in libvirt's words and units for a card's
//! bandwidth, from its guest's point of view.
//!
//! Must not: know how a kernel is made to hold them (`src/host/net` does).

use serde::{Deserialize, Serialize};

/// The fastest that can be asked for, in KiB/s: more does not fit the kernel's
/// 32 bits of bytes a second, and is no limit for a TAP.
pub const MAX_RATE_KIB: u32 = 4_000_000;
/// The smallest burst, in KiB: a guest's card hands over as much in one piece.
pub const MIN_BURST_KIB: u32 = 64;
/// The largest burst, in KiB.
pub const MAX_BURST_KIB: u32 = 1 << 20;

/// The limit of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// What passes on average, in KiB/s.
    pub average: u32,
    /// What passes at most within a burst, in KiB/s; only towards the guest. As
    /// fast as can be where it is not said.
    pub peak: Option<u32>,
    /// What passes at once after a pause, in KiB.
    pub burst: u32,
}

impl Limit {
    /// A limit whose burst, where it is not said, is what passes in a second.
    pub fn new(average: u32, peak: Option<u32>, burst: Option<u32>) -> Self {
        let second = average.clamp(MIN_BURST_KIB, MAX_BURST_KIB);
        Self {
            average,
            peak,
            burst: burst.unwrap_or(second),
        }
    }

    /// Why the peak cannot be; averages and bursts are checked by their ranges.
    pub fn wrong_peak(&self) -> Option<String> {
        let peak = self.peak.filter(|peak| *peak <= self.average)?;
        let average = self.average;
        Some(format!(
            "must be more than the average: {peak} is not more than {average}"
        ))
    }
}

/// The limits of a network card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicLimits {
    /// Of what the guest receives: more waits.
    pub inbound: Option<Limit>,
    /// Of what the guest sends: more is dropped. It has no peak.
    pub outbound: Option<Limit>,
}

impl NicLimits {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_that_is_not_said_is_a_seconds_average_within_its_bounds() {
        for (average, burst) in [
            (1, MIN_BURST_KIB),
            (1_000, 1_000),
            (MAX_RATE_KIB, MAX_BURST_KIB),
        ] {
            assert_eq!(Limit::new(average, None, None).burst, burst);
        }
        assert_eq!(Limit::new(1_000, None, Some(77)).burst, 77);
    }

    #[test]
    fn a_peak_is_more_than_the_average() {
        let peak = |peak| Limit::new(100, Some(peak), None).wrong_peak();
        assert!(peak(100).is_some() && peak(1).is_some());
        assert_eq!(peak(101), None);
        assert_eq!(Limit::new(100, None, None).wrong_peak(), None);
    }
}
