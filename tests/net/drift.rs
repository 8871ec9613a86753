//! What the observer tells of a network that nobody can heal, and leases after the store was lost
//! or damaged.

use crate::{
    support::{daemon::Daemon, host, wait_for},
    world::{SOON, World, can_make_networks, guests},
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{fs, process::Command};
use vman::host::store_redb::RedbStorage;
use vman_actors::ports::{Row, Storage, Table};

/// Runs a check and answers its findings of one class.
fn found(daemon: &Daemon, class: &str) -> Vec<Value> {
    let status = daemon.post("/observer/check", &json!({})).expect(200);
    let issues = status["last_issues"].as_array().unwrap().iter();
    let of = issues.filter(|issue| issue["issue_type"] == class);
    of.cloned().collect()
}

fn the_only(daemon: &Daemon, class: &str) -> Value {
    let found = found(daemon, class);
    assert_eq!(found.len(), 1, "{class}: {found:?}");
    assert_eq!(found[0]["action"], "reported", "{found:?}");
    found[0].clone()
}

fn wait_none(daemon: &Daemon, class: &str) {
    wait_for(&format!("no {class} any more"), SOON, || {
        found(daemon, class).is_empty().then_some(())
    });
}

/// Done while the daemon cannot heal in between.
fn behind_its_back(daemon: &Daemon, work: impl FnOnce()) {
    host::signal(daemon.pid(), Signal::STOP);
    work();
    host::signal(daemon.pid(), Signal::CONT);
}

#[test]
fn a_tap_and_a_bridge_whose_names_others_have_taken_are_told_until_they_are_free() {
    if !can_make_networks(
        "a_tap_and_a_bridge_whose_names_others_have_taken_are_told_until_they_are_free",
    ) {
        return;
    }
    let world = World::new();
    let daemon = world.daemon(&[]);
    // Only a guest that runs gives its old network card back.
    daemon.guest_template("");
    guests(&daemon, &["a"]);
    daemon.wait_console("a", "VMAN-GUEST address eth0 ");
    let (pid, tap) = (daemon.pid_of("a"), world.taps().remove(0));
    assert_eq!(found(&daemon, "tap_lost"), Vec::<Value>::new());
    assert_eq!(found(&daemon, "bridge_lost"), Vec::<Value>::new());

    // A bridge cannot be put on a bridge.
    behind_its_back(&daemon, || {
        world.in_host(&format!("ip link del {tap}"));
        world.in_host(&format!("ip link add {tap} type bridge"));
    });
    assert_eq!(the_only(&daemon, "tap_lost")["resource_id"], "a");
    world.in_host(&format!("ip link del {tap}"));
    wait_none(&daemon, "tap_lost");

    behind_its_back(&daemon, || {
        world.in_host("ip link del br-t");
        world.in_host("ip link add br-t type bridge");
    });
    let told = the_only(&daemon, "bridge_lost");
    assert_eq!(told["resource_id"], "br-t");
    assert!(told["details"].to_string().contains("mark"), "{told}");
    world.in_host("ip link del br-t");
    wait_none(&daemon, "bridge_lost");
    wait_none(&daemon, "tap_lost");
    assert_eq!(daemon.pid_of("a"), pid, "the same QEMU");
}

/// Who holds which address with which card.
fn leases(daemon: &Daemon) -> Vec<[String; 3]> {
    let rows = daemon.get("/network/leases");
    let field = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    let rows = rows.as_array().unwrap().iter();
    rows.map(|row| ["ip", "vm_id", "mac"].map(|name| field(row, name)))
        .collect()
}

#[test]
fn leases_are_the_same_after_the_store_was_lost_and_made_again() {
    if !can_make_networks("leases_are_the_same_after_the_store_was_lost_and_made_again") {
        return;
    }
    let world = World::new();
    let mut daemon = world.daemon(&[("VMAN_IPV6", "1")]);
    daemon.tiny_vms(&["a", "b"]);
    assert_eq!(daemon.act("a", "start")["status"], "succeeded");
    let before6 = daemon.vm("a")["local_ip6"].clone();
    assert!(
        before6.as_str().is_some_and(|told| told.starts_with("fd")),
        "{before6}"
    );
    daemon.post("/vms/b/nics", &json!({})).expect(201);
    let (before, pid) = (leases(&daemon), daemon.pid_of("a"));
    assert_eq!(before.len(), 3);
    let kept = daemon.storage().join("manifests/leases");
    wait_for("the manifests to follow", SOON, || {
        (fs::read_dir(&kept).ok()?.count() == 3).then_some(())
    });
    let checked = daemon.post("/store/check", &json!({})).expect(200);
    assert_eq!(checked["faults"], json!([]));
    daemon.kill();
    fs::remove_file(daemon.storage().join("vman.redb")).unwrap();
    let rebuilt = Command::new(env!("CARGO_BIN_EXE_vman"))
        .args(["store", "rebuild", "--storage-path"])
        .arg(daemon.storage())
        .env_clear()
        .current_dir(daemon.folder())
        .output()
        .unwrap();
    assert!(rebuilt.status.success(), "{rebuilt:?}");
    daemon.serve();
    assert_eq!(leases(&daemon), before);
    assert_eq!(daemon.vm("a")["local_ip6"], before6);
    assert_eq!(daemon.pid_of("a"), pid, "the same QEMU");
    let vm = json!({"template_name": "tiny", "name": "late"});
    let late = daemon.post("/vms", &vm).expect(201)["local_ip"].clone();
    assert!(
        before.iter().all(|[address, ..]| late != *address),
        "{late}"
    );
    let checked = daemon.post("/store/check", &json!({})).expect(200);
    assert_eq!(checked["faults"], json!([]));
}

#[test]
fn the_lease_of_a_vm_whose_record_cannot_be_read_is_told_and_kept() {
    if !can_make_networks("the_lease_of_a_vm_whose_record_cannot_be_read_is_told_and_kept") {
        return;
    }
    let world = World::new();
    let mut daemon = world.daemon(&[]);
    daemon.tiny_vms(&["a", "b"]);
    let disk = json!({"name": "d", "size_mib": 16});
    daemon.post("/disks", &disk).expect(201);
    let to = json!({"vm_id": "a"});
    daemon.post("/disks/d/attach", &to).expect(200);
    let address = daemon.vm("a")["local_ip"].clone();
    let before = leases(&daemon);
    daemon.terminate();
    let storage = RedbStorage::new(daemon.storage().join("vman.redb"));
    storage.open().unwrap();
    let (table, key) = (Table::Vms, b"a".to_vec());
    let value = Some(b"rotten".to_vec());
    storage.commit(&[Row { table, key, value }]).unwrap();
    drop(storage);
    daemon.serve();
    assert_eq!(the_only(&daemon, "lease_of_no_vm")["resource_id"], address);
    assert_eq!(
        the_only(&daemon, "record_quarantined")["resource_id"],
        "vms/a"
    );
    assert_eq!(the_only(&daemon, "disk_of_no_vm")["resource_id"], "d");
    assert_eq!(leases(&daemon), before, "nobody else is given it");
    let checked = daemon.post("/store/check", &json!({})).expect(200);
    let told = checked["faults"].to_string();
    assert!(told.contains("set it aside"), "{told}");
    assert!(
        told.contains("it is held by VM a, which is not there"),
        "{told}"
    );
}
