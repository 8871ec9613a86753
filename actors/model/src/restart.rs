//! The restart policy: whether, and after how long, a VM whose QEMU ended is
//! started again. A budget with exponential backoff; when it is used up the VM
//! is Failed with reason `crash_loop`.

use crate::time::UnixMs;
use serde::{Deserialize, Serialize};

/// When a VM is started again by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartMode {
    /// Never: a VM whose QEMU died is Failed.
    #[default]
    Never,
    /// When its QEMU or its guest's kernel died, not when the guest powered off.
    OnFailure,
    /// Also when the guest powered itself off. A user's stop is never undone.
    Always,
}

impl RestartMode {
    /// The word the API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            RestartMode::Never => "never",
            RestartMode::OnFailure => "on-failure",
            RestartMode::Always => "always",
        }
    }
}

/// How often and how quickly restarts may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartBudget {
    /// Restarts within the window before the VM is given up.
    pub max_restarts: u32,
    /// The window, in seconds.
    pub window_s: u32,
    /// The first delay, in milliseconds; it doubles with each restart in the window.
    pub backoff_ms: u32,
    /// The longest delay, in milliseconds.
    pub backoff_max_ms: u32,
}

impl Default for RestartBudget {
    fn default() -> Self {
        Self {
            max_restarts: 5,
            window_s: 600,
            backoff_ms: 1_000,
            backoff_max_ms: 60_000,
        }
    }
}

/// A VM's restart policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// When.
    pub mode: RestartMode,
    /// How often.
    pub budget: RestartBudget,
}

/// The most restarts a budget may allow: the history keeps a time for each.
pub const MAX_RESTARTS: u32 = 100;

/// The restarts that count against the budget.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartHistory {
    /// When each restart within the window was decided, oldest first. At most
    /// [`MAX_RESTARTS`] long.
    pub recent: Vec<UnixMs>,
    /// All restarts by policy since the VM was made.
    pub total: u64,
}

/// What the policy says after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Start it again after this many milliseconds.
    After(u64),
    /// The budget is used up.
    GiveUp,
}

impl RestartHistory {
    /// Asks the budget for one more restart and, if it is granted, counts it.
    pub fn ask(&mut self, budget: &RestartBudget, now: UnixMs) -> Verdict {
        let window_ms = u64::from(budget.window_s) * 1_000;
        // A time in the future is a clock that went back: it still counts, or a
        // jumping clock would make the budget endless.
        self.recent.retain(|at| now.since(*at) < window_ms);
        let used = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        if used >= budget.max_restarts.min(MAX_RESTARTS) {
            return Verdict::GiveUp;
        }
        let factor = 1_u64 << used.min(32);
        let delay = u64::from(budget.backoff_ms).saturating_mul(factor);
        self.recent.push(now);
        self.total += 1;
        Verdict::After(delay.min(u64::from(budget.backoff_max_ms)))
    }

    /// Forgets the failures: a user started or stopped the VM, so the budget is
    /// whole again.
    pub fn forgive(&mut self) {
        self.recent.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn restarts_never_exceed_the_budget_in_any_window(
            max in 0u32..10, window_s in 1u32..100,
            gaps in prop::collection::vec(0u64..50_000, 1..100),
        ) {
            let budget = RestartBudget { max_restarts: max, window_s, ..RestartBudget::default() };
            let mut history = RestartHistory::default();
            let (mut now, mut granted) = (UnixMs(0), Vec::new());
            for gap in gaps {
                now = UnixMs(now.0 + gap);
                if let Verdict::After(delay) = history.ask(&budget, now) {
                    prop_assert!(delay <= u64::from(budget.backoff_max_ms));
                    granted.push(now);
                }
                let in_window = granted.iter()
                    .filter(|at| now.since(**at) < u64::from(window_s) * 1_000).count();
                prop_assert!(in_window <= max as usize);
            }
        }
    }

    #[test]
    fn a_restart_counts_until_its_window_is_over_and_for_ever_in_the_total() {
        let budget = RestartBudget {
            max_restarts: 1,
            window_s: 10,
            ..RestartBudget::default()
        };
        let mut history = RestartHistory::default();
        assert_eq!(history.ask(&budget, UnixMs(0)), Verdict::After(1_000));
        assert_eq!(history.ask(&budget, UnixMs(9_999)), Verdict::GiveUp);
        assert_eq!(history.ask(&budget, UnixMs(10_000)), Verdict::After(1_000));
        assert_eq!((history.recent.len(), history.total), (1, 2));
    }

    #[test]
    fn the_words_of_the_policy_are_the_apis() {
        let words = [
            RestartMode::Never,
            RestartMode::OnFailure,
            RestartMode::Always,
        ];
        let words = words.map(RestartMode::as_str);
        assert_eq!(words, ["never", "on-failure", "always"]);
    }

    #[test]
    fn the_delay_doubles_up_to_its_cap() {
        let budget = RestartBudget {
            max_restarts: 8,
            ..RestartBudget::default()
        };
        let mut history = RestartHistory::default();
        let delays: Vec<_> = (0..8).map(|_| history.ask(&budget, UnixMs(5))).collect();
        let expected = [1, 2, 4, 8, 16, 32, 60, 60].map(|s| Verdict::After(s * 1_000));
        assert_eq!(delays, expected);
        assert_eq!(history.ask(&budget, UnixMs(5)), Verdict::GiveUp);
        history.forgive();
        assert_eq!(history.ask(&budget, UnixMs(5)), Verdict::After(1_000));
    }
}
