//! Addresses and the bridge, as the whole tree keeps them.

use super::daemon::{DELETE, Daemon, STOP_BY_FORCE, origin, settle, spec, vm};
use crate::{
    fakes::{FakeHost, plain_bridge},
    network::{ForwardError, LeaseError, NewForward},
    vm::{CreateError, NewVm},
};
use core::net::Ipv4Addr;
use std::collections::BTreeSet;
use vman_model::{
    EventKind, NetworkName, Pool, Protocol, TapName, VmId,
    vm::{Command, NetworkKind, Phase},
};

pub(super) fn pool(third: u8, prefix: u8) -> Pool {
    let at = |last| Ipv4Addr::new(10, 0, third, last);
    Pool::new(at(0), prefix, at(1)).unwrap()
}

/// A host whose VMs are on a bridge, in 10.0.0.0 with so long a prefix.
pub(super) fn bridged(prefix: u8) -> FakeHost {
    let host = FakeHost::new();
    host.bridge(plain_bridge(pool(0, prefix)));
    host
}

pub(super) fn new(id: &str, address: Option<Ipv4Addr>) -> NewVm {
    NewVm {
        id: Some(vm(id)),
        spec: spec(vman_model::RestartPolicy::default()),
        network: NetworkName::default(),
        address,
        limits: vman_model::network::NicLimits::default(),
        origin: origin(),
        idempotency: None,
    }
}

fn addresses(daemon: &Daemon) -> BTreeSet<Ipv4Addr> {
    let inventory = daemon.on().store.inventory();
    let held = inventory.leases.values();
    let all: Vec<_> = held.map(|row| row.value.address).collect();
    let distinct: BTreeSet<_> = all.iter().copied().collect();
    assert_eq!(all.len(), distinct.len(), "held twice");
    distinct
}

fn address_of(daemon: &Daemon, id: &VmId) -> Option<Ipv4Addr> {
    let inventory = daemon.on().store.inventory();
    inventory.lease_of(id, 0).map(|row| row.value.address)
}

pub(super) async fn heard(daemon: &Daemon, kind: EventKind, text: &str) {
    let there = || {
        let inventory = daemon.on().store.inventory();
        let mut events = inventory.recent_events.iter();
        events.any(|event| event.what.kind == kind && event.what.detail.contains(text))
    };
    daemon.until(text, there).await;
}

/// Waits until nothing is wrong with the network.
pub(super) async fn until_well(daemon: &Daemon) {
    for _ in 0..1_000 {
        if daemon.on().network.health().await.is_ok() {
            return;
        }
        settle().await;
    }
    panic!(
        "the network stays ill: {:?}",
        daemon.on().network.health().await
    );
}

#[tokio::test]
async fn a_vm_keeps_its_address_from_its_creation_to_its_deletion() {
    let mut daemon = Daemon::start_on(bridged(24)).await;
    let id = daemon.create("a").await;
    let held = address_of(&daemon, &id).expect("an address");
    daemon.done(&id, Command::Start).await;
    let claim = daemon.record(&id).unwrap().claim.unwrap();
    assert_eq!(claim.nics[0].kind, NetworkKind::Bridge);
    assert_eq!(claim.nics[0].address, Some(held.to_string()));
    daemon.done(&id, STOP_BY_FORCE).await;
    daemon.kill_and_start().await;
    assert_eq!(address_of(&daemon, &id), Some(held));
    daemon.ask(&id, DELETE).await.unwrap();
    daemon
        .until("it is gone", || daemon.record(&id).is_none())
        .await;
    assert!(addresses(&daemon).is_empty());
    // Under the old name it gets the old address.
    let again = daemon.create("a").await;
    assert_eq!(address_of(&daemon, &again), Some(held));
}

