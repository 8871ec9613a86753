//! What holds of any single step, from any record, reachable or not.

use super::{
    given::{commands, context, desires, facts, moment, moments, records, timers},
    table::leads,
};
use crate::{
    admission::Promise,
    ids::Incarnation,
    time::UnixMs,
    vm::{
        messages::{Effect, Fact, Input, Reply, RunState, Timer},
        phase::{Desired, Phase},
        record::VmRecord,
        step::{Decision, step},
    },
};
use proptest::prelude::*;

fn inputs() -> impl Strategy<Value = Input> {
    prop_oneof![
        commands().prop_map(|command| Input::Command(command, context(1_000))),
        // Stamped for the record by `aimed`.
        facts().prop_map(|fact| Input::Fact(Incarnation(0), fact)),
        Just(Input::Recover),
    ]
}

/// A fact of this very life.
fn aimed(input: Input, record: &VmRecord) -> Input {
    match input {
        Input::Fact(_, fact) => Input::Fact(record.incarnation, fact),
        Input::Command(..) | Input::Recover => input,
    }
}

fn nothing_happened(record: &VmRecord, decision: &Decision) -> Result<(), TestCaseError> {
    prop_assert_eq!(&decision.record, record);
    prop_assert!(decision.erased.is_none());
    prop_assert!(decision.operations.is_empty());
    prop_assert!(decision.event.is_none());
    prop_assert!(decision.effects.is_empty());
    Ok(())
}

