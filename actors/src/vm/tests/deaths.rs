//! Actors, daemons and hosts that die. No guest dies with them.

use super::daemon::{DELETE, Daemon, RESTART, STOP, STOP_BY_FORCE, alone};
use crate::{
    fakes::{FakeHost, Launch, NextCommit, Powerdown},
    vm::{CommandError, VmSupervisorMsg},
};
use std::time::Duration;
use vman_model::{
    OperationStatus,
    vm::{Command, Desired, ExitStatus, Phase, Reason, RunState},
};

#[tokio::test]
async fn a_vm_actor_that_panics_is_restarted_alone_and_adopts_its_qemu() {
    let daemon = Daemon::start().await;
    let (id, other) = (daemon.running("a").await, daemon.running("b").await);
    let others_revision = daemon.on().store.inventory().vms[&other].revision;
    let pid = daemon.host.qemu(&id).unwrap().identity.pid;
    daemon
        .host
        .script_vm(&id, |script| script.terminate_panics = 1);
    // The panic comes after the commit: the stop is promised and is kept.
    let answer = daemon.ask(&id, STOP_BY_FORCE).await;
    assert_eq!(answer, Err(CommandError::Unknown));
    daemon.until_phase(&id, Phase::Stopped).await;
    assert_eq!(daemon.host.signals().len(), 1);
    assert_eq!(daemon.host.signals()[0].pid, pid);
    let inventory = daemon.on().store.inventory();
    assert_eq!(inventory.vms[&other].revision, others_revision);
    daemon.oracle().await;
}

#[tokio::test]
async fn an_actor_that_dies_while_its_qemu_is_being_spawned_leaves_one_qemu() {
    let daemon = Daemon::start().await;
    let id = daemon.create("a").await;
    daemon.host.script_vm(&id, |script| {
        script.spawn_takes = Duration::from_millis(400);
    });
    let operation = daemon.ask(&id, Command::Start).await.unwrap();
    daemon.until_phase(&id, Phase::Launching).await;
    daemon.pass(Duration::from_millis(100)).await;
    let actor = daemon.on().vms.directory.get(&id).unwrap().actor;
    actor.unwrap().kill();
    daemon.until_phase(&id, Phase::Unknown).await;
    let ended = daemon.ended(&operation.id).await;
    assert_eq!(ended.status, OperationStatus::Succeeded);
    assert_eq!(daemon.host.launched(), 1);
    daemon.oracle().await;
}

