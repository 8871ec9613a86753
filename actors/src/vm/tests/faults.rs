//! QEMUs that fail, hang and lie, and a host that has no room.

use super::daemon::{DELETE, Daemon, STOP, STOP_BY_FORCE};
use crate::{
    fakes::{Act, Launch, NextCommit, Powerdown},
    ports::LaunchError,
    vm::CommandError,
};
use std::time::Duration;
use vman_model::{
    OperationStatus, RestartMode, RestartPolicy,
    vm::{Command, ExitStatus, Phase, Reason, RunState},
};

#[tokio::test]
async fn a_launch_that_fails_says_why_and_holds_nothing() {
    let daemon = Daemon::start().await;
    let id = daemon.create("a").await;
    let no_binary = LaunchError::NoBinary {
        binary: "qemu-nowhere".to_owned(),
    };
    let exits = Launch::ExitsAtOnce {
        code: 1,
        stderr: "qemu: no such device".to_owned(),
    };
    for (launch, told) in [
        (Launch::Fails(no_binary), "qemu-nowhere"),
        (exits, "no such device"),
    ] {
        daemon.host.script_vm(&id, |script| script.launch = launch);
        let operation = daemon.ask(&id, Command::Start).await.unwrap();
        let ended = daemon.ended(&operation.id).await;
        assert_eq!(ended.status, OperationStatus::Failed);
        let problem = ended.error.unwrap();
        assert_eq!(problem.code, "start_failed");
        assert!(problem.detail.contains(told), "{}", problem.detail);
        assert_eq!(daemon.phase(&id), Some(Phase::Failed));
        daemon.oracle().await;
    }
    daemon
        .host
        .script_vm(&id, |script| script.launch = Launch::Works);
    daemon.done(&id, Command::Start).await;
    daemon.oracle().await;
}

#[tokio::test]
async fn a_claim_that_is_denied_fails_the_start_and_the_next_start_works() {
    let daemon = Daemon::start().await;
    let id = daemon.create("a").await;
    daemon.host.script_vm(&id, |script| {
        script.claim_errors = 1;
        script.disk_errors = 1;
    });
    for _ in 0..2 {
        let operation = daemon.ask(&id, Command::Start).await.unwrap();
        let ended = daemon.ended(&operation.id).await;
        assert_eq!(ended.status, OperationStatus::Failed);
        daemon.oracle().await;
    }
    daemon.done(&id, Command::Start).await;
}

#[tokio::test]
async fn a_qemu_that_never_greets_is_given_up_at_the_deadline_and_delays_nobody() {
    let daemon = Daemon::start().await;
    let silent = daemon.create("silent").await;
    daemon
        .host
        .script_vm(&silent, |script| script.launch = Launch::NeverGreets);
    let operation = daemon.ask(&silent, Command::Start).await.unwrap();
    daemon.until_phase(&silent, Phase::Launching).await;
    let other = daemon.running("other").await;
    assert_eq!(daemon.phase(&silent), Some(Phase::Launching));
    let ended = daemon.ended(&operation.id).await;
    assert_eq!(ended.error.unwrap().code, "start_failed");
    assert_eq!(daemon.phase(&other), Some(Phase::Running));
    daemon.oracle().await;
}

#[tokio::test]
async fn a_vm_that_hangs_is_reported_delays_nobody_and_is_stopped_by_force() {
    let daemon = Daemon::start().await;
    let deaf = daemon.running("deaf").await;
    daemon.host.hang(&deaf, true);
    let unresponsive = || daemon.record(&deaf).unwrap().unresponsive;
    daemon.until("it is reported", unresponsive).await;
    let other = daemon.running("other").await;
    daemon.done(&other, STOP).await;
    assert!(daemon.host.qemu(&deaf).is_some(), "it was not ended");
    let pause = daemon.ask(&deaf, Command::Pause).await.unwrap();
    let ended = daemon.ended(&pause.id).await;
    assert_eq!(ended.status, OperationStatus::Failed);
    daemon.done(&deaf, STOP_BY_FORCE).await;
    daemon.oracle().await;
}

