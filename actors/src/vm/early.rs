//! A daemon that starts on a full or read-only disk: its VMs are found again
//! although that cannot be recorded yet.
//!
//! Looking for a QEMU changes nothing on the host, so it is the one effect that
//! may come before its record. What it finds waits, as any fact does, behind the
//! recovery that could not be written, and the VM counts as recovered: reads are
//! answered, and a guest is not left alone because a disk is full.

use super::{Recovered, VmState, msg::VmMsg};
use crate::mailbox::ActorRef;
use vman_model::vm::{self as model, Effect, Input, Moment};

impl VmState {
    /// The recovery could not be recorded.
    pub(super) fn recover_without_record(&mut self, myself: &ActorRef<VmMsg>) {
        if self.recovered == Recovered::NotBegun {
            self.recovered = Recovered::Told;
            self.recovery.resolved(&self.id);
        }
        if self.adopting_early {
            return;
        }
        let Some((_, record)) = self.record.as_ref() else {
            return;
        };
        let moment = Moment {
            now: self.deps.clock.now(),
            boot_id: self.deps.clock.boot_id(),
        };
        let decision = model::step(record, Input::Recover, &moment);
        if decision.effects.contains(&Effect::Adopt) {
            self.adopting_early = true;
            self.machine = None;
            self.dispatch(myself, vec![Effect::Adopt]);
        }
    }

    /// QMP takes one client at a time: what was looked for early is not looked
    /// for again when the recovery is recorded.
    pub(super) fn without_second_adoption(&mut self, mut effects: Vec<Effect>) -> Vec<Effect> {
        if effects.contains(&Effect::Adopt) && std::mem::take(&mut self.adopting_early) {
            effects.retain(|effect| *effect != Effect::Adopt);
        }
        effects
    }
}
