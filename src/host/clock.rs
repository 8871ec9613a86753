//! The system's clock, boot id and randomness.

use super::proc;
use std::{
    io,
    time::{SystemTime, UNIX_EPOCH},
};
use vman_actors::ports::Clock;
use vman_model::{BootId, UnixMs};

/// The system's clock. The boot id is read once: it cannot change while the process lives.
#[derive(Clone, Debug)]
pub struct SystemClock {
    boot_id: BootId,
}

impl SystemClock {
    /// Reads the boot id (proc(5)); fails where `/proc` is not mounted.
    pub fn new() -> io::Result<Self> {
        let boot_id = proc::boot_id().map_err(|error| {
            io::Error::new(error.kind(), format!("cannot read the boot id: {error}"))
        })?;
        Ok(Self { boot_id })
    }
}

impl Clock for SystemClock {
    fn now(&self) -> UnixMs {
        // A clock before 1970 is told as 0.
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        UnixMs(since.map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        }))
    }

    fn boot_id(&self) -> BootId {
        self.boot_id.clone()
    }

    fn random(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("getrandom(2) of 16 bytes fails on no Linux since 3.17");
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_knows_the_boot_and_never_repeats_a_random_id() {
        let clock = SystemClock::new().unwrap();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        assert_eq!(clock.boot_id().as_str(), kernel.trim());
        assert_ne!(clock.random(), clock.random());
        // 2024-01-01: a host whose clock is before it would fail TLS, too.
        assert!(clock.now() > UnixMs(1_704_067_200_000));
    }
}
