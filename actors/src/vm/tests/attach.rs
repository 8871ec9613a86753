//! Disks that QEMU opens while their attachment is being recorded: nobody else comes upon one, and
//! none stays open that no record speaks of.

use super::{
    daemon::{Daemon, STOP_BY_FORCE, alone},
    operations::{disk, new_disk},
};
use crate::{fakes::NextCommit, vm::CommandError};
use std::time::Duration;
use vman_model::{
    OperationStatus, VmId,
    vm::{Command, Phase},
};

async fn with_disk() -> (Daemon, VmId, VmId) {
    let daemon = Daemon::start().await;
    let (a, b) = (daemon.running("a").await, daemon.running("b").await);
    let clock = daemon.on().clock.clone();
    let made = daemon.on().disks.create_disk(new_disk("d", None), clock);
    made.await.unwrap();
    (daemon, a, b)
}

fn attach() -> Command {
    Command::AttachDisk {
        disk: disk("d"),
        letter: None,
    }
}

/// Whether the QEMU of a VM has the disk open.
fn has_open(daemon: &Daemon, id: &VmId) -> bool {
    let live = daemon.host.live();
    let qemu = live.iter().find(|qemu| qemu.vm == *id).unwrap();
    daemon.host.disks_of(qemu.identity.pid).contains(&disk("d"))
}

/// How long the QEMUs of both take for each piece of work on a disk.
fn takes(daemon: &Daemon, all: [(&VmId, u64); 2]) {
    for (id, takes) in all {
        daemon.host.script_vm(id, |script| {
            script.disk_takes = Duration::from_millis(takes);
        });
    }
}

#[test]
fn a_disk_that_was_opened_for_an_attachment_that_could_not_be_recorded_is_closed_again() {
    // The second is meant: all that it tries falls into the time that A has the file open.
    for (later, b_takes) in [(0, 0), (25, 20), (50, 50)] {
        alone(async move {
            let (daemon, a, b) = with_disk().await;
            takes(&daemon, [(&a, 40), (&b, b_takes)]);
            daemon.host.storage().then(NextCommit::NoSpace);
            let refused = daemon.ask(&a, attach()).await;
            let no_space = matches!(refused, Err(CommandError::Store(_)));
            assert!(no_space, "{refused:?}");
            daemon.pass(Duration::from_millis(later)).await;
            // For another VM: it waits until the file is closed.
            daemon.done(&b, attach()).await;
            assert!(has_open(&daemon, &b) && !has_open(&daemon, &a));
            daemon.oracle().await;
        });
    }
}

#[test]
fn two_vms_that_want_one_disk_at_once_get_it_once_and_the_one_that_gets_it_has_it() {
    for (a_takes, b_takes) in [(0, 0), (0, 5), (5, 0), (5, 5), (50, 1), (1, 50)] {
        alone(async move {
            let (daemon, a, b) = with_disk().await;
            takes(&daemon, [(&a, a_takes), (&b, b_takes)]);
            let (first, second) = tokio::join!(daemon.ask(&a, attach()), daemon.ask(&b, attach()));
            let (winner, operation, loser) = match (first, second) {
                (Ok(operation), Err(CommandError::DiskTaken(_))) => (&a, operation, &b),
                (Err(CommandError::DiskTaken(_)), Ok(operation)) => (&b, operation, &a),
                other => panic!("{other:?}"),
            };
            let ended = daemon.ended(&operation.id).await;
            assert_eq!(ended.status, OperationStatus::Succeeded, "{ended:?}");
            let let_go = || !has_open(&daemon, loser);
            daemon.until("the other has closed it", let_go).await;
            assert!(has_open(&daemon, winner));
            daemon.oracle().await;
        });
    }
}

#[test]
fn a_daemon_that_dies_before_the_record_closes_what_was_opened_when_it_is_back() {
    for next in [NextCommit::UnknownNotWritten, NextCommit::UnknownButWritten] {
        alone(async {
            let (daemon, a, b) = with_disk().await;
            daemon.host.storage().then(next.clone());
            let dies = async || {
                let answer = daemon.ask(&a, attach()).await;
                assert_eq!(answer, Err(CommandError::Unknown));
            };
            daemon.restarted_by(dies).await;
            for vm in [&a, &b] {
                daemon.until_phase(vm, Phase::Running).await;
            }
            if next == NextCommit::UnknownNotWritten {
                daemon
                    .until("it is closed", || !has_open(&daemon, &a))
                    .await;
                daemon.done(&b, attach()).await;
            } else {
                let settled = || daemon.record(&a).is_some_and(|vm| vm.operations.is_empty());
                daemon.until("it is attached", settled).await;
                assert!(has_open(&daemon, &a));
            }
            daemon.oracle().await;
            daemon.done(&a, STOP_BY_FORCE).await;
            daemon.oracle().await;
        });
    }
}