#[tokio::test]
async fn an_actor_that_dies_while_its_claim_waits_lets_its_successor_be_stopped_at_once() {
    let mut daemon = Daemon::start().await;
    daemon.settings.max_launches = 1;
    daemon.stop_and_start().await;
    let hog = daemon.create("hog").await;
    daemon
        .host
        .script_vm(&hog, |script| script.launch = Launch::NeverGreets);
    daemon.ask(&hog, Command::Start).await.unwrap();
    daemon.until_phase(&hog, Phase::Launching).await;
    let id = daemon.create("a").await;
    daemon.ask(&id, Command::Start).await.unwrap();
    daemon.pass(Duration::from_millis(100)).await;
    let actor = daemon.on().vms.directory.get(&id).unwrap().actor;
    actor.unwrap().kill();
    daemon.pass(Duration::from_millis(100)).await;
    let began = tokio::time::Instant::now();
    daemon.done(&id, STOP).await;
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_qemu_that_was_never_let_run_is_let_run_also_when_it_greets_early() {
    for early in [false, true] {
        alone(async {
            let mut daemon = Daemon::start().await;
            let id = daemon.create("a").await;
            daemon.host.script_vm(&id, |script| {
                script.greet_takes = Duration::from_millis(100);
                script.greets_early = early;
            });
            daemon.ask(&id, Command::Start).await.unwrap();
            daemon
                .until("it is spawned", || daemon.host.qemu(&id).is_some())
                .await;
            daemon.kill_and_start().await;
            let began = tokio::time::Instant::now();
            daemon.until_phase(&id, Phase::Running).await;
            // Long before the launch's deadline. The clock stands still but for the store's thread, which a busy host
            // lets wait.
            assert!(began.elapsed() < Duration::from_secs(15));
            assert_eq!(daemon.host.qemu(&id).unwrap().state, RunState::Running);
            assert_eq!(daemon.host.launched(), 1);
            daemon.oracle().await;
        });
    }
}

#[tokio::test]
async fn a_vm_over_its_budget_is_left_alone_with_its_guest_and_recovers_later() {
    let daemon = Daemon::start().await;
    let id = daemon.running("a").await;
    daemon.host.script_vm(&id, |script| {
        script.terminate_panics = 6;
        script.powerdown = Powerdown::Ignored;
    });
    let _ = daemon.ask(&id, STOP_BY_FORCE).await;
    let quarantined = || {
        daemon
            .on()
            .vms
            .directory
            .get(&id)
            .is_some_and(|entry| entry.quarantined)
    };
    daemon.until("it is quarantined", quarantined).await;
    assert!(daemon.host.qemu(&id).is_some(), "its guest runs on");
    let answer = daemon.ask(&id, Command::Start).await;
    assert_eq!(answer, Err(CommandError::Quarantined));
    let other = daemon.running("b").await;
    daemon.until_phase(&id, Phase::Stopped).await;
    assert_eq!(daemon.phase(&other), Some(Phase::Running));
    daemon.oracle().await;
}

#[test]
fn an_adapter_that_panics_in_a_launch_leaves_no_start_hanging() {
    for launch in [Launch::PanicsBefore, Launch::PanicsAfter] {
        alone(async {
            let daemon = Daemon::start().await;
            let id = daemon.create("a").await;
            daemon
                .host
                .script_vm(&id, |script| script.launch = launch.clone());
            let operation = daemon.ask(&id, Command::Start).await.unwrap();
            daemon
                .until("it was tried", || {
                    daemon.host.launched() > 0 || daemon.phase(&id) == Some(Phase::Unknown)
                })
                .await;
            daemon
                .host
                .script_vm(&id, |script| script.launch = Launch::Works);
            daemon.ended(&operation.id).await;
            daemon.oracle().await;
        });
    }
}

#[test]
fn the_store_dies_and_everything_comes_back_with_the_truth() {
    for next in [NextCommit::UnknownButWritten, NextCommit::UnknownNotWritten] {
        alone(async {
            let daemon = Daemon::start().await;
            let (id, other) = (daemon.running("a").await, daemon.running("b").await);
            let before = daemon.host.live();
            daemon.host.storage().then(next.clone());
            let dies = async || {
                let answer = daemon.ask(&id, Command::Pause).await;
                assert_eq!(answer, Err(CommandError::Unknown));
            };
            daemon.restarted_by(dies).await;
            assert_eq!(daemon.host.storage().opens(), 2);
            daemon.oracle().await;
            let live = daemon.host.live();
            assert_eq!(live.len(), before.len());
            for (after, before) in live.iter().zip(&before) {
                assert_eq!(after.identity, before.identity);
            }
            daemon.done(&other, STOP).await;
            daemon.done(&id, STOP_BY_FORCE).await;
            daemon.oracle().await;
            assert_eq!(*daemon.tree().gave_up.borrow(), None);
        });
    }
}

#[tokio::test]
async fn a_writer_thread_that_panics_takes_the_store_down_and_it_comes_back() {
    let daemon = Daemon::start().await;
    let id = daemon.running("a").await;
    daemon.host.panic_in_commits(1);
    let dies = async || assert!(daemon.ask(&id, Command::Pause).await.is_err());
    daemon.restarted_by(dies).await;
    assert_eq!(daemon.host.storage().opens(), 2);
    daemon.oracle().await;
    daemon.done(&id, STOP).await;
}

#[tokio::test]
async fn the_root_gives_up_over_its_budget_and_leaves_the_guests_alone() {
    let daemon = Daemon::start().await;
    let id = daemon.running("a").await;
    let pid = daemon.host.qemu(&id).unwrap().identity.pid;
    daemon.host.panic_in_commits(u32::MAX);
    daemon.host.guest_resets(&id);
    let gave_up = || daemon.tree().gave_up.borrow().is_some();
    daemon.until("the root gives up", gave_up).await;
    assert_eq!(daemon.host.qemu(&id).unwrap().identity.pid, pid);
    assert_eq!(daemon.host.signals(), []);
    let mut daemon = daemon;
    daemon.host.panic_in_commits(0);
    daemon.stop_and_start().await;
    daemon.done(&id, STOP).await;
    daemon.oracle().await;
}

#[tokio::test]
async fn the_supervisor_of_vms_dies_and_every_vm_is_found_again() {
    let daemon = Daemon::start().await;
    let (a, b) = (daemon.running("a").await, daemon.running("b").await);
    let before = daemon.host.live();
    let supervisor = daemon.on().vms.directory.supervisor.get().unwrap();
    daemon.restarted_by(async || supervisor.kill()).await;
    daemon.oracle().await;
    assert_eq!(daemon.host.live(), before);
    daemon.done(&a, STOP).await;
    daemon.done(&b, STOP_BY_FORCE).await;
    // A message to a dead supervisor is no harm.
    let _ = supervisor.cast(VmSupervisorMsg::Erased(a, supervisor.get_id()));
}

#[tokio::test]
async fn recovery_is_over_only_when_every_vm_was_found() {
    let mut daemon = Daemon::start().await;
    let (a, _) = (daemon.running("a").await, daemon.running("b").await);
    daemon.host.script_vm(&a, |script| {
        script.adopt_takes = Duration::from_secs(20);
    });
    daemon.kill_and_start().await;
    assert_eq!(daemon.tree().recovery.left(), 2, "right after the start");
    let left = || daemon.tree().recovery.left();
    daemon.until("b is found", || left() == 1).await;
    daemon.pass(Duration::from_secs(5)).await;
    assert_eq!(left(), 1);
    daemon.until("a is found", || left() == 0).await;
    assert_eq!(daemon.phase(&a), Some(Phase::Running));
    daemon.oracle().await;
}

#[tokio::test]
async fn an_actor_that_fails_during_recovery_does_not_end_it() {
    let mut daemon = Daemon::start().await;
    let a = daemon.running("a").await;
    daemon.host.script_vm(&a, |script| {
        script.adopt_takes = Duration::from_secs(1);
    });
    daemon.kill_and_start().await;
    let actor = || {
        daemon
            .on()
            .vms
            .directory
            .get(&a)
            .and_then(|entry| entry.actor)
    };
    daemon
        .until("it looks for its QEMU", || {
            daemon.phase(&a) == Some(Phase::Unknown)
        })
        .await;
    let first = actor().unwrap();
    first.kill();
    let replaced = || actor().is_some_and(|now| now.get_id() != first.get_id());
    let mut watched = daemon.tree().recovery.clone();
    let done = tokio::spawn(async move { watched.done().await });
    daemon.until("it is replaced", replaced).await;
    assert!(!done.is_finished(), "not known yet what became of it");
    daemon
        .until("recovery is over", || done.is_finished())
        .await;
    assert_eq!(daemon.phase(&a), Some(Phase::Running));
    daemon.oracle().await;
}

#[tokio::test]
async fn an_adoption_that_cannot_look_looks_again() {
    let mut daemon = Daemon::start().await;
    let id = daemon.running("a").await;
    let pid = daemon.host.qemu(&id).unwrap().identity.pid;
    daemon.host.script_vm(&id, |script| script.adopt_errors = 4);
    daemon.kill_and_start().await;
    daemon.until_phase(&id, Phase::Running).await;
    assert_eq!(daemon.host.qemu(&id).unwrap().identity.pid, pid);
    daemon.oracle().await;
}

#[tokio::test]
async fn a_deaf_qemu_is_found_reported_and_ended_only_when_asked() {
    let mut daemon = Daemon::start().await;
    let id = daemon.running("a").await;
    daemon.host.hang(&id, true);
    daemon.kill_and_start().await;
    let found = || daemon.tree().recovery.left() == 0;
    daemon.until("recovery is over", found).await;
    assert!(daemon.record(&id).unwrap().unresponsive);
    daemon.pass(Duration::from_mins(2)).await;
    assert!(daemon.host.qemu(&id).is_some());
    daemon.done(&id, STOP_BY_FORCE).await;
    daemon.oracle().await;
}

#[test]
fn what_a_qemu_did_while_the_daemon_was_away_is_told() {
    for (act, phase, reason) in [
        (None, Phase::Failed, Reason::QemuExit),
        (
            Some(RunState::Shutdown),
            Phase::Stopped,
            Reason::GuestShutdown,
        ),
        (Some(RunState::Paused), Phase::Paused, Reason::User),
    ] {
        alone(async {
            let mut daemon = Daemon::start().await;
            let id = daemon.running("a").await;
            daemon.host.kill_daemon();
            match act {
                None => daemon.host.die(&id, ExitStatus::Signal(9), ""),
                Some(state) => daemon.host.guest(&id, state),
            }
            daemon.kill_and_start().await;
            daemon.until_phase(&id, phase).await;
            assert_eq!(daemon.record(&id).unwrap().reason, reason);
            daemon.oracle().await;
        });
    }
}

#[tokio::test]
async fn after_a_reboot_of_the_host_what_was_wanted_runs_again() {
    let mut daemon = Daemon::start().await;
    let (runs, stops) = (daemon.running("runs").await, daemon.running("stops").await);
    daemon
        .host
        .script_vm(&stops, |script| script.powerdown = Powerdown::Ignored);
    daemon.ask(&stops, STOP).await.unwrap();
    daemon.host.reboot();
    daemon.kill_and_start().await;
    daemon.until_phase(&runs, Phase::Running).await;
    daemon.until_phase(&stops, Phase::Stopped).await;
    let record = daemon.record(&runs).unwrap();
    assert_eq!(record.desired, Desired::Running);
    daemon.oracle().await;
}

/// What is under way when the daemon dies, and where it must lead.
#[derive(Clone, Copy, Debug)]
enum Way {
    Start,
    Stop,
    Restart,
    Delete,
}

async fn a_death_after(way: Way, ms: u64, kill: bool) {
    let host = FakeHost::new();
    let mut daemon = Daemon::start_on(host).await;
    let id = match way {
        Way::Start => daemon.create("a").await,
        Way::Stop | Way::Restart | Way::Delete => daemon.running("a").await,
    };
    let command = match way {
        Way::Start => Command::Start,
        Way::Stop => STOP,
        Way::Restart => RESTART,
        Way::Delete => DELETE,
    };
    daemon.ask(&id, command).await.unwrap();
    daemon.pass(Duration::from_millis(ms)).await;
    if kill {
        daemon.kill_and_start().await;
    } else {
        daemon.stop_and_start().await;
    }
    daemon.oracle().await;
    let phase = daemon.phase(&id);
    let wanted = match way {
        Way::Start | Way::Restart => Some(Phase::Running),
        Way::Stop => Some(Phase::Stopped),
        Way::Delete => None,
    };
    assert_eq!(phase, wanted, "{way:?} cut after {ms} ms");
}

#[test]
fn a_daemon_that_dies_at_any_point_of_anything_brings_it_to_its_end() {
    for way in [Way::Start, Way::Stop, Way::Restart, Way::Delete] {
        for ms in 0..40 {
            alone(a_death_after(way, ms, true));
        }
    }
}

#[test]
fn a_daemon_that_is_stopped_at_any_point_of_anything_brings_it_to_its_end() {
    for way in [Way::Start, Way::Stop, Way::Restart, Way::Delete] {
        for ms in (0..40).step_by(3) {
            alone(a_death_after(way, ms, false));
        }
    }
}
