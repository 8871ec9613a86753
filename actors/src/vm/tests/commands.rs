//! What users ask for, on a host where nothing fails.

use super::daemon::{DELETE, Daemon, RESTART, STOP, STOP_BY_FORCE, vm};
use crate::vm::{CommandError, NewVm};
use vman_model::{
    IdempotencyKey, IdempotencyRecord, NetworkName, OperationStatus, Promise, RestartPolicy,
    change::IdempotentAnswer,
    vm::{Command, Phase, Reason, Refusal, RunState},
};

#[tokio::test]
async fn a_vm_is_started_stopped_restarted_and_deleted() {
    let daemon = Daemon::start().await;
    let id = daemon.running("a").await;
    let first = daemon.host.qemu(&id).unwrap();
    daemon.oracle().await;
    daemon.done(&id, RESTART).await;
    let second = daemon.host.qemu(&id).unwrap();
    assert_ne!(first.identity.pid, second.identity.pid);
    daemon.done(&id, STOP).await;
    let record = daemon.record(&id).unwrap();
    assert_eq!(
        (record.phase, record.reason),
        (Phase::Stopped, Reason::User)
    );
    daemon.oracle().await;
    daemon.done(&id, Command::Start).await;
    daemon.done(&id, STOP_BY_FORCE).await;
    daemon.done(&id, Command::Start).await;
    daemon.done(&id, DELETE).await;
    assert!(daemon.record(&id).is_none());
    assert!(daemon.on().store.inventory().disks.is_empty());
    assert!(daemon.host.disk_files().is_empty());
    daemon.oracle().await;
}

#[tokio::test]
async fn a_vm_is_paused_resumed_and_reset_and_wrong_states_are_refused() {
    let daemon = Daemon::start().await;
    let id = daemon.create("a").await;
    let refused = |answer| match answer {
        Err(CommandError::Refused(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    };
    assert_eq!(refused(daemon.ask(&id, STOP).await), Refusal::NotRunning);
    daemon.done(&id, Command::Start).await;
    assert_eq!(
        refused(daemon.ask(&id, Command::Start).await),
        Refusal::AlreadyRunning
    );
    daemon.done(&id, Command::Pause).await;
    assert_eq!(daemon.host.qemu(&id).unwrap().state, RunState::Paused);
    assert_eq!(
        refused(daemon.ask(&id, Command::Pause).await),
        Refusal::AlreadyPaused
    );
    daemon.done(&id, Command::Resume).await;
    daemon.done(&id, Command::Reset).await;
    daemon.oracle().await;
    daemon.done(&id, Command::Pause).await;
    daemon.done(&id, STOP).await;
    daemon.oracle().await;
    assert_eq!(
        daemon.ask(&vm("nobody"), STOP).await,
        Err(CommandError::NotFound)
    );
}

#[tokio::test]
async fn the_idempotency_key_of_a_command_is_in_the_same_commit_as_its_operation() {
    let daemon = Daemon::start().await;
    let id = daemon.create("a").await;
    let key = IdempotencyKey::parse("key-1").unwrap();
    let row = |operation| IdempotencyRecord {
        key: key.clone(),
        fingerprint: [7; 32],
        answer: IdempotentAnswer::Operation(operation),
        created_at: daemon.on().clock.now(),
    };
    let mut request = daemon.request(Command::Start);
    request.idempotency = Some(row(request.context.operation.clone()));
    let before = daemon.on().store.inventory();
    let operation = daemon.on().vms.command(&id, request).await.unwrap();
    let after = daemon.on().store.inventory();
    assert!(!before.idempotency.contains_key(&key));
    assert!(after.idempotency.contains_key(&key));
    assert!(after.operations.contains_key(&operation.id));
    daemon.ended(&operation.id).await;
    let mut again = daemon.request(STOP);
    again.idempotency = Some(row(again.context.operation.clone()));
    assert_eq!(
        daemon.on().vms.command(&id, again).await,
        Err(CommandError::KeyInUse)
    );
    assert_eq!(daemon.phase(&id), Some(Phase::Running));
    daemon.oracle().await;
}

#[tokio::test]
async fn a_command_for_an_older_revision_is_stale() {
    let daemon = Daemon::start().await;
    let id = daemon.create("a").await;
    let revision = daemon.on().store.inventory().vms[&id].revision;
    let mut start = daemon.request(Command::Start);
    start.if_revision = Some(revision);
    let operation = daemon.on().vms.command(&id, start).await.unwrap();
    daemon.ended(&operation.id).await;
    let mut stop = daemon.request(STOP);
    stop.if_revision = Some(revision);
    let answer = daemon.on().vms.command(&id, stop).await;
    assert_eq!(answer, Err(CommandError::Stale));
    assert_eq!(daemon.phase(&id), Some(Phase::Running));
}

#[tokio::test]
async fn no_more_qemus_are_starting_at_once_than_allowed() {
    let daemon = Daemon::start().await;
    daemon.host.script(|script| {
        script.greet_takes = std::time::Duration::from_millis(50);
    });
    let most_told = most_launching(&daemon);
    let mut operations = Vec::new();
    for n in 0..20 {
        let id = daemon.create(&format!("vm-{n}")).await;
        operations.push(daemon.ask(&id, Command::Start).await.unwrap().id);
    }
    for operation in operations {
        let ended = daemon.ended(&operation).await;
        assert_eq!(ended.status, OperationStatus::Succeeded);
    }
    assert_eq!(daemon.host.most_starting(), daemon.settings.max_launches);
    assert_eq!(*most_told.borrow(), daemon.settings.max_launches);
    daemon.oracle().await;
}

/// How many VMs were told to be launching at once, at most, from now on.
fn most_launching(daemon: &Daemon) -> tokio::sync::watch::Receiver<usize> {
    let store = daemon.on().store.clone();
    let (told, most) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        let mut changes = store.watch();
        while changes.changed().await.is_ok() {
            let inventory = store.inventory();
            let launching = |vm: &&std::sync::Arc<_>| phase_of(vm) == Phase::Launching;
            let now = inventory.vms.values().filter(launching).count();
            told.send_if_modified(|most| {
                now > *most && {
                    *most = now;
                    true
                }
            });
        }
    });
    most
}