#[tokio::test]
async fn many_made_at_once_hold_different_addresses_and_the_last_ones_none() {
    let daemon = Daemon::start_on(bridged(28)).await;
    let vms = daemon.on().vms.clone();
    let making: Vec<_> = (0..16)
        .map(|n| {
            let vms = vms.clone();
            tokio::spawn(async move { vms.create(new(&format!("vm{n}"), None)).await })
        })
        .collect();
    let made = || making.iter().all(tokio::task::JoinHandle::is_finished);
    daemon.until("all are answered", made).await;
    let mut refused = 0;
    for made in making {
        match made.await.unwrap() {
            Ok(_) => {}
            Err(CreateError::Address(LeaseError::Exhausted(13))) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((addresses(&daemon).len(), refused), (13, 3));
    assert_eq!(daemon.on().store.inventory().vms.len(), 13);
}

#[tokio::test]
async fn an_address_that_was_asked_for_is_given_once_and_only_if_guests_can_have_it() {
    let daemon = Daemon::start_on(bridged(24)).await;
    let vms = &daemon.on().vms;
    let wanted = Ipv4Addr::new(10, 0, 0, 77);
    let id = vms.create(new("a", Some(wanted))).await.unwrap();
    assert_eq!(address_of(&daemon, &id), Some(wanted));
    let taken = vms.create(new("b", Some(wanted))).await;
    let held = LeaseError::Taken(wanted, id);
    assert_eq!(taken, Err(CreateError::Address(held)));
    let gateway = Ipv4Addr::new(10, 0, 0, 1);
    let outside = vms.create(new("b", Some(gateway))).await;
    let why = LeaseError::Outside(gateway);
    assert_eq!(outside, Err(CreateError::Address(why)));
    assert_eq!(daemon.on().store.inventory().vms.len(), 1);
}

#[tokio::test]
async fn a_vm_made_in_user_mode_gets_an_address_when_it_starts_on_a_bridge() {
    let mut daemon = Daemon::start_on(FakeHost::new()).await;
    let id = daemon.create("old").await;
    assert_eq!(address_of(&daemon, &id), None);
    daemon.host.bridge(plain_bridge(pool(0, 24)));
    daemon.stop_and_start().await;
    daemon.done(&id, Command::Start).await;
    let held = address_of(&daemon, &id).expect("an address");
    let (plan, _) = daemon.host.bridge_plan();
    assert!(
        plan.ports
            .iter()
            .any(|port| port.vm == id && port.address == held)
    );
}

#[tokio::test]
async fn the_host_knows_an_address_before_its_guest_runs() {
    let daemon = Daemon::start_on(bridged(24)).await;
    for n in 0..5 {
        let id = daemon.running(&format!("vm{n}")).await;
        let (plan, _) = daemon.host.bridge_plan();
        assert!(plan.ports.iter().any(|port| port.vm == id), "{id}");
    }
}

#[tokio::test]
async fn another_subnet_refuses_to_start_and_names_who_holds_what() {
    let mut daemon = Daemon::start_on(bridged(24)).await;
    let id = daemon.create("holder").await;
    let held = address_of(&daemon, &id).unwrap();
    daemon.end().await;
    daemon.host.bridge(plain_bridge(pool(9, 24)));
    let error = daemon.refusal().await;
    assert!(error.contains(&format!("holder ({held})")), "{error}");
}

#[tokio::test]
async fn a_bridge_that_refuses_denies_starts_says_why_and_recovers() {
    let daemon = Daemon::start_on(bridged(24)).await;
    let id = daemon.create("a").await;
    let settled = || daemon.host.bridge_plan().1 > 0;
    daemon.until("the bridge is settled", settled).await;
    daemon.host.fail_settlings(1_000);
    heard(&daemon, EventKind::NetworkFailed, "as scripted").await;
    assert!(daemon.on().network.health().await.is_err());
    let operation = daemon.ask(&id, Command::Start).await.unwrap();
    let ended = daemon.ended(&operation.id).await;
    assert!(ended.error.unwrap().detail.contains("as scripted"));
    daemon.until_phase(&id, Phase::Failed).await;
    daemon.host.fail_settlings(0);
    heard(&daemon, EventKind::NetworkHealed, "works again").await;
    daemon.done(&id, Command::Start).await;
}

#[tokio::test]
async fn what_somebody_broke_is_repaired_and_told_with_a_lost_tap_replaced() {
    let daemon = Daemon::start_on(bridged(24)).await;
    let id = daemon.running("a").await;
    daemon
        .host
        .meddle("the bridge was gone", vec![TapName::of(&id, 0)]);
    heard(&daemon, EventKind::NetworkHealed, "the bridge was gone").await;
    heard(&daemon, EventKind::NetworkHealed, "plugged anew").await;
    // The TAP of one that has ended is no loss.
    daemon.done(&id, STOP_BY_FORCE).await;
    let (_, before) = daemon.host.bridge_plan();
    daemon.host.meddle("once more", vec![TapName::of(&id, 0)]);
    heard(&daemon, EventKind::NetworkHealed, "once more").await;
    assert!(daemon.host.bridge_plan().1 > before);
}

#[tokio::test]
async fn a_port_leads_into_one_vm_and_ends_with_it() {
    let daemon = Daemon::start_on(bridged(24)).await;
    let id = daemon.create("a").await;
    let network = &daemon.on().network;
    let forward = |vm: &VmId| NewForward {
        vm: vm.clone(),
        protocol: Protocol::Tcp,
        host_port: 8080,
        guest_port: 80,
        origin: origin(),
        idempotency: None,
    };
    let made = network.forward(forward(&id)).await.unwrap();
    let again = network.forward(forward(&id)).await;
    assert_eq!(again, Err(ForwardError::Exists(made.id.clone())));
    let nobody = vm("nobody");
    let unknown = network.forward(forward(&nobody)).await;
    assert!(matches!(
        unknown,
        Err(ForwardError::NoVm(_) | ForwardError::Exists(_))
    ));
    let known = || daemon.host.bridge_plan().0.forwards.len() == 1;
    daemon.until("the host knows it", known).await;
    daemon.ask(&id, DELETE).await.unwrap();
    let gone = || daemon.host.bridge_plan().0.forwards.is_empty();
    daemon.until("the host has forgotten it", gone).await;
    assert!(daemon.on().store.inventory().forwards.is_empty());
    let ended = daemon.on().network.unforward(&made.id, origin()).await;
    assert_eq!(ended, Err(ForwardError::NotFound(made.id)));
}

#[tokio::test]
async fn in_user_mode_ports_lead_into_the_vm_whenever_it_runs_and_end_with_their_record() {
    let mut daemon = Daemon::start_on(FakeHost::new()).await;
    let id = daemon.create("a").await;
    let forward = |host_port| NewForward {
        vm: id.clone(),
        protocol: Protocol::Tcp,
        host_port,
        guest_port: 80,
        origin: origin(),
        idempotency: None,
    };
    let first = daemon.on().network.forward(forward(8080)).await.unwrap();
    daemon.done(&id, Command::Start).await;
    let leads = |daemon: &Daemon, ports: &[(u16, u16)]| daemon.host.ports_of(&id) == ports;
    let what = "the port leads into it";
    daemon.until(what, || leads(&daemon, &[(8080, 80)])).await;
    daemon.on().network.forward(forward(8081)).await.unwrap();
    let both = [(8080, 80), (8081, 80)];
    daemon.until("both do", || leads(&daemon, &both)).await;
    // A new life has them again, and a daemon that starts finds what is not to be.
    daemon.done(&id, STOP_BY_FORCE).await;
    daemon.done(&id, Command::Start).await;
    daemon
        .until("both do again", || leads(&daemon, &both))
        .await;
    let network = daemon.on().network.clone();
    network.unforward(&first.id, origin()).await.unwrap();
    daemon.kill_and_start().await;
    let one = || leads(&daemon, &[(8081, 80)]);
    daemon.until("the other alone does", one).await;
}

#[tokio::test]
async fn a_port_that_another_program_has_is_told_and_tried_again_while_the_vm_runs() {
    let daemon = Daemon::start_on(FakeHost::new()).await;
    let id = daemon.running("a").await;
    daemon.host.take_port(8080, true);
    let forward = NewForward {
        vm: id.clone(),
        protocol: Protocol::Tcp,
        host_port: 8080,
        guest_port: 80,
        origin: origin(),
        idempotency: None,
    };
    daemon.on().network.forward(forward).await.unwrap();
    heard(&daemon, EventKind::NetworkFailed, "the port is taken").await;
    assert!(daemon.on().network.health().await.is_err());
    // A VM that does not run waits for no port.
    daemon.done(&id, STOP_BY_FORCE).await;
    until_well(&daemon).await;
    daemon.done(&id, Command::Start).await;
    daemon.host.take_port(8080, false);
    let leads = || daemon.host.ports_of(&id) == [(8080, 80)];
    daemon.until("it leads into the VM", leads).await;
    assert!(daemon.on().network.health().await.is_ok());
}
