//! Every phase against every input, and the arrows there are between phases.

use super::given::{POLITE, all_inputs, identity, moment, new_vm};
use crate::{
    ids::Incarnation,
    restart::{RestartBudget, RestartMode},
    time::UnixMs,
    vm::{
        phase::{Desired, Phase},
        record::{Ending, Reason, VmRecord},
        step::step,
    },
};

/// Where each phase leads, in one step. The table of the module's head and the
/// drawing in `docs/vm-lifecycle.md` say the same.
pub(super) const ARROWS: [(Phase, &[Phase]); 11] = [
    (Phase::Stopped, &[Phase::Claiming, Phase::Releasing]),
    (Phase::Claiming, &[Phase::Launching, Phase::Releasing]),
    (
        Phase::Launching,
        &[
            Phase::Running,
            Phase::Paused,
            Phase::Killing,
            Phase::Releasing,
            Phase::Unknown,
        ],
    ),
    (
        Phase::Running,
        &[
            Phase::Paused,
            Phase::Stopping,
            Phase::Killing,
            Phase::Releasing,
            Phase::Unknown,
        ],
    ),
    (
        Phase::Paused,
        &[
            Phase::Running,
            Phase::Stopping,
            Phase::Killing,
            Phase::Releasing,
            Phase::Unknown,
        ],
    ),
    (
        Phase::Stopping,
        &[Phase::Killing, Phase::Releasing, Phase::Unknown],
    ),
    (Phase::Killing, &[Phase::Releasing, Phase::Unknown]),
    (
        Phase::Releasing,
        &[
            Phase::Stopped,
            Phase::Claiming,
            Phase::Backoff,
            Phase::Failed,
        ],
    ),
    (
        Phase::Backoff,
        &[Phase::Claiming, Phase::Stopped, Phase::Releasing],
    ),
    (
        Phase::Failed,
        &[Phase::Claiming, Phase::Stopped, Phase::Releasing],
    ),
    (
        Phase::Unknown,
        &[
            Phase::Launching,
            Phase::Running,
            Phase::Paused,
            Phase::Stopping,
            Phase::Killing,
            Phase::Releasing,
        ],
    ),
];

pub(super) fn leads(from: Phase, to: Phase) -> bool {
    from == to || ARROWS.iter().any(|(f, t)| *f == from && t.contains(&to))
}

/// A VM in `phase` as it is found there.
pub(super) fn vm_in(phase: Phase) -> VmRecord {
    let mut record = new_vm(RestartMode::OnFailure, RestartBudget::default());
    record.phase = phase;
    if phase == Phase::Stopped {
        return record;
    }
    record.desired = Desired::Running;
    record.incarnation = Incarnation(1);
    record.boot_id = Some(moment(0, 1).boot_id);
    record.reason = Reason::User;
    if phase == Phase::Failed {
        record.reason = Reason::QemuSignal;
    }
    if phase.may_have_process() || phase == Phase::Releasing {
        record.process = Some(identity(9));
        record.claim = Some(crate::vm::Claim::default());
        record.started_at = (phase != Phase::Launching).then_some(UnixMs(5));
    }
    if matches!(phase, Phase::Stopping | Phase::Killing | Phase::Releasing) {
        record.desired = Desired::Stopped;
        record.stop = Some(POLITE);
        record.ending = Some(Ending {
            reason: Reason::User,
            detail: "stop was asked for".to_owned(),
        });
    }
    record
}

#[test]
fn every_phase_answers_every_input_along_the_arrows_of_the_table() {
    for phase in Phase::ALL {
        let record = vm_in(phase);
        for input in all_inputs(record.incarnation) {
            for boot in [1, 2] {
                let to = step(&record, input.clone(), &moment(9, boot)).record.phase;
                assert!(leads(phase, to), "{phase:?} went to {to:?} on {input:?}");
            }
        }
    }
}

#[test]
fn the_table_knows_every_phase_once() {
    assert_eq!(ARROWS.map(|(from, _)| from), Phase::ALL);
}
