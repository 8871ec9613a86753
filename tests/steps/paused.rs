//! A pause or a resume whose daemon dies before QEMU has heard of it, or after:
//! nothing is done a second time, and what is told is what QEMU did.

use crate::{
    case::{Case, FIRST_KEY},
    operations::OPERATIONS,
    support::{can_run, qmp::Monitor, sight},
};
use serde_json::json;
use vman_actors::oracle::Promised;

/// Whether the guest's CPUs run, as its QEMU says.
fn runs(case: &Case) -> bool {
    let status = Monitor::open(&case.daemon.monitor("a")).run("query-status", &json!({}));
    status["running"].as_bool().unwrap()
}

#[test]
fn a_pause_or_resume_whose_daemon_dies_is_told_as_qemu_has_done_it() {
    if !can_run("a_pause_or_resume_whose_daemon_dies_is_told_as_qemu_has_done_it") {
        return;
    }
    for (action, step, was_done) in [
        ("pause", "qmp.stop.before#1", false),
        ("pause", "qmp.stop.after#1", true),
        ("resume", "qmp.cont.before#1", false),
        ("resume", "qmp.cont.after#1", true),
    ] {
        let mut named = OPERATIONS.iter().filter(|asked| asked.name == action);
        let operation = named.next().unwrap();
        let mut case = Case::new(operation);
        let died = case.dies_at(step, |daemon| {
            operation.ask(daemon, FIRST_KEY).unwrap_err();
        });
        assert!(died, "{step}");
        let shall_run = (action == "resume") == was_done;
        assert_eq!(runs(&case), shall_run, "{step}: before anybody looks");

        case.next_life(None);
        assert!(case.up(), "{step}");
        sight::judge(&case.daemon, &Promised::default(), step);
        assert_eq!(runs(&case), shall_run, "{step}: it is left as it was");
        let state = if shall_run { "running" } else { "paused" };
        assert_eq!(case.daemon.vm("a")["state"], state, "{step}");

        let told = operation.ask(&case.daemon, FIRST_KEY).unwrap().expect(200);
        if was_done {
            assert_eq!(told["status"], "succeeded", "{step}: {told}");
        } else {
            assert_eq!(told["status"], "failed", "{step}: {told}");
            assert_eq!(told["error"]["code"], "interrupted", "{step}: {told}");
            let again = operation.ask(&case.daemon, "another-key").unwrap();
            assert_eq!(again.expect(200)["status"], "succeeded", "{step}");
            assert_eq!(runs(&case), action == "resume", "{step}: asked again");
        }
        sight::judge(&case.daemon, &Promised::default(), step);
    }
}
