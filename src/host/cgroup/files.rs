//! Which file of a control group says which limit, in both versions. Pure.

use super::{
    Limits,
    place::{Controller, Version},
};

/// The length of time that a quota is about, in microseconds: the kernel's own.
const PERIOD_US: u64 = 100_000;
/// `cpu.shares` of a group that says nothing.
const USUAL_SHARES: u64 = 1_024;
const MOST_SHARES: u64 = 262_144;

/// A file and what goes into it. Of several, the first that is there.
pub(super) type Setting = Vec<(&'static str, String)>;

/// What is to be written for a controller.
pub(super) fn settings(controller: Controller, version: Version, limits: &Limits) -> Vec<Setting> {
    let one = |file, value: u64| vec![(file, value.to_string())];
    match (controller, version) {
        (Controller::Memory, Version::One) => {
            vec![one("memory.limit_in_bytes", limits.memory_max)]
        }
        (Controller::Memory, Version::Two) => vec![one("memory.max", limits.memory_max)],
        (Controller::Pids, _) => vec![one("pids.max", limits.tasks_max)],
        (Controller::Cpu, Version::One) => {
            let shares = limits.cpu_weight.saturating_mul(USUAL_SHARES) / 100;
            let mut all = vec![one("cpu.shares", shares.clamp(2, MOST_SHARES))];
            if let Some(percent) = limits.cpu_quota_percent {
                all.push(one("cpu.cfs_period_us", PERIOD_US));
                all.push(one("cpu.cfs_quota_us", quota_us(percent)));
            }
            all
        }
        (Controller::Cpu, Version::Two) => {
            let mut all = vec![one("cpu.weight", limits.cpu_weight)];
            if let Some(percent) = limits.cpu_quota_percent {
                all.push(vec![(
                    "cpu.max",
                    format!("{} {PERIOD_US}", quota_us(percent)),
                )]);
            }
            all
        }
        (Controller::Io, version) => {
            let weight = limits.io_weight.unwrap_or(100);
            let bfq = bfq_weight(weight).to_string();
            vec![match version {
                Version::One => vec![("blkio.weight", bfq.clone()), ("blkio.bfq.weight", bfq)],
                Version::Two => vec![
                    ("io.weight", format!("default {weight}")),
                    ("io.bfq.weight", bfq),
                ],
            }]
        }
    }
}

fn quota_us(percent: u64) -> u64 {
    // The kernel takes no less than a millisecond.
    (percent.saturating_mul(PERIOD_US) / 100).max(1_000)
}

/// BFQ knows 1 to 1000 with the same middle, 100 (as systemd does it).
fn bfq_weight(weight: u64) -> u64 {
    if weight <= 100 {
        return weight;
    }
    100 + (weight - 100) * (1_000 - 100) / (10_000 - 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        memory_max: 1 << 30,
        cpu_weight: 200,
        cpu_quota_percent: Some(150),
        tasks_max: 9,
        io_weight: Some(10_000),
    };

    fn lines(version: Version, limits: &Limits) -> String {
        let all = Controller::ALL.map(|controller| settings(controller, version, limits));
        let all = all.iter().flatten().map(|setting| {
            let alternatives = setting
                .iter()
                .map(|(file, value)| format!("{file}={value}"));
            alternatives.collect::<Vec<_>>().join(" or ")
        });
        all.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn version_1_is_told_in_its_own_words() {
        let expected = "memory.limit_in_bytes=1073741824\ncpu.shares=2048\n\
            cpu.cfs_period_us=100000\ncpu.cfs_quota_us=150000\npids.max=9\n\
            blkio.weight=1000 or blkio.bfq.weight=1000";
        assert_eq!(lines(Version::One, &LIMITS), expected);
    }

    #[test]
    fn version_2_is_told_in_its_own_words() {
        let expected = "memory.max=1073741824\ncpu.weight=200\ncpu.max=150000 100000\n\
            pids.max=9\nio.weight=default 10000 or io.bfq.weight=1000";
        assert_eq!(lines(Version::Two, &LIMITS), expected);
    }

    #[test]
    fn no_value_is_beyond_what_the_kernel_takes() {
        let lowest = Limits {
            cpu_weight: 1,
            cpu_quota_percent: Some(0),
            io_weight: Some(1),
            ..LIMITS
        };
        let told = lines(Version::One, &lowest);
        assert!(told.contains("cpu.shares=10\n"), "{told}");
        assert!(told.contains("cpu.cfs_quota_us=1000\n"), "{told}");
        let none = Limits {
            cpu_quota_percent: None,
            ..LIMITS
        };
        assert!(!lines(Version::Two, &none).contains("cpu.max"));
    }
}