#[tokio::test]
async fn a_guest_that_ignores_the_power_button_is_ended_at_the_deadline() {
    let daemon = Daemon::start().await;
    let id = daemon.running("a").await;
    daemon.host.script_vm(&id, |script| {
        script.powerdown = Powerdown::Ignored;
        script.terminate_takes = None;
    });
    let began = tokio::time::Instant::now();
    daemon.done(&id, STOP).await;
    assert!(began.elapsed() >= Duration::from_secs(30));
    assert!(daemon.host.signals().iter().any(|signal| signal.kill));
    daemon.oracle().await;
}

#[tokio::test]
async fn a_command_that_times_out_fails_and_the_state_is_told_as_it_is() {
    let daemon = Daemon::start().await;
    let id = daemon.running("a").await;
    daemon
        .host
        .script_vm(&id, |script| script.act = Act::TimesOut { done: true });
    let pause = daemon.ask(&id, Command::Pause).await.unwrap();
    let ended = daemon.ended(&pause.id).await;
    assert_eq!(ended.error.unwrap().code, "qmp_failed");
    // It was done after all, and the news of it came.
    assert_eq!(daemon.phase(&id), Some(Phase::Paused));
    daemon
        .host
        .script_vm(&id, |script| script.act = Act::Refused);
    let resume = daemon.ask(&id, Command::Resume).await.unwrap();
    let ended = daemon.ended(&resume.id).await;
    assert_eq!(ended.status, OperationStatus::Failed);
    daemon.done(&id, STOP_BY_FORCE).await;
    daemon.oracle().await;
}

#[tokio::test]
async fn news_told_twice_change_nothing_twice() {
    let daemon = Daemon::start().await;
    daemon.host.script(|script| script.news_told = 3);
    let id = daemon.running("a").await;
    daemon.done(&id, Command::Pause).await;
    daemon.done(&id, Command::Resume).await;
    daemon.done(&id, STOP).await;
    daemon.oracle().await;
}

#[tokio::test]
async fn the_end_of_a_qemu_is_told_with_its_reason() {
    let daemon = Daemon::start().await;
    for (n, (status, reason)) in [
        (ExitStatus::Signal(9), Reason::QemuSignal),
        (ExitStatus::OomKilled, Reason::Oom),
        (ExitStatus::Code(1), Reason::QemuExit),
    ]
    .into_iter()
    .enumerate()
    {
        let id = daemon.running(&format!("vm-{n}")).await;
        daemon.host.die(&id, status, "the end of stderr");
        daemon.until_phase(&id, Phase::Failed).await;
        let record = daemon.record(&id).unwrap();
        assert_eq!(record.reason, reason);
        assert!(record.detail.contains("the end of stderr"));
    }
    for (n, (state, phase, reason)) in [
        (RunState::Shutdown, Phase::Stopped, Reason::GuestShutdown),
        (RunState::GuestPanicked, Phase::Failed, Reason::GuestPanic),
        (RunState::IoError, Phase::Paused, Reason::IoError),
    ]
    .into_iter()
    .enumerate()
    {
        let id = daemon.running(&format!("guest-{n}")).await;
        daemon.host.guest(&id, state);
        daemon.until_phase(&id, phase).await;
        assert_eq!(daemon.record(&id).unwrap().reason, reason);
    }
    daemon.oracle().await;
}

#[tokio::test]
async fn a_vm_that_keeps_dying_is_restarted_within_its_budget_and_then_given_up() {
    let daemon = Daemon::start().await;
    let mut policy = RestartPolicy {
        mode: RestartMode::OnFailure,
        ..RestartPolicy::default()
    };
    policy.budget.max_restarts = 2;
    let id = daemon.create_with("a", policy).await;
    daemon.done(&id, Command::Start).await;
    for _ in 0..2 {
        daemon.host.die(&id, ExitStatus::Signal(11), "");
        daemon.until_phase(&id, Phase::Backoff).await;
        daemon.until_phase(&id, Phase::Running).await;
    }
    daemon.host.die(&id, ExitStatus::Signal(11), "");
    daemon.until_phase(&id, Phase::Failed).await;
    assert_eq!(daemon.record(&id).unwrap().reason, Reason::CrashLoop);
    assert_eq!(daemon.host.launched(), 3);
    daemon.oracle().await;
}

#[tokio::test]
async fn a_release_that_fails_is_tried_until_it_works() {
    let daemon = Daemon::start().await;
    let id = daemon.running("a").await;
    daemon
        .host
        .script_vm(&id, |script| script.release_errors = 3);
    daemon.done(&id, DELETE).await;
    assert!(daemon.record(&id).is_none());
    daemon.oracle().await;
}

