//! What befalls a simulated daemon at its steps: it dies at one that was named,
//! or by a seed at any, or is late.

use crate::{
    failpoint::{Fate, Step, Watch},
    fakes::FakeHost,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// A step, and the how manyeth time it is passed.
pub(super) type Pass = (Step, u32);

/// A small generator (xorshift64*): a seed tells all that follows.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    pub(super) fn ms(&mut self, below: u64) -> Duration {
        Duration::from_millis(self.roll(below))
    }
}

/// One life of a daemon, step by step.
pub(super) struct Trial {
    host: FakeHost,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    passed: Vec<Pass>,
    times: BTreeMap<Step, u32>,
    armed: Option<Pass>,
    /// One step in so many is its last.
    deaths: Option<(Dice, u64)>,
    dead: bool,
}

impl Trial {
    fn of(host: &FakeHost, state: State) -> Arc<Self> {
        Arc::new(Self {
            host: host.clone(),
            state: Mutex::new(state),
        })
    }

    /// A life that is only written down.
    pub(super) fn watch(host: &FakeHost) -> Arc<Self> {
        Self::of(host, State::default())
    }

    /// A life that ends at this pass.
    pub(super) fn until(host: &FakeHost, armed: Pass) -> Arc<Self> {
        let armed = Some(armed);
        Self::of(
            host,
            State {
                armed,
                ..State::default()
            },
        )
    }

    /// A life of delays, that ends at one step in about `odds`.
    pub(super) fn by_chance(host: &FakeHost, dice: Dice, odds: u64) -> Arc<Self> {
        let deaths = Some((dice, odds));
        Self::of(
            host,
            State {
                deaths,
                ..State::default()
            },
        )
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on: what was passed is forgotten.
    pub(super) fn begin(&self, armed: Option<Pass>) {
        let mut state = self.state();
        state.passed.clear();
        state.times.clear();
        state.armed = armed;
    }

    pub(super) fn passed(&self) -> Vec<Pass> {
        self.state().passed.clone()
    }

    pub(super) fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// It is killed, at no step of its own.
    pub(super) fn kill(&self) {
        self.state().dead = true;
    }
}

impl State {
    /// Whether this is the last step, or how late it is.
    fn next(&mut self, pass: Pass) -> Fate {
        if self.armed == Some(pass) {
            return Fate::Dead;
        }
        let Some((dice, odds)) = &mut self.deaths else {
            return Fate::Go;
        };
        if dice.roll(*odds) == 0 {
            return Fate::Dead;
        }
        match dice.roll(4) {
            0 => Fate::Late(dice.ms(20)),
            _ => Fate::Go,
        }
    }
}

impl Watch for Trial {
    fn lives(&self) -> bool {
        !self.is_dead()
    }

    fn pass(&self, step: Step) -> Fate {
        let mut state = self.state();
        if state.dead {
            return Fate::Dead;
        }
        let times = state.times.entry(step).or_default();
        *times += 1;
        let pass = (step, *times);
        state.passed.push(pass);
        let fate = state.next(pass);
        if fate == Fate::Dead {
            state.dead = true;
            self.host.kill_daemon();
        }
        fate
    }
}