fn phase_of(vm: &crate::store::Versioned<vman_model::vm::VmRecord>) -> Phase {
    vm.value.phase
}

#[tokio::test]
async fn a_vm_is_deleted_and_made_again_under_its_name_while_commands_fly() {
    let daemon = Daemon::start().await;
    let id = daemon.create("a").await;
    for round in 0..20 {
        let start = daemon.ask(&id, Command::Start).await;
        assert!(start.is_ok(), "round {round}: {start:?}");
        let delete = daemon.ask(&id, DELETE).await;
        assert!(delete.is_ok(), "round {round}: {delete:?}");
        daemon
            .until("the VM is erased", || daemon.record(&id).is_none())
            .await;
        // At once, as a client does that only watches the list.
        let new = NewVm {
            id: Some(id.clone()),
            spec: super::daemon::spec(RestartPolicy::default()),
            network: NetworkName::default(),
            address: None,
            limits: vman_model::network::NicLimits::default(),
            origin: super::daemon::origin(),
            idempotency: None,
        };
        daemon.on().vms.create(new).await.unwrap();
    }
    daemon.done(&id, Command::Start).await;
    daemon.oracle().await;
    assert_eq!(daemon.on().vms.directory.len(), 1);
}

/// The host has room for two VMs of 64 MiB beside each other.
async fn with_room_for_two() -> Daemon {
    let mut daemon = Daemon::start().await;
    let each = daemon
        .on()
        .store
        .inventory()
        .templates
        .values()
        .next()
        .unwrap()
        .value
        .size
        .ram_mib;
    daemon.settings.allowance.memory_mib = Some(2 * each + each / 2);
    daemon.stop_and_start().await;
    daemon
}

#[tokio::test]
async fn of_starts_that_ask_at_once_as_many_are_taken_as_there_is_room_for() {
    let daemon = with_room_for_two().await;
    let mut ids = Vec::new();
    for name in ["a", "b", "c", "d"] {
        ids.push(daemon.create(name).await);
    }
    let asked = ids.iter().map(|id| daemon.ask(id, Command::Start));
    let answers = futures_util::future::join_all(asked).await;
    let refused: Vec<_> = answers
        .iter()
        .filter_map(|answer| answer.as_ref().err())
        .collect();
    assert_eq!(refused.len(), 2, "{answers:?}");
    for error in refused {
        let CommandError::NoRoom(sum) = error else {
            panic!("{error:?}")
        };
        assert!(sum.contains("MiB of memory"), "{sum}");
    }
    let inventory = daemon.on().store.inventory();
    let promised = inventory.vms.values().map(|vm| Promise::to(&vm.value));
    assert_eq!(
        promised.fold(Promise::default(), Promise::plus),
        inventory.promised
    );
    assert_eq!(inventory.promised.cpus, 2);
}

#[tokio::test]
async fn room_that_a_vm_gave_back_is_there_for_the_next_and_a_restart_keeps_its_own() {
    let mut daemon = with_room_for_two().await;
    let (a, b) = (daemon.running("a").await, daemon.running("b").await);
    let c = daemon.create("c").await;
    daemon.done(&a, RESTART).await;
    let refused = daemon.ask(&c, Command::Start).await;
    assert!(
        matches!(refused, Err(CommandError::NoRoom(_))),
        "{refused:?}"
    );
    assert_eq!(daemon.record(&c).unwrap().phase, Phase::Stopped);
    // A new daemon knows what the earlier one promised.
    daemon.stop_and_start().await;
    assert!(daemon.ask(&c, Command::Start).await.is_err());
    daemon.done(&b, STOP).await;
    daemon.done(&c, Command::Start).await;
    daemon.done(&b, DELETE).await;
    assert_eq!(daemon.on().store.inventory().promised.cpus, 2);
}