#[tokio::test]
async fn a_stop_takes_a_start_that_waits_for_its_turn_back_at_once() {
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
    for command in [STOP, STOP_BY_FORCE, DELETE] {
        daemon.ask(&id, Command::Start).await.unwrap();
        let began = tokio::time::Instant::now();
        daemon.done(&id, command).await;
        assert!(began.elapsed() < Duration::from_secs(1));
    }
    assert_eq!(daemon.phase(&hog), Some(Phase::Launching));
}

#[tokio::test]
async fn a_stop_reaches_a_qemu_that_is_still_being_spawned() {
    let daemon = Daemon::start().await;
    let id = daemon.create("a").await;
    daemon.host.script_vm(&id, |script| {
        script.spawn_takes = Duration::from_millis(400);
        script.greet_takes = Duration::from_secs(20);
    });
    daemon.ask(&id, Command::Start).await.unwrap();
    daemon.until_phase(&id, Phase::Launching).await;
    daemon.pass(Duration::from_millis(100)).await;
    daemon.done(&id, STOP).await;
    let signals = daemon.host.signals();
    assert_eq!(signals.len(), 1, "{signals:?}");
    assert!(!signals[0].kill);
    daemon.oracle().await;
}

#[tokio::test]
async fn what_happens_while_the_storage_is_full_is_recorded_in_its_order_later() {
    let daemon = Daemon::start().await;
    let id = daemon.running("a").await;
    daemon.host.storage().then(NextCommit::NoSpace);
    daemon.host.guest(&id, RunState::Paused);
    let refused = || daemon.host.storage().commits();
    let commits = refused();
    daemon
        .until("the first is refused", || {
            refused() > commits || commits > 0
        })
        .await;
    daemon.host.guest(&id, RunState::Running);
    daemon.pass(Duration::from_secs(3)).await;
    assert_eq!(daemon.phase(&id), Some(Phase::Running));
    daemon.oracle().await;
}

#[tokio::test]
async fn a_command_while_the_storage_is_full_is_refused_and_harms_nothing() {
    let daemon = Daemon::start().await;
    let id = daemon.running("a").await;
    let pid = daemon.host.qemu(&id).unwrap().identity.pid;
    daemon.host.storage().then(NextCommit::NoSpace);
    let answer = daemon.ask(&id, STOP_BY_FORCE).await;
    assert!(matches!(answer, Err(CommandError::Store(_))), "{answer:?}");
    daemon.pass(Duration::from_secs(5)).await;
    assert_eq!(daemon.host.qemu(&id).unwrap().identity.pid, pid);
    assert_eq!(daemon.host.signals(), []);
    daemon.done(&id, STOP_BY_FORCE).await;
    daemon.oracle().await;
}

#[tokio::test]
async fn a_daemon_that_starts_on_a_full_disk_finds_its_qemus_and_is_ready() {
    let mut daemon = Daemon::start().await;
    let (lives, dies) = (daemon.running("lives").await, daemon.running("dies").await);
    let qemu = daemon.host.qemu(&lives);
    daemon.host.kill_daemon();
    for _ in 0..10_000 {
        daemon.host.storage().then(NextCommit::NoSpace);
    }
    daemon.kill_and_start().await;
    daemon
        .until("it is ready", || daemon.tree().recovery.left() == 0)
        .await;
    assert_eq!(daemon.phase(&lives), Some(Phase::Running));
    let refused = daemon.ask(&lives, STOP).await;
    assert!(
        matches!(refused, Err(CommandError::Store(_))),
        "{refused:?}"
    );
    daemon.pass(Duration::from_secs(2)).await;
    // What happens meanwhile is heard, and recorded once there is space.
    daemon
        .host
        .die(&dies, ExitStatus::Signal(9), "killed, as scripted");
    daemon.pass(Duration::from_secs(2)).await;
    daemon.host.storage().forget_scripted();
    daemon.until_phase(&dies, Phase::Failed).await;
    let heard = daemon.record(&dies).unwrap().detail;
    assert!(heard.contains("as scripted"), "its last words: {heard}");
    daemon.until_phase(&lives, Phase::Running).await;
    assert_eq!(daemon.host.qemu(&lives), qemu, "it was never touched");
    daemon.done(&lives, STOP_BY_FORCE).await;
    daemon.oracle().await;
}
