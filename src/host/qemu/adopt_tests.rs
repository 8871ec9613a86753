//! QEMUs that somebody else started, or that somebody else speaks with.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::timeout;
use vman_actors::ports::{AdoptPlan, Adoption, FoundProcess, MachineNews};
use vman_model::vm::{ExitStatus, ProcessIdentity, RunState};

use super::testing::{Bench, PATIENCE, Told};
use super::tests::{adoption_of, found, is_deaf, send};
use super::*;
use crate::host::qmp::Client;

#[tokio::test]
async fn a_qemu_is_found_and_adopted_by_the_next_daemon() {
    let Some(bench) = Bench::real() else { return };
    let plan = bench.plan("adopted", None);
    let (news, mut told) = Told::new();
    let machine = bench
        .host
        .launch(plan.clone(), news)
        .await
        .expect("started");
    assert_eq!(told.next().await, MachineNews::Ready(RunState::Running));
    let identity = machine.identity();
    drop(machine);

    let next = bench.next_daemon();
    let all = next.survey().await.expect("a survey");
    let expected = FoundProcess {
        uuid: plan.uuid,
        incarnation: plan.incarnation,
        identity: identity.clone(),
    };
    assert_eq!(
        all.iter().filter(|found| **found == expected).count(),
        1,
        "{all:?}"
    );
    for process in [None, Some(identity.clone())] {
        let (news, mut told) = Told::new();
        let adopted = next
            .adopt(adoption_of(&plan, process), news)
            .await
            .expect("known");
        let Adoption::Found(adopted) = adopted else {
            panic!("it lives")
        };
        assert_eq!(adopted.identity(), identity);
        assert_eq!(told.next().await, MachineNews::Ready(RunState::Running));
    }

    // Another life, another start, another boot: each is somebody else.
    let gone = async |process: Option<ProcessIdentity>, incarnation| {
        let (news, _told) = Told::new();
        let plan = AdoptPlan {
            incarnation,
            ..adoption_of(&plan, process)
        };
        matches!(next.adopt(plan, news).await, Ok(Adoption::Gone))
    };
    let (old, new) = (plan.incarnation, plan.incarnation.next());
    assert!(gone(None, new).await);
    let stranger = ProcessIdentity {
        start_time: 1,
        ..identity.clone()
    };
    assert!(gone(Some(stranger), old).await);
    let boot_id = vman_model::BootId::parse("another").expect("an id");
    assert!(
        gone(
            Some(ProcessIdentity {
                boot_id,
                ..identity.clone()
            }),
            old
        )
        .await
    );

    send(&identity, Signal::KILL);
    let ended = async {
        while !gone(Some(identity.clone()), old).await || !gone(None, old).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, ended).await.expect("it ends");
}

#[tokio::test]
async fn the_daemon_that_started_a_qemu_hears_how_it_ended_also_after_adopting_it_anew() {
    let Some(bench) = Bench::real() else { return };
    let plan = bench.plan("anew", None);
    let (news, mut told) = Told::new();
    let machine = bench
        .host
        .launch(plan.clone(), news)
        .await
        .expect("started");
    assert_eq!(told.next().await, MachineNews::Ready(RunState::Running));
    let process = Some(machine.identity());
    drop(machine);
    let (news, mut told) = Told::new();
    let machine = bench.host.adopt(adoption_of(&plan, process), news).await;
    let machine = found(machine.expect("known"));
    assert_eq!(told.next().await, MachineNews::Ready(RunState::Running));
    machine.0.kill();
    let MachineNews::Exited { status, .. } = told.next().await else {
        panic!("its end")
    };
    assert_eq!(status, ExitStatus::Signal(9));
}

#[tokio::test]
async fn a_monitor_held_by_somebody_else_makes_deaf_until_it_is_free() {
    let Some(bench) = Bench::real() else { return };
    let plan = bench.plan("held", None);
    let (news, mut told) = Told::new();
    let machine = bench
        .host
        .launch(plan.clone(), news)
        .await
        .expect("started");
    assert_eq!(told.next().await, MachineNews::Ready(RunState::Running));
    let identity = machine.identity();
    drop(machine);
    let socket = bench.host.settings.layout.qmp(&plan.vm);
    let holder = Client::connect(&socket, Deadlines::default())
        .await
        .expect("held");

    let mut settings = (*bench.host.settings).clone();
    settings.deadlines.greeting = Duration::from_millis(50);
    let next = QemuHost::new(settings);
    let (news, mut told) = Told::new();
    let adopted = next
        .adopt(adoption_of(&plan, Some(identity)), news)
        .await
        .expect("known");
    let _adopted = found(adopted);
    assert!(is_deaf(&told.next().await));
    drop(holder);
    told.until(|news| *news == MachineNews::Ready(RunState::Running))
        .await;
}
