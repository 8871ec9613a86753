//! Several networks: whose address a card gets, and what there is on the host of each.

use super::{
    daemon::{DELETE, Daemon, vm},
    network::{heard, new, pool, until_well},
    nics::wanted,
};
use crate::{
    fakes::{FakeHost, plain_bridge},
    network::LeaseError,
    ports::BridgeFacts,
    vm::{CreateError, NewVm, WantedNic},
};
use core::net::Ipv4Addr;
use vman_model::{
    EventKind, NetworkName, VmId,
    vm::{Command, Phase},
};

fn name(text: &str) -> NetworkName {
    NetworkName::parse(text).unwrap()
}

fn lab() -> BridgeFacts {
    BridgeFacts {
        network: name("lab"),
        name: "br-lab".to_owned(),
        ..plain_bridge(pool(9, 30))
    }
}

/// The default network in 10.0.0.0/24, and `lab` with the one address 10.0.9.2.
fn host() -> FakeHost {
    let host = FakeHost::new();
    host.networks(vec![plain_bridge(pool(0, 24)), lab()]);
    host
}

fn in_network(id: &str, network: &str) -> NewVm {
    NewVm {
        network: name(network),
        ..new(id, None)
    }
}

fn address_of(daemon: &Daemon, id: &VmId, nic: u8) -> Option<(NetworkName, Ipv4Addr)> {
    let inventory = daemon.on().store.inventory();
    let lease = &inventory.lease_of(id, nic)?.value;
    Some((lease.network.clone(), lease.address))
}

const LABS_ONLY: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 2);

#[tokio::test]
async fn each_card_has_an_address_of_its_own_network_and_the_host_is_told_whose_it_is() {
    let mut daemon = Daemon::start_on(host()).await;
    let id = daemon.create("a").await;
    let card = WantedNic {
        network: name("lab"),
        ..wanted(&daemon, None)
    };
    daemon.on().vms.attach_nic(&id, card).await.unwrap();
    daemon.done(&id, Command::Start).await;
    daemon.kill_and_start().await;
    let (first, address) = address_of(&daemon, &id, 0).unwrap();
    assert_eq!(first, NetworkName::default());
    assert_eq!(address.octets()[..3], [10, 0, 0]);
    assert_eq!(address_of(&daemon, &id, 1), Some((name("lab"), LABS_ONLY)));
    let settled = || daemon.host.bridge_plan().1 > 0;
    daemon.until("the bridges are settled", settled).await;
    let (plan, _) = daemon.host.bridge_plan();
    let of_lab = plan.of_network(&name("lab")).ports;
    assert_eq!(
        (of_lab.len(), of_lab[0].nic, of_lab[0].address),
        (1, 1, LABS_ONLY)
    );
    assert_eq!(plan.ports.len(), 2);
}

#[tokio::test]
async fn a_full_network_refuses_its_own_and_no_other() {
    let daemon = Daemon::start_on(host()).await;
    let vms = &daemon.on().vms;
    let holder = vms.create(in_network("holder", "lab")).await.unwrap();
    let late = vms.create(in_network("late", "lab")).await;
    assert_eq!(late, Err(CreateError::Address(LeaseError::Exhausted(1))));
    vms.create(in_network("other", "default")).await.unwrap();
    daemon.ask(&holder, DELETE).await.unwrap();
    let gone = || daemon.record(&holder).is_none();
    daemon.until("it is gone", gone).await;
    let again = vms.create(in_network("late", "lab")).await.unwrap();
    assert_eq!(
        address_of(&daemon, &again, 0),
        Some((name("lab"), LABS_ONLY))
    );
}

#[tokio::test]
async fn a_network_that_is_not_there_is_refused_with_those_that_are_and_nothing_is_made() {
    let daemon = Daemon::start_on(host()).await;
    let none = daemon.on().vms.create(in_network("a", "dmz")).await;
    let why = LeaseError::NoNetwork(name("dmz"), "default, lab".to_owned());
    assert_eq!(none, Err(CreateError::Address(why)));
    let inventory = daemon.on().store.inventory();
    assert_eq!((inventory.vms.len(), inventory.leases.len()), (0, 0));
    // An address of one network is not one of another.
    let strange = NewVm {
        network: name("lab"),
        ..new("a", Some(Ipv4Addr::new(10, 0, 0, 7)))
    };
    let outside = LeaseError::Outside(Ipv4Addr::new(10, 0, 0, 7));
    let refused = daemon.on().vms.create(strange).await;
    assert_eq!(refused, Err(CreateError::Address(outside)));
}

#[tokio::test]
async fn a_network_that_is_no_longer_configured_refuses_to_start_and_names_who_holds_what() {
    let mut daemon = Daemon::start_on(host()).await;
    let made = daemon.on().vms.create(in_network("holder", "lab")).await;
    made.unwrap();
    daemon.end().await;
    daemon.host.networks(vec![plain_bridge(pool(0, 24))]);
    let error = daemon.refusal().await;
    for told in ["the network lab", "holder (10.0.9.2)"] {
        assert!(error.contains(told), "{error}");
    }
    daemon.host.networks(vec![lab(), plain_bridge(pool(0, 24))]);
    assert!(daemon.boot().await);
    assert_eq!(
        address_of(&daemon, &vm("holder"), 0),
        Some((name("lab"), LABS_ONLY))
    );
}

#[tokio::test]
async fn a_network_that_fails_denies_the_starts_that_need_it_and_no_others_and_recovers() {
    let daemon = Daemon::start_on(host()).await;
    let vms = &daemon.on().vms;
    let in_lab = vms.create(in_network("in-lab", "lab")).await.unwrap();
    daemon
        .host
        .fail_network(name("lab"), Some("no bridge, as scripted"));
    heard(&daemon, EventKind::NetworkFailed, "as scripted").await;
    let health = daemon.on().network.health().await;
    assert_eq!(health, Err("no bridge, as scripted".to_owned()));
    daemon.running("in-default").await;
    let operation = daemon.ask(&in_lab, Command::Start).await.unwrap();
    let ended = daemon.ended(&operation.id).await;
    assert!(ended.error.unwrap().detail.contains("as scripted"));
    daemon.host.fail_network(name("lab"), None);
    heard(&daemon, EventKind::NetworkHealed, "works again").await;
    until_well(&daemon).await;
    daemon.until_phase(&in_lab, Phase::Failed).await;
    daemon.done(&in_lab, Command::Start).await;
    daemon.oracle().await;
}
