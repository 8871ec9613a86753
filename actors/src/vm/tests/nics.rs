//! Network cards that come and go, as the whole tree keeps them, also when the
//! daemon dies meanwhile.

use super::{
    daemon::{Daemon, STOP_BY_FORCE, alone, origin},
    network::bridged,
};
use crate::vm::{NicError, WantedNic};
use core::net::Ipv4Addr;
use std::time::Duration;
use vman_model::{
    NetworkName, OperationRecord, OperationStatus, VmId,
    network::{Limit, LinkState, NicLimits, NicState, nic::nic_slot},
    vm::{Command, CommandContext, NetworkKind},
};

pub(super) fn wanted(daemon: &Daemon, address: Option<Ipv4Addr>) -> WantedNic {
    WantedNic {
        kind: NetworkKind::Bridge,
        network: NetworkName::default(),
        address,
        limits: NicLimits::default(),
        link: LinkState::Up,
        context: CommandContext {
            operation: daemon.on().vms.new_operation_id(),
            origin: origin(),
        },
        idempotency: None,
    }
}

async fn attach(daemon: &Daemon, id: &VmId) -> Result<OperationRecord, NicError> {
    daemon.on().vms.attach_nic(id, wanted(daemon, None)).await
}

/// Records, addresses, rules and QEMU agree on a running VM's cards.
async fn agree(daemon: &Daemon, id: &VmId) {
    daemon.oracle().await;
    let record = daemon.record(id).unwrap();
    let numbers: Vec<u8> = record.macs().map(|(nic, _)| nic).collect();
    let inventory = daemon.on().store.inventory();
    for nic in &numbers {
        assert!(inventory.lease_of(id, *nic).is_some(), "nic{nic}");
    }
    assert_eq!(inventory.leases_of(id).count(), numbers.len());
    assert!(
        record
            .nics
            .iter()
            .all(|nic| nic.state == NicState::Attached)
    );
    let slots: Vec<_> = record
        .links()
        .map(|(nic, link)| (nic_slot(nic), link))
        .collect();
    assert_eq!(daemon.host.nics_of(id), slots, "{:?}", record.nics);
    let ruled = || daemon.host.bridge_plan().0.ports.len() == numbers.len();
    daemon.until("the rules know them", ruled).await;
}

#[tokio::test]
async fn the_rules_know_a_cards_address_before_a_guest_is_given_it() {
    let daemon = Daemon::start_on(bridged(24)).await;
    let id = daemon.running("a").await;
    daemon.host.fail_settlings(1_000);
    let operation = attach(&daemon, &id).await.unwrap();
    let ended = daemon.ended(&operation.id).await;
    assert!(ended.error.unwrap().detail.contains("as scripted"));
    assert_eq!(daemon.host.nics_of(&id).len(), 1, "it was not plugged in");
    daemon.host.fail_settlings(0);
    let operation = attach(&daemon, &id).await.unwrap();
    let ended = daemon.ended(&operation.id).await;
    assert_eq!(ended.status, OperationStatus::Succeeded);
    agree(&daemon, &id).await;
}

#[tokio::test]
async fn two_vms_that_want_one_address_for_a_card_get_it_once() {
    let daemon = Daemon::start_on(bridged(24)).await;
    let (a, b) = (daemon.create("a").await, daemon.create("b").await);
    let address = Some(Ipv4Addr::new(10, 0, 0, 99));
    let vms = &daemon.on().vms;
    let (one, other) = tokio::join!(
        vms.attach_nic(&a, wanted(&daemon, address)),
        vms.attach_nic(&b, wanted(&daemon, address)),
    );
    assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
    let inventory = daemon.on().store.inventory();
    assert_eq!(inventory.leases.len(), 3);
}

#[test]
fn a_daemon_that_dies_at_any_point_of_an_attach_or_detach_brings_it_to_its_end() {
    for moment in 0..12 {
        alone(async {
            let mut daemon = Daemon::start_on(bridged(24)).await;
            let id = daemon.running("a").await;
            daemon.host.script_vm(&id, |script| {
                script.disk_takes = Duration::from_millis(5);
            });
            let operation = attach(&daemon, &id).await.unwrap();
            daemon.pass(Duration::from_millis(moment)).await;
            daemon.kill_and_start().await;
            let ended = daemon.ended(&operation.id).await;
            assert_eq!(ended.status, OperationStatus::Succeeded);
            agree(&daemon, &id).await;
            assert_eq!(daemon.host.nics_of(&id).len(), 2);

            let operation = daemon.ask(&id, Command::DetachNic(1)).await.unwrap();
            daemon.pass(Duration::from_millis(moment)).await;
            daemon.kill_and_start().await;
            let ended = daemon.ended(&operation.id).await;
            assert_eq!(ended.status, OperationStatus::Succeeded);
            agree(&daemon, &id).await;
            assert_eq!(daemon.host.nics_of(&id).len(), 1);
        });
    }
}

#[tokio::test]
async fn a_stop_while_a_card_is_plugged_in_keeps_it_for_the_next_start() {
    let daemon = Daemon::start_on(bridged(24)).await;
    let id = daemon.running("a").await;
    daemon.host.script_vm(&id, |script| {
        script.disk_takes = Duration::from_secs(30);
    });
    let operation = attach(&daemon, &id).await.unwrap();
    daemon.done(&id, STOP_BY_FORCE).await;
    let ended = daemon.ended(&operation.id).await;
    assert_eq!(ended.status, OperationStatus::Succeeded);
    daemon
        .host
        .script_vm(&id, |script| script.disk_takes = Duration::ZERO);
    daemon.done(&id, Command::Start).await;
    agree(&daemon, &id).await;
    assert_eq!(daemon.host.nics_of(&id).len(), 2);
}

#[test]
fn a_daemon_that_dies_at_any_point_of_a_change_of_limits_leaves_record_and_host_agreeing() {
    let limits = |average| NicLimits {
        inbound: Some(Limit::new(average, None, None)),
        outbound: None,
    };
    for moment in 0..12 {
        alone(async {
            let mut daemon = Daemon::start_on(bridged(24)).await;
            let id = daemon.running("a").await;
            let network = daemon.on().network.clone();
            let first = network.limit((&id, 0), limits(100), origin()).await;
            assert_eq!(first, Ok(()));
            let (card, vm) = (network.clone(), id.clone());
            tokio::spawn(async move { card.limit((&vm, 0), limits(200), origin()).await });
            daemon.pass(Duration::from_micros(moment * 100)).await;
            daemon.kill_and_start().await;
            let inventory = daemon.on().store.inventory();
            let kept = inventory.lease_of(&id, 0).unwrap().value.limits;
            // The change is whole or was never made.
            assert!([limits(100), limits(200)].contains(&kept), "{kept:?}");
            let held = || daemon.host.bridge_plan().0.ports[0].limits == kept;
            daemon.until("the host follows", held).await;
            agree(&daemon, &id).await;
        });
    }
}