/// Effects that end or release, and the one phase they belong to.
fn fits(effect: &Effect, to: Phase) -> bool {
    match effect {
        Effect::Claim => to == Phase::Claiming,
        Effect::Launch => to == Phase::Launching,
        Effect::Adopt => to == Phase::Unknown,
        Effect::Terminate | Effect::Kill => to == Phase::Killing,
        Effect::Release { .. } => to == Phase::Releasing,
        Effect::Powerdown => to == Phase::Stopping,
        Effect::Act(..) => matches!(to, Phase::Running | Phase::Paused),
        Effect::Plug { .. }
        | Effect::Unplug { .. }
        | Effect::Resize { .. }
        | Effect::LookAtDisks => to.may_have_process(),
        Effect::Nic { .. } => matches!(to, Phase::Running | Phase::Paused),
        Effect::LookForSpace => to == Phase::Paused,
        Effect::Continue => to.may_have_process(),
        Effect::Arm(timer, _) => match timer {
            Timer::LaunchDeadline => matches!(to, Phase::Launching | Phase::Unknown),
            Timer::PowerdownAgain | Timer::StopDeadline => to == Phase::Stopping,
            Timer::KillAgain => to == Phase::Killing,
            Timer::ReleaseAgain => to == Phase::Releasing,
            Timer::BackoffDue => to == Phase::Backoff,
            Timer::SpaceAgain => to == Phase::Paused,
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 20_000, max_global_rejects: 20_000, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn a_step_is_total_and_goes_along_the_arrows(
        record in records(), input in inputs(), moment in moments(),
    ) {
        let input = aimed(input, &record);
        let after = step(&record, input, &moment).record;
        prop_assert!(leads(record.phase, after.phase), "{:?} to {:?}", record.phase, after.phase);
        prop_assert!(after.incarnation >= record.incarnation);
        prop_assert!(after.incarnation.0 - record.incarnation.0 <= 1);
        prop_assert_eq!(
            after.incarnation > record.incarnation,
            after.phase == Phase::Claiming && record.phase != Phase::Claiming
        );
    }

    #[test]
    fn a_fact_of_another_life_changes_nothing(
        record in records(), fact in facts(), other in 1..6_u64, moment in moments(),
    ) {
        let other = Incarnation(record.incarnation.0.wrapping_sub(3).wrapping_add(other));
        prop_assume!(other != record.incarnation);
        let decision = step(&record, Input::Fact(other, fact), &moment);
        nothing_happened(&record, &decision)?;
        prop_assert!(decision.reply.is_none());
    }

    #[test]
    fn only_commands_are_answered_and_a_refused_one_changes_nothing(
        record in records(), input in inputs(), moment in moments(),
    ) {
        let is_command = matches!(input, Input::Command(..));
        let input = aimed(input, &record);
        let decision = step(&record, input, &moment);
        prop_assert_eq!(decision.reply.is_some(), is_command);
        match &decision.reply {
            Some(Reply::Refused(_)) => nothing_happened(&record, &decision)?,
            Some(Reply::Accepted(id)) => {
                let rows = decision.operations.iter().filter(|row| row.id == *id);
                prop_assert_eq!(rows.count(), 1);
                prop_assert!(decision.event.is_some());
            }
            None => {}
        }
    }

    #[test]
    fn a_vm_that_comes_to_rest_holds_nothing(
        record in records(), input in inputs(), moment in moments(),
    ) {
        let input = aimed(input, &record);
        let after = step(&record, input, &moment).record;
        if after.phase.is_rest() {
            prop_assert_eq!(&after.claim, &None);
            prop_assert_eq!(&after.process, &None);
            prop_assert_eq!(&after.ending, &None);
            prop_assert_eq!(&after.stop, &None);
            prop_assert!(after.operations.is_empty());
            prop_assert!(!after.restarting && !after.unresponsive);
        }
    }

    #[test]
    fn an_operation_is_never_lost_and_never_ended_twice(
        record in records(), input in inputs(), moment in moments(),
    ) {
        let input = aimed(input, &record);
        let decision = step(&record, input, &moment);
        for op in &record.operations {
            let open = decision.record.operations.iter().filter(|o| o.id == op.id).count();
            let ended = decision.operations.iter()
                .filter(|row| row.id == op.id && row.status.is_end()).count();
            prop_assert_eq!(open + ended, 1, "{:?}", op);
        }
        if decision.erased.is_some() {
            prop_assert!(decision.record.operations.is_empty());
        }
    }

    #[test]
    fn what_changes_is_told_and_effects_fit_the_phase(
        record in records(), input in inputs(), moment in moments(),
    ) {
        let input = aimed(input, &record);
        let decision = step(&record, input, &moment);
        let changed = decision.record != record || !decision.operations.is_empty();
        prop_assert!(!changed || decision.event.is_some());
        for effect in &decision.effects {
            prop_assert!(fits(effect, decision.record.phase), "{:?} in {:?}", effect,
                decision.record.phase);
        }
    }

    #[test]
    fn only_a_command_asks_for_room_on_the_host(
        record in records(), input in inputs(), moment in moments(),
    ) {
        let input = aimed(input, &record);
        let is_command = matches!(input, Input::Command(..));
        let after = step(&record, input, &moment).record;
        let anew = Promise::to(&record).is_none() && !Promise::to(&after).is_none();
        prop_assert!(is_command || !anew, "from {:?} to {:?}", record.phase, after.phase);
    }

    #[test]
    fn recovering_twice_is_recovering_once(record in records(), moment in moments()) {
        let once = step(&record, Input::Recover, &moment);
        let twice = step(&once.record, Input::Recover, &moment);
        prop_assert_eq!(&twice.record, &once.record);
        prop_assert_eq!(twice.effects, once.effects);
    }

    #[test]
    fn a_guest_that_resets_itself_is_not_stopped(record in records(), moment in moments()) {
        let decision = step(&record, Input::Fact(record.incarnation, Fact::GuestReset), &moment);
        prop_assert_eq!(&decision.record, &record);
        prop_assert!(decision.effects.is_empty());
    }

    #[test]
    fn a_qemu_that_is_found_and_wanted_is_not_ended(
        record in records(), now in any::<u64>(), deaf in any::<bool>(), state in 0..3_usize,
    ) {
        let mut record = record;
        record.phase = Phase::Unknown;
        record.desired = Desired::Running;
        (record.ending, record.restarting) = (None, false);
        let state = [RunState::Running, RunState::Paused, RunState::IoError][state];
        let fact = if deaf { Fact::Deaf { detail: String::new() } } else { Fact::Ready(state) };
        let decision = step(&record, Input::Fact(record.incarnation, fact), &moment(now, 1));
        let to = decision.record.phase;
        prop_assert!(matches!(to, Phase::Unknown | Phase::Running | Phase::Paused), "{:?}", to);
        prop_assert!(!decision.effects.iter().any(|e| matches!(e, Effect::Terminate | Effect::Kill)));
    }

    #[test]
    fn no_deadline_ends_a_wanted_qemu_that_has_run(
        record in records(), now in any::<u64>(), timer in timers(), phase in 0..3_usize,
    ) {
        let mut record = record;
        record.phase = [Phase::Unknown, Phase::Running, Phase::Paused][phase];
        record.desired = Desired::Running;
        (record.ending, record.restarting) = (None, false);
        record.started_at = Some(UnixMs(1));
        let mut decision = step(&record, Input::Fact(record.incarnation, Fact::TimerDue(timer)), &moment(now, 1));
        // A look at the storage ends nothing.
        decision.effects.retain(|effect| *effect != Effect::LookForSpace);
        nothing_happened(&record, &decision)?;
    }

    #[test]
    fn a_qemu_that_is_found_and_not_wanted_is_ended(
        record in records(), desired in desires(), now in any::<u64>(), deaf in any::<bool>(),
    ) {
        let mut record = record;
        record.phase = Phase::Unknown;
        record.desired = desired;
        record.restarting = desired == Desired::Running;
        let fact = if deaf {
            Fact::Deaf { detail: String::new() }
        } else {
            Fact::Ready(RunState::Running)
        };
        let decision = step(&record, Input::Fact(record.incarnation, fact), &moment(now, 1));
        let to = decision.record.phase;
        prop_assert!(matches!(to, Phase::Stopping | Phase::Killing), "{:?}", to);
    }

    #[test]
    fn a_clock_that_goes_back_moves_no_phase_elsewhere(
        record in records(), input in inputs(), now in any::<u64>(), back in any::<u64>(),
    ) {
        // But for the budget, which looks at the clock, time decides nothing.
        let mut record = record;
        record.restarts.recent.clear();
        let input = aimed(input, &record);
        let sooner = step(&record, input.clone(), &moment(now, 1));
        let later = step(&record, input, &moment(now.saturating_sub(back), 1));
        prop_assert_eq!(sooner.record.phase, later.record.phase);
        prop_assert_eq!(sooner.effects, later.effects);
    }
}
