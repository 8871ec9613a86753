//! `docs/vm-lifecycle.md` says what the code does: all its words, arrows and
//! deadlines.

use super::{
    given::{REASONS, all_commands, context, moment},
    table::{ARROWS, vm_in},
};
use crate::{
    restart::{RestartBudget, RestartMode},
    vm::{
        messages::{Input, Refusal, Reply},
        phase::Phase,
        record::Reason,
        step::{
            KILL_AGAIN_MS, LAUNCH_DEADLINE_MS, POWERDOWN_AGAIN_MS, RELEASE_AGAIN_MS,
            TERMINATE_GRACE_MS, step,
        },
    },
};
use std::collections::BTreeSet;

const PAGE: &str = include_str!("../../../../../../docs/vm-lifecycle.md");

/// The words in the first column of the page's tables.
fn rows() -> BTreeSet<&'static str> {
    let first = |line: &'static str| line.strip_prefix("| `")?.split('`').next();
    PAGE.lines().filter_map(first).collect()
}

/// A reason that is not in `REASONS` would not be looked for: adding one to the
/// enum does not compile until this is looked at.
fn listed(reason: Reason) -> bool {
    match reason {
        Reason::Created
        | Reason::User
        | Reason::GuestShutdown
        | Reason::GuestPanic
        | Reason::QemuExit
        | Reason::QemuSignal
        | Reason::Oom
        | Reason::HostReboot
        | Reason::IoError
        | Reason::CrashLoop
        | Reason::StartFailed
        | Reason::RestartPolicy
        | Reason::InternalError => REASONS.contains(&reason),
    }
}

#[test]
fn the_page_has_a_row_for_every_phase_and_every_reason() {
    let rows = rows();
    for phase in Phase::ALL {
        assert!(rows.contains(phase.as_str()), "no row for phase {phase:?}");
    }
    for reason in REASONS {
        assert!(listed(reason));
        assert!(rows.contains(reason.as_str()), "no row for {reason:?}");
    }
}

#[test]
fn the_page_draws_exactly_the_arrows_of_the_table() {
    let drawn: BTreeSet<(&str, &str)> = PAGE
        .lines()
        .filter_map(|line| line.trim().split_once(" --> "))
        .map(|(from, rest)| (from, rest.split(':').next().unwrap_or(rest)))
        .filter(|(from, to)| *from != "[*]" && *to != "[*]")
        .collect();
    let there: BTreeSet<_> = ARROWS
        .iter()
        .flat_map(|(from, to)| to.iter().map(|to| (from.as_str(), to.as_str())))
        .collect();
    assert_eq!(drawn, there);
}

#[test]
fn the_page_names_every_deadline_with_its_value() {
    for (name, value) in [
        ("LAUNCH_DEADLINE_MS", LAUNCH_DEADLINE_MS),
        ("POWERDOWN_AGAIN_MS", POWERDOWN_AGAIN_MS),
        ("TERMINATE_GRACE_MS", TERMINATE_GRACE_MS),
        ("KILL_AGAIN_MS", KILL_AGAIN_MS),
        ("RELEASE_AGAIN_MS", RELEASE_AGAIN_MS),
    ] {
        let row = format!("| `{name}` | {value} |");
        assert!(PAGE.contains(&row), "no row {row}");
    }
    let budget = RestartBudget::default();
    for said in [
        format!("`max_restarts` ({})", budget.max_restarts),
        format!("`window_s` ({} s)", budget.window_s),
        format!("`backoff_ms` ({} s)", budget.backoff_ms / 1_000),
        format!("`backoff_max_ms` ({} s)", budget.backoff_max_ms / 1_000),
    ] {
        assert!(PAGE.contains(&said), "the page does not say {said}");
    }
    for mode in [
        RestartMode::Never,
        RestartMode::OnFailure,
        RestartMode::Always,
    ] {
        assert!(PAGE.contains(&format!("`{}`", mode.as_str())), "{mode:?}");
    }
}

#[test]
fn the_page_names_every_refusal_that_a_command_meets_in_the_row_of_its_phase() {
    let section = PAGE.split("## What commands do").nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    for phase in Phase::ALL {
        let word = format!("`{}`", phase.as_str());
        let row = section
            .lines()
            .find(|line| line.split('|').nth(1).is_some_and(|c| c.contains(&word)))
            .unwrap_or_else(|| panic!("no row for {phase:?}"));
        for command in all_commands() {
            let input = Input::Command(command.clone(), context(1_000));
            if let Some(Reply::Refused(refusal)) = step(&vm_in(phase), input, &moment(9, 1)).reply {
                assert!(
                    row.contains(refusal.code()),
                    "{command:?} in {phase:?}: {row}"
                );
            }
        }
    }
    assert!(section.contains(Refusal::BeingDeleted.code()));
}
