//! Every change has a cause: from every phase, by every input, nothing about a
//! VM changes without an event that says why.

use super::given::{commands, context, facts, moments, records};
use crate::{
    event::Origin,
    ids::Incarnation,
    vm::{
        messages::Input,
        step::{input_word, step},
    },
};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use std::collections::BTreeSet;

fn inputs() -> impl Strategy<Value = Input> {
    prop_oneof![
        commands().prop_map(|command| Input::Command(command, context(1_000))),
        facts().prop_map(|fact| Input::Fact(Incarnation(0), fact)),
        Just(Input::Recover),
    ]
}

fn draw<S: Strategy>(of: &S, runner: &mut TestRunner) -> S::Value {
    let tree = of.new_tree(runner).expect("none of them rejects anything");
    tree.current()
}

#[test]
fn every_transition_of_the_code_has_a_cause_a_sentence_and_what_led_to_it() {
    const ROUNDS: usize = 40_000;
    let mut runner = TestRunner::deterministic();
    let (all_records, all_inputs, all_moments) = (records(), inputs(), moments());
    let mut transitions = BTreeSet::new();
    for _ in 0..ROUNDS {
        let mut record = draw(&all_records, &mut runner);
        // What the records are made of here is arbitrary, and so may be empty.
        record.detail = "as it was".to_owned();
        if let Some(ending) = &mut record.ending {
            ending.detail = "as it ended".to_owned();
        }
        let input = match draw(&all_inputs, &mut runner) {
            Input::Fact(_, fact) => Input::Fact(record.incarnation, fact),
            other => other,
        };
        let moment = draw(&all_moments, &mut runner);
        let decision = step(&record, input.clone(), &moment);
        let word = input_word(&input);
        let changed = decision.record != record || decision.erased.is_some();
        let Some(event) = decision.event else {
            assert!(
                !changed,
                "{:?} by {word}: a change without an event",
                record.phase
            );
            assert!(
                decision.operations.is_empty(),
                "an operation without an event"
            );
            continue;
        };
        let cause = &event.cause;
        let told = format!("{:?} by {word}: {event:?}", record.phase);
        assert_eq!(cause.input, word, "{told}");
        assert!(!event.detail.is_empty(), "{told}");
        assert_eq!(event.from, Some(record.phase), "{told}");
        assert_eq!(
            event.previous, record.last_event,
            "the chain is whole: {told}"
        );
        assert_ne!(cause.origin, Origin::Daemon, "nobody in particular: {told}");
        match &input {
            Input::Command(_, context) => assert_eq!(cause.origin, context.origin, "{told}"),
            Input::Fact(..) | Input::Recover => {
                assert_eq!(cause.led_by, record.last_event, "{told}");
            }
        }
        transitions.insert((record.phase, word, event.to));
    }
    // The table has some sixty arrows; a walk that meets few of them shows little.
    assert!(transitions.len() > 100, "{} were walked", transitions.len());
}
