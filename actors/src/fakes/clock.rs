//! Wall-clock time and randomness that a test owns.

use super::world::World;
use crate::ports::Clock;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};
use vman_model::{BootId, UnixMs};

/// Where the fake wall clock begins: 2026-01-01, 00:00 UTC.
const BEGIN_MS: u64 = 1_767_225_600_000;

/// The simulated host's clock.
///
/// Unless it follows the host's, it stands still but for one millisecond a look:
/// what is decided later has a later time, and every run is the same.
#[derive(Clone)]
pub struct FakeClock {
    world: Arc<World>,
    state: Arc<ClockState>,
}

struct ClockState {
    now_ms: AtomicU64,
    drawn: AtomicU64,
    seed: u64,
    began: Instant,
    flows: AtomicBool,
}

impl FakeClock {
    pub(super) fn new(world: Arc<World>, seed: u64) -> Self {
        let state = ClockState {
            now_ms: AtomicU64::new(BEGIN_MS),
            drawn: AtomicU64::new(0),
            seed,
            began: Instant::now(),
            flows: AtomicBool::new(false),
        };
        Self {
            world,
            state: Arc::new(state),
        }
    }

    /// From here on it tells the real time, for people who look at it.
    pub(super) fn follow_real_time(&self) {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = since_epoch.map_or(BEGIN_MS, |since| {
            u64::try_from(since.as_millis()).unwrap_or(BEGIN_MS)
        });
        let passed = u64::try_from(self.state.began.elapsed().as_millis()).unwrap_or(0);
        self.set(UnixMs(now.saturating_sub(passed)));
        self.state.flows.store(true, Ordering::SeqCst);
    }

    /// Sets the wall clock, also back.
    pub fn set(&self, now: UnixMs) {
        self.state.now_ms.store(now.0, Ordering::SeqCst);
    }

    /// Moves the wall clock on.
    pub fn advance_ms(&self, by: u64) {
        self.state.now_ms.fetch_add(by, Ordering::SeqCst);
    }
}

/// A small generator (splitmix64): good enough to tell ids apart.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Clock for FakeClock {
    fn now(&self) -> UnixMs {
        let state = &self.state;
        if state.flows.load(Ordering::SeqCst) {
            let passed = u64::try_from(state.began.elapsed().as_millis()).unwrap_or(0);
            return UnixMs(state.now_ms.load(Ordering::SeqCst) + passed);
        }
        UnixMs(state.now_ms.fetch_add(1, Ordering::SeqCst))
    }

    fn boot_id(&self) -> BootId {
        self.world.boot_id()
    }

    fn random(&self) -> [u8; 16] {
        let drawn = self.state.drawn.fetch_add(1, Ordering::SeqCst);
        let high = mix(self.state.seed.wrapping_mul(0x1_0001).wrapping_add(drawn));
        let mut out = [0; 16];
        out[..8].copy_from_slice(&high.to_be_bytes());
        out[8..].copy_from_slice(&mix(high).to_be_bytes());
        out
    }
}
