//! The crash matrix on real QEMU: a daemon dies at each step that an operation
//! passes, and the next one at each step that its recovery passes. Then the
//! oracle holds, what a user sees is as before or as asked for, and the same
//! request under the same key makes it so. Needs the feature `failpoints`.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod case;
mod injected;
mod jobs;
mod operations;
mod paused;
mod stalled;
#[path = "../support/mod.rs"]
mod support;
mod walk;

use support::can_run;
use vman_actors::failpoint::{HOST_POINTS, POINTS};
use walk::{Place, walk};

/// One recovery's step in so many is where `make test` dies again.
const SELDOM: usize = 40;

#[test]
fn chosen_steps_of_every_operation_lead_to_its_end_on_real_qemu() {
    if can_run("chosen_steps_of_every_operation_lead_to_its_end_on_real_qemu") {
        walk(Place::is_chosen, |place| place.number % SELDOM == 0);
    }
}

/// `VMAN_TEST_SHARD=2/8` is the second of eight shares.
fn share() -> (usize, usize) {
    let text = std::env::var("VMAN_TEST_SHARD").unwrap_or_else(|_| "1/1".to_owned());
    let (which, of) = text.split_once('/').expect("VMAN_TEST_SHARD is a/b");
    (which.parse().unwrap(), of.parse().unwrap())
}

#[test]
#[ignore = "takes some minutes; part of make test-long"]
fn every_step_of_every_operation_leads_to_its_end_on_real_qemu() {
    if !can_run("every_step_of_every_operation_leads_to_its_end_on_real_qemu") {
        return;
    }
    let (which, of) = share();
    let tally = walk(|place| place.number % of == which % of, |_| false);
    if of == 1 && std::env::var_os("VMAN_TEST_OPERATION").is_none() {
        let passed = |point: &&&str| !tally.passed.contains(**point);
        let missed: Vec<_> = HOST_POINTS.iter().filter(passed).collect();
        assert!(missed.is_empty(), "never passed: {missed:?}");
    }
    let listed = |step: &&String| !POINTS.iter().chain(HOST_POINTS).any(|point| point == *step);
    let unlisted: Vec<_> = tally.passed.iter().filter(listed).collect();
    assert!(unlisted.is_empty(), "not in the list: {unlisted:?}");
}

#[test]
#[ignore = "takes an hour or two; part of make test-long"]
fn every_step_of_every_recovery_leads_to_the_same_end_on_real_qemu() {
    if can_run("every_step_of_every_recovery_leads_to_the_same_end_on_real_qemu") {
        let (which, of) = share();
        walk(|_| true, |place| place.number % of == which % of);
    }
}
