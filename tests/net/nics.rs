//! Network cards plugged into a guest that runs.

use crate::{
    console::Shell,
    support::{daemon::Daemon, wait_for},
    world::{SOON, World, can_make_networks, guests, wait_event},
};
use serde_json::{Value, json};

fn set_link(daemon: &Daemon, nic: &str, link: &str) {
    let target = format!("/vms/a/nics/{nic}");
    let answer = daemon.call("PATCH", &target, &json!({ "link": link }));
    assert_eq!(answer.expect(200)["link"], link);
}

#[test]
fn a_card_plugged_into_a_running_guest_gets_its_address_counts_and_goes_again() {
    if !can_make_networks(
        "a_card_plugged_into_a_running_guest_gets_its_address_counts_and_goes_again",
    ) {
        return;
    }
    let world = World::new();
    let mut daemon = world.daemon(&[]);
    daemon.guest_template("");
    guests(&daemon, &["a"]);
    daemon.wait_console("a", "VMAN-GUEST address eth0 ");
    let mut a = Shell::open(&daemon, "a");
    let pid = daemon.pid_of("a");

    let card = daemon.post("/vms/a/nics", &json!({})).expect(201);
    let (address, mac) = (card["ip"].as_str().unwrap(), card["mac"].as_str().unwrap());
    let tap = card["tap"].as_str().unwrap().to_owned();
    wait_for("its TAP to be attached", SOON, || {
        world.attached().contains(&tap).then_some(())
    });
    a.soon("[ -e /sys/class/net/eth1 ]");
    let told = a.ok("cat /sys/class/net/eth1/address");
    assert!(told.ends_with(mac), "{told}");
    a.ok("ip link set eth1 up");
    a.soon("udhcpc -n -q -f -i eth1 -s /bin/address -t 3 -T 1");
    let told = a.ok("ip addr show dev eth1");
    assert!(told.contains(address), "{address}: {told}");
    a.soon("ping -c 2 -W 2 -I eth1 192.168.100.1");
    let counted = daemon.get("/vms/a/nics/nic1");
    assert!(counted["rx_packets"].as_u64().unwrap() > 2, "{counted}");

    // A pulled cable is seen by the guest, also after the daemon was killed.
    assert_eq!(a.ok("cat /sys/class/net/eth1/carrier"), "1");
    set_link(&daemon, "nic1", "down");
    a.soon("[ $(cat /sys/class/net/eth1/carrier) = 0 ]");
    daemon.kill();
    daemon.serve();
    wait_for("the VM to be found", SOON, || {
        (daemon.vm("a")["state"] == "running").then_some(())
    });
    assert_eq!(daemon.pid_of("a"), pid, "the same QEMU");
    assert_eq!(daemon.get("/vms/a/nics/nic1")["link"], "down");
    set_link(&daemon, "nic1", "up");
    a.soon("[ $(cat /sys/class/net/eth1/carrier) = 1 ]");

    daemon.delete("/vms/a/nics/nic1").expect(204);
    assert_ne!(a.run("[ -e /sys/class/net/eth1 ]").0, 0);
    wait_for("its TAP to be gone", SOON, || {
        (!world.links().contains(&tap)).then_some(())
    });
    let leases = daemon.get("/network/leases");
    assert_eq!(leases.as_array().unwrap().len(), 1, "{leases}");
    // The first card was never in the way of it.
    a.ok("ping -c 1 -W 5 192.168.100.1");
}

#[test]
fn a_vm_starts_with_all_its_cards_and_a_pulled_cable_is_pulled_from_the_first_instruction_on() {
    if !can_make_networks(
        "a_vm_starts_with_all_its_cards_and_a_pulled_cable_is_pulled_from_the_first_instruction_on",
    ) {
        return;
    }
    let world = World::new();
    let daemon = world.daemon(&[]);
    daemon.guest_template("");
    let vm = json!({"template_name": "guest", "name": "a", "cpu_count": 2});
    daemon.post("/vms", &vm).expect(201);
    daemon.post("/vms/a/nics", &json!({})).expect(201);
    let down = json!({"link": "down"});
    daemon.post("/vms/a/nics", &down).expect(201);
    let more = daemon.post("/vms/a/nics", &Value::Null);
    assert_eq!(more.expect(409)["code"], "no_free_nic_slot");
    assert_eq!(daemon.act("a", "start")["status"], "succeeded");
    daemon.wait_console("a", "VMAN-GUEST address eth0 ");
    let mut a = Shell::open(&daemon, "a");
    a.ok("ip link set eth1 up; ip link set eth2 up");
    a.soon("[ $(cat /sys/class/net/eth1/carrier) = 1 ]");
    assert_eq!(a.ok("cat /sys/class/net/eth2/carrier"), "0");
    let mut attached = world.attached();
    attached.sort();
    assert_eq!(attached.len(), 3, "{attached:?}");
    // A TAP of a further card that was deleted is replaced, its cable stays pulled.
    let cards = daemon.get("/vms/a/nics");
    let tap = cards[2]["tap"].as_str().unwrap();
    world.in_host(&format!("ip link del {tap}"));
    wait_event(&daemon, "network.healed", tap);
    a.soon("ip link set eth2 up");
    assert_eq!(a.ok("cat /sys/class/net/eth2/carrier"), "0");
    assert_eq!(daemon.act("a", "stop?force=true")["status"], "succeeded");
    wait_for("the TAPs to be gone", SOON, || {
        world.attached().is_empty().then_some(())
    });
}
