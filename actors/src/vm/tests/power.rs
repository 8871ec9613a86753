//! What comes up and goes down with the host.

use super::daemon::{Daemon, STOP, alone, origin, vm};
use crate::{
    power::{DrainRequest, PowerError},
    vm::CommandError,
};
use std::time::Duration;
use vman_model::{
    EventKind, OperationRecord, OperationStatus, VmId,
    power::{Condition, Dependency, StartSpec},
    vm::{Command, CommandContext, Phase, Reason},
};

fn spec(autostart: bool, priority: u32, depends_on: &[(&str, Condition)]) -> Command {
    Command::SetStart(StartSpec {
        autostart,
        priority,
        depends_on: depends_on
            .iter()
            .map(|(other, condition)| Dependency {
                vm: vm(other),
                condition: *condition,
            })
            .collect(),
    })
}

async fn drain(daemon: &Daemon, timeout_s: u64) -> OperationRecord {
    let context = CommandContext {
        operation: daemon.on().vms.new_operation_id(),
        origin: origin(),
    };
    let request = DrainRequest {
        timeout_ms: timeout_s * 1_000,
        idempotency: None,
        context,
    };
    daemon.on().power.drain(request).await.unwrap()
}

async fn drained(daemon: &Daemon) {
    let operation = drain(daemon, 120).await;
    let ended = daemon.ended(&operation.id).await;
    assert_eq!(
        ended.status,
        OperationStatus::Succeeded,
        "{:?}",
        ended.error
    );
}

async fn reboot(daemon: &mut Daemon) {
    daemon.host.reboot();
    daemon.end().await;
    daemon.boot().await;
}

/// The VMs in the order in which they came to a phase.
fn order_of(daemon: &Daemon, phase: Phase) -> Vec<String> {
    let inventory = daemon.on().store.inventory();
    let events = inventory.recent_events.iter();
    let came = events.filter(|event| {
        let what = &event.what;
        what.kind == EventKind::VmPhaseChanged && what.to == Some(phase)
    });
    came.filter_map(|event| match &event.what.subject {
        vman_model::Subject::Vm(id) => Some(id.to_string()),
        _ => None,
    })
    .collect()
}

#[tokio::test]
async fn a_boot_starts_what_is_to_start_with_it_in_order_and_leaves_the_rest() {
    let mut daemon = Daemon::start().await;
    for (name, start) in [
        ("web", spec(true, 0, &[("db", Condition::Running)])),
        ("db", spec(false, 0, &[])),
        ("first", spec(true, 9, &[])),
        ("rests", spec(false, 9, &[])),
    ] {
        let id = daemon.create(name).await;
        daemon.done(&id, start).await;
    }
    reboot(&mut daemon).await;
    daemon.until_phase(&vm("web"), Phase::Running).await;
    assert_eq!(order_of(&daemon, Phase::Running), ["first", "db", "web"]);
    assert_eq!(daemon.phase(&vm("rests")), Some(Phase::Stopped));
    let settled = || daemon.on().power.host().is_some_and(|host| !host.is_busy());
    daemon.until("the boot is done with", settled).await;
    // A user's stop is not undone by a daemon that comes back.
    daemon.done(&vm("first"), STOP).await;
    daemon.kill_and_start().await;
    daemon.pass(Duration::from_secs(5)).await;
    assert_eq!(daemon.phase(&vm("first")), Some(Phase::Stopped));
    daemon.oracle().await;
}

#[tokio::test]
async fn what_ran_before_a_boot_comes_back_in_order_too() {
    let mut daemon = Daemon::start().await;
    for (name, priority) in [("low", 0), ("high", 5)] {
        let id = daemon.running(name).await;
        daemon.done(&id, spec(false, priority, &[])).await;
    }
    let before = order_of(&daemon, Phase::Running).len();
    reboot(&mut daemon).await;
    daemon.until_phase(&vm("low"), Phase::Running).await;
    assert_eq!(order_of(&daemon, Phase::Running)[before..], ["high", "low"]);
    let record = daemon.record(&vm("low")).unwrap();
    assert_eq!(record.reason, Reason::HostReboot);
    daemon.oracle().await;
}

#[tokio::test]
async fn a_boot_that_is_cut_short_by_a_dead_daemon_is_gone_on_with() {
    let mut daemon = Daemon::start().await;
    for (name, priority) in [("a", 9), ("b", 5), ("c", 0)] {
        let id = daemon.create(name).await;
        daemon.done(&id, spec(true, priority, &[])).await;
    }
    reboot(&mut daemon).await;
    daemon.until_phase(&vm("a"), Phase::Running).await;
    daemon.kill_and_start().await;
    daemon.until_phase(&vm("c"), Phase::Running).await;
    daemon.oracle().await;
    assert_eq!(daemon.host.launched(), 3);
}

