//! How much of the host is promised to VMs, and whether one more may be.
//!
//! A promise is kept from the moment in which a start is accepted until nothing of that life is
//! left, also over a restart by policy and over a reboot of the host: what starts by itself has its
//! promise already. So only a user's command (or an ordered start) can ask for a new one, and the
//! store, which orders all changes, is where two that ask at once meet (`Guard::Room`).

use crate::vm::{Desired, Phase, VmRecord};
use serde::{Deserialize, Serialize};

/// Memory and processors, promised or to be promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// In MiB.
    pub memory_mib: u64,
    /// Virtual CPUs.
    pub cpus: u64,
}

impl Promise {
    /// What this VM is promised as it is now.
    pub fn to(vm: &VmRecord) -> Self {
        let lives = match vm.phase {
            Phase::Stopped | Phase::Failed => false,
            // Whoever is on the way out has given back what it had, unless it comes back.
            Phase::Releasing => vm.restarting || vm.desired == Desired::Running,
            Phase::Claiming
            | Phase::Launching
            | Phase::Running
            | Phase::Paused
            | Phase::Stopping
            | Phase::Killing
            | Phase::Backoff
            | Phase::Unknown => true,
        };
        if !lives {
            return Self::default();
        }
        Self {
            memory_mib: vm.spec.size.ram_mib,
            cpus: u64::from(vm.spec.size.cpu_count),
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
            cpus: self.cpus.saturating_add(other.cpus),
        }
    }

    /// Without the other, which was part of it.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            cpus: self.cpus.saturating_sub(other.cpus),
        }
    }

    /// Whether nothing is promised.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// What a host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Processors.
    pub cpus: u64,
}

/// How much may be promised for each part that is there, in percent; none: without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overcommit {
    /// Of the memory.
    pub memory_percent: Option<u64>,
    /// Of the processors.
    pub cpu_percent: Option<u64>,
}

/// How much may be promised in all; none: without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Memory, in MiB.
    pub memory_mib: Option<u64>,
    /// Virtual CPUs.
    pub cpus: Option<u64>,
}

impl Allowance {
    /// What this host has, as often as it is said.
    pub fn of(host: Capacity, overcommit: Overcommit) -> Self {
        let times = |what: u64, percent: Option<u64>| {
            percent.map(|percent| {
                let all = u128::from(what) * u128::from(percent) / 100;
                u64::try_from(all).unwrap_or(u64::MAX)
            })
        };
        Self {
            memory_mib: times(host.memory_mib, overcommit.memory_percent),
            cpus: times(host.cpus, overcommit.cpu_percent),
        }
    }

    /// Whether it may be promised beside what is promised already. What is not asked for is not
    /// looked at: a host that has shrunk refuses only what it lacks.
    pub fn admits(self, promised: Promise, asked: Promise) -> bool {
        let after = promised.plus(asked);
        let within = |asked: u64, after: u64, most: Option<u64>| {
            asked == 0 || most.is_none_or(|most| after <= most)
        };
        within(asked.memory_mib, after.memory_mib, self.memory_mib)
            && within(asked.cpus, after.cpus, self.cpus)
    }

    /// Why it may not, as a sum; empty where it may.
    pub fn shortage(self, promised: Promise, asked: Promise) -> String {
        let told = |what: &str, asked: u64, promised: u64, most: Option<u64>| {
            let most = most.filter(|most| asked > 0 && promised.saturating_add(asked) > *most)?;
            Some(format!(
                "it asks for {asked} {what}, {promised} are promised to other VMs, and {most} may be"
            ))
        };
        let parts = [
            told(
                "MiB of memory",
                asked.memory_mib,
                promised.memory_mib,
                self.memory_mib,
            ),
            told("virtual CPUs", asked.cpus, promised.cpus, self.cpus),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        parts.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOST: Capacity = Capacity {
        memory_mib: 8_192,
        cpus: 4,
    };

    fn promise(memory_mib: u64, cpus: u64) -> Promise {
        Promise { memory_mib, cpus }
    }

    #[test]
    fn what_may_be_promised_is_what_is_there_as_often_as_it_is_said() {
        let overcommit = Overcommit {
            memory_percent: Some(150),
            cpu_percent: None,
        };
        let allowance = Allowance::of(HOST, overcommit);
        assert_eq!((allowance.memory_mib, allowance.cpus), (Some(12_288), None));
        assert!(allowance.admits(promise(8_192, 900), promise(4_096, 900)));
        assert!(!allowance.admits(promise(8_192, 1), promise(4_097, 1)));
        let told = allowance.shortage(promise(8_192, 1), promise(4_097, 1));
        let expected =
            "it asks for 4097 MiB of memory, 8192 are promised to other VMs, and 12288 may be";
        assert_eq!(told, expected);
    }

    #[test]
    fn each_is_refused_for_what_it_lacks_and_told_so() {
        let all = Overcommit {
            memory_percent: Some(100),
            cpu_percent: Some(100),
        };
        let allowance = Allowance::of(HOST, all);
        let told = allowance.shortage(promise(8_000, 4), promise(500, 1));
        assert!(
            told.contains("500 MiB") && told.contains("1 virtual CPUs"),
            "{told}"
        );
        assert!(allowance.admits(promise(9_000, 2), promise(0, 2)));
    }

    proptest! {
        #[test]
        fn it_is_refused_exactly_where_a_shortage_is_told(
            promised in (0..=u64::MAX, 0..=u64::MAX),
            asked in (0..=u64::MAX, 0..=u64::MAX),
            most in (proptest::option::of(0..=u64::MAX), proptest::option::of(0..=u64::MAX)),
        ) {
            let (promised, asked) = (promise(promised.0, promised.1), promise(asked.0, asked.1));
            let allowance = Allowance { memory_mib: most.0, cpus: most.1 };
            let refused = !allowance.admits(promised, asked);
            prop_assert_eq!(refused, !allowance.shortage(promised, asked).is_empty());
        }

        #[test]
        fn what_was_promised_and_given_back_leaves_the_sum_as_it_was(
            one in (0..=u64::MAX / 2, 0..=u64::MAX / 2),
            other in (0..=u64::MAX / 2, 0..=u64::MAX / 2),
        ) {
            let (one, other) = (promise(one.0, one.1), promise(other.0, other.1));
            prop_assert_eq!(one.plus(other).minus(other), one);
        }
    }
}