#[tokio::test]
async fn a_held_start_can_be_stopped_and_is_not_begun_later() {
    let mut daemon = Daemon::start().await;
    let id = daemon.running("web").await;
    let other = daemon.create("db").await;
    daemon.host.script_vm(&other, |script| {
        script.claim_takes = Duration::from_mins(1);
    });
    daemon
        .done(&id, spec(false, 0, &[("db", Condition::Running)]))
        .await;
    reboot(&mut daemon).await;
    daemon.until_phase(&id, Phase::Claiming).await;
    daemon.pass(Duration::from_secs(5)).await;
    assert_eq!(daemon.phase(&id), Some(Phase::Claiming), "it waits for db");
    daemon.done(&id, STOP).await;
    daemon.until_phase(&other, Phase::Running).await;
    daemon.pass(Duration::from_secs(5)).await;
    assert_eq!(daemon.phase(&id), Some(Phase::Stopped));
    daemon.oracle().await;
}

#[tokio::test]
async fn nobody_waits_for_ever_and_it_is_told() {
    let mut daemon = Daemon::start().await;
    let other = daemon.create("db").await;
    let id = daemon.create("web").await;
    daemon
        .done(&id, spec(true, 0, &[("db", Condition::Running)]))
        .await;
    daemon
        .host
        .script_vm(&other, |script| script.claim_errors = 1_000);
    reboot(&mut daemon).await;
    daemon.until_phase(&id, Phase::Running).await;
    let inventory = daemon.on().store.inventory();
    let mut events = inventory.recent_events.iter();
    assert!(events.any(|event| event.what.kind == EventKind::StartLate));
}

#[tokio::test]
async fn a_drain_stops_everything_backwards_and_the_next_boot_starts_it_again() {
    let mut daemon = Daemon::start().await;
    for (name, start) in [
        ("db", spec(false, 0, &[])),
        ("web", spec(false, 0, &[("db", Condition::Running)])),
        ("last", spec(false, 5, &[])),
    ] {
        let id = daemon.running(name).await;
        daemon.done(&id, start).await;
    }
    daemon.create("rests").await;
    drained(&daemon).await;
    assert_eq!(order_of(&daemon, Phase::Stopped), ["web", "db", "last"]);
    daemon.oracle().await;
    let start = daemon.ask(&vm("rests"), Command::Start).await;
    assert_eq!(start, Err(CommandError::HostDraining));
    // A daemon that comes back in the same boot keeps to it.
    daemon.kill_and_start().await;
    daemon.pass(Duration::from_secs(5)).await;
    assert_eq!(daemon.host.live().len(), 0);
    reboot(&mut daemon).await;
    for name in ["db", "web", "last"] {
        daemon.until_phase(&vm(name), Phase::Running).await;
    }
    assert_eq!(daemon.phase(&vm("rests")), Some(Phase::Stopped));
    daemon.done(&vm("rests"), Command::Start).await;
    daemon.oracle().await;
}

#[tokio::test]
async fn a_drained_host_that_stays_up_is_resumed() {
    let daemon = Daemon::start().await;
    let id = daemon.running("a").await;
    let resume = || daemon.on().power.resume(origin());
    assert_eq!(resume().await, Err(PowerError::NotDrained));
    let first = drain(&daemon, 120).await;
    assert_eq!(drain(&daemon, 120).await.id, first.id, "twice is once");
    daemon.ended(&first.id).await;
    resume().await.unwrap();
    daemon.until_phase(&id, Phase::Running).await;
    daemon.oracle().await;
}

#[tokio::test]
async fn a_guest_that_does_not_hear_is_killed_when_the_drains_time_is_up() {
    let daemon = Daemon::start().await;
    let id = daemon.running("deaf").await;
    daemon.host.hang(&id, true);
    let operation = drain(&daemon, 5).await;
    let ended = daemon.ended(&operation.id).await;
    assert_eq!(
        ended.status,
        OperationStatus::Succeeded,
        "{:?}",
        ended.error
    );
    assert_eq!(daemon.host.live().len(), 0);
    daemon.oracle().await;
}

#[test]
fn a_drain_goes_on_after_a_death_of_the_daemon_at_any_moment() {
    for dies_after_ms in (0..600).step_by(40) {
        alone(async move {
            let mut daemon = Daemon::start().await;
            let ids: Vec<VmId> = [daemon.running("a").await, daemon.running("b").await].into();
            let operation = drain(&daemon, 60).await;
            daemon.pass(Duration::from_millis(dies_after_ms)).await;
            daemon.kill_and_start().await;
            let ended = daemon.ended(&operation.id).await;
            assert_eq!(ended.status, OperationStatus::Succeeded);
            daemon.oracle().await;
            reboot(&mut daemon).await;
            for id in &ids {
                daemon.until_phase(id, Phase::Running).await;
            }
        });
    }
}
