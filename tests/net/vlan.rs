//! A VLAN: guests are untagged members of it, and the uplink carries it tagged. It needs a kernel
//! with 802.1Q on bridges: `tests/debian/net.sh` runs these tests on one where the host has none.

use crate::{
    console::Shell,
    support::{daemon::Daemon, skip, wait_for},
    world::{SOON, World, can_make_networks, guests, run, wait_event, within},
};
use serde_json::Value;
use std::{io::ErrorKind, net::TcpStream, process::Command, time::Duration};

/// The address of a host behind the uplink.
const BEHIND: &str = "192.168.100.250";

/// Whether this kernel's bridges tell VLANs apart; if not it is told and counted.
fn can_tag(test: &str) -> bool {
    if !can_make_networks(test) {
        return false;
    }
    let world = World::new();
    let made = Command::new("ip")
        .args(["-n", &world.host, "link", "add", "try", "type", "bridge"])
        .args(["vlan_filtering", "1"])
        .output();
    let able = made.is_ok_and(|made| made.status.success());
    if !able {
        skip(
            test,
            "this kernel has no 802.1Q on bridges (tests/debian/net.sh runs it on one that has)",
        );
    }
    able
}

/// A trunk from the host to the namespace beyond: `trunk0` there, here `trunk1` with VLAN 100 and
/// VLAN 200.
fn trunk(world: &World) {
    let (host, beyond) = (&world.host, &world.beyond);
    for line in [
        format!("ip -n {host} link add trunk0 type veth peer name trunk1 netns {beyond}"),
        format!("ip -n {beyond} link set trunk1 up"),
        format!("ip -n {beyond} link add link trunk1 name v100 type vlan id 100"),
        format!("ip -n {beyond} link add link trunk1 name v200 type vlan id 200"),
        format!("ip -n {beyond} addr add {BEHIND}/24 dev v100"),
        format!("ip -n {beyond} link set v100 up"),
        format!("ip -n {beyond} link set v200 up"),
    ] {
        run(&line);
    }
}

/// Whether the guest answers to a host that has this link only.
fn leads_in(world: &World, link: &str, guest: &str) -> bool {
    let beyond = &world.beyond;
    for other in ["trunk1", "v100", "v200"] {
        run(&format!("ip -n {beyond} addr flush dev {other}"));
    }
    run(&format!("ip -n {beyond} addr add {BEHIND}/24 dev {link}"));
    let to = format!("{guest}:9").parse().unwrap();
    let asked = within(beyond, || {
        TcpStream::connect_timeout(&to, Duration::from_secs(3))
    });
    // Nobody listens there: that the guest says so is enough.
    asked.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// The VLANs of a port as `bridge vlan` tells them.
fn vlans(world: &World, port: &str) -> Vec<String> {
    let list = world.in_host("bridge -j vlan show");
    let list: Value = serde_json::from_str(&list).unwrap();
    let mut all = list.as_array().unwrap().iter();
    let found = all.find(|one| one["ifname"] == port);
    let vlans = found.and_then(|one| one["vlans"].as_array().cloned());
    let told = |vlan: &Value| {
        let flags = vlan["flags"].as_array().cloned().unwrap_or_default();
        let flags: Vec<_> = flags.iter().filter_map(Value::as_str).collect();
        format!("{} {}", vlan["vlan"], flags.join(" "))
    };
    vlans.unwrap_or_default().iter().map(told).collect()
}

const UNTAGGED: &str = "100 PVID Egress Untagged";

fn wait_members(world: &World, tap: &str) {
    wait_for("all ports to be in the VLAN as they shall", SOON, || {
        let right = vlans(world, tap) == [UNTAGGED]
            && vlans(world, "br-t") == [UNTAGGED]
            && vlans(world, "trunk0") == ["100 "];
        right.then_some(())
    });
}

fn tagged(world: &World) -> Daemon {
    world.daemon(&[("VMAN_VLAN_ID", "100"), ("VMAN_UPLINK", "trunk0")])
}

#[test]
fn guests_reach_their_vlan_through_the_uplink_by_tags_and_no_other_vlan() {
    if !can_tag("guests_reach_their_vlan_through_the_uplink_by_tags_and_no_other_vlan") {
        return;
    }
    let world = World::new();
    trunk(&world);
    let mut daemon = tagged(&world);
    let config = daemon.get("/network/config");
    assert_eq!(config["vlan_tagged"], true, "{config}");
    assert_eq!(config["uplink"], "trunk0");
    daemon.guest_template("");
    let address = guests(&daemon, &["a"]).remove(0);
    let got = daemon.wait_console("a", "VMAN-GUEST address eth0 ");
    assert!(got.contains(&format!("VMAN-GUEST address eth0 {address}")));
    let tap = world.taps().remove(0);
    wait_members(&world, &tap);

    let mut a = Shell::open(&daemon, "a");
    a.ok("ping -c 2 -W 5 192.168.100.1");
    a.soon(&format!("ping -c 2 -W 5 {BEHIND}"));
    // From beyond: one VLAN leads in, the other nowhere, and frames without a tag neither.
    assert!(!leads_in(&world, "v200", &address));
    assert!(!leads_in(&world, "trunk1", &address));
    assert!(leads_in(&world, "v100", &address));

    // Whatever becomes of the daemon, the VLAN stays.
    daemon.kill();
    daemon.serve();
    wait_members(&world, &tap);
    a.ok(&format!("ping -c 2 -W 5 {BEHIND}"));
    assert_eq!(daemon.get("/health")["status"], "ok");
}

#[test]
fn a_bridge_that_forgot_its_vlan_and_ports_that_strayed_are_put_right() {
    if !can_tag("a_bridge_that_forgot_its_vlan_and_ports_that_strayed_are_put_right") {
        return;
    }
    let world = World::new();
    trunk(&world);
    let daemon = tagged(&world);
    daemon.tiny_vms(&["a"]);
    assert_eq!(daemon.act("a", "start")["status"], "succeeded");
    let tap = world.taps().remove(0);
    wait_members(&world, &tap);

    world.in_host("ip link set br-t type bridge vlan_filtering 0");
    wait_event(&daemon, "network.healed", "did not keep to VLAN 100");
    let filtering = world.in_host("cat /sys/class/net/br-t/bridge/vlan_filtering");
    assert_eq!(filtering.trim(), "1");

    world.in_host(&format!("bridge vlan del dev {tap} vid 100"));
    wait_event(
        &daemon,
        "network.healed",
        "1 ports of the bridge br-t had left",
    );
    wait_members(&world, &tap);
    world.in_host("bridge vlan add dev trunk0 vid 7 pvid untagged");
    wait_members(&world, &tap);

    world.in_host("ip link set trunk0 nomaster");
    wait_event(
        &daemon,
        "network.healed",
        "the uplink trunk0 had been detached",
    );
    wait_members(&world, &tap);

    world.in_host("ip link del br-t");
    wait_event(&daemon, "network.healed", "the bridge br-t was deleted");
    wait_members(&world, &tap);

    world.in_host("ip link del trunk0");
    wait_for("health to tell", SOON, || {
        network_health(&daemon)
            .contains("the uplink trunk0 is not there")
            .then_some(())
    });
    trunk_again(&world);
    wait_for("the uplink to be attached", SOON, || {
        (network_health(&daemon) == "ok").then_some(())
    });
    wait_members(&world, &tap);
}

fn network_health(daemon: &Daemon) -> String {
    let health = daemon.call("GET", "/health", &Value::Null).json();
    health["checks"]["network"].as_str().unwrap().to_owned()
}

fn trunk_again(world: &World) {
    let (host, beyond) = (&world.host, &world.beyond);
    run(&format!(
        "ip -n {host} link add trunk0 type veth peer name trunk2 netns {beyond}"
    ));
}

#[test]
fn an_uplink_is_not_attached_where_the_kernel_knows_no_tags() {
    const NAME: &str = "an_uplink_is_not_attached_where_the_kernel_knows_no_tags";
    if !can_make_networks(NAME) {
        return;
    }
    let world = World::new();
    run(&format!(
        "ip -n {} link add trunk0 type veth peer name trunk1 netns {}",
        world.host, world.beyond
    ));
    let daemon = tagged(&world);
    let config = daemon.get("/network/config");
    if config["vlan_tagged"] == true {
        skip(NAME, "this kernel tells VLANs apart");
        return;
    }
    let why = config["vlan_reason"].as_str().unwrap();
    assert!(why.contains("no 802.1Q"), "{why}");
    wait_for("health to tell", SOON, || {
        let said = network_health(&daemon);
        said.contains("the uplink trunk0 is not attached")
            .then_some(())
    });
    assert!(world.attached().is_empty());
}

const LAB: &str = "[network.lab]
bridge = \"br-lab\"
subnet = \"192.168.100.0/24\"
";

#[test]
fn an_uplink_of_a_further_network_carries_its_vlan_and_is_let_go_with_the_configuration() {
    const NAME: &str =
        "an_uplink_of_a_further_network_carries_its_vlan_and_is_let_go_with_the_configuration";
    if !can_tag(NAME) {
        return;
    }
    let world = World::new();
    trunk(&world);
    let mut daemon = world.unstarted(&[("VMAN_SUBNET", "10.7.0.0/24")]);
    daemon.configure(&format!("{LAB}vlan_id = 200\nuplink = \"trunk0\"\n"));
    daemon.serve();
    daemon.guest_template("");
    let vm = serde_json::json!({"template_name": "guest", "name": "a", "network": "lab"});
    daemon.post("/vms", &vm).expect(201);
    assert_eq!(daemon.act("a", "start")["status"], "succeeded");
    daemon.wait_console("a", "VMAN-GUEST address eth0 192.168.100.");
    let address = crate::world::address_of(&daemon, "a");
    assert!(!leads_in(&world, "v100", &address));
    assert!(!leads_in(&world, "trunk1", &address));
    assert!(leads_in(&world, "v200", &address));
    let mut a = Shell::open(&daemon, "a");
    a.soon(&format!("ping -c 2 -W 5 {BEHIND}"));

    daemon.terminate();
    daemon.configure(LAB);
    daemon.serve();
    assert!(!world.on("br-lab").contains(&"trunk0".to_owned()));
    assert!(!leads_in(&world, "v200", &address));
    assert!(!leads_in(&world, "trunk1", &address), "nor without a tag");
    a.soon("ping -c 2 -W 5 192.168.100.1");
}

#[test]
fn a_former_uplink_is_taken_off_the_bridge_and_what_others_attached_is_left() {
    const NAME: &str = "a_former_uplink_is_taken_off_the_bridge_and_what_others_attached_is_left";
    if !can_make_networks(NAME) {
        return;
    }
    let world = World::new();
    let mut daemon = world.daemon(&[]);
    daemon.terminate();
    // As a daemon leaves it that had an uplink; this kernel may have no tags to attach one by.
    for port in ["trunk0", "others0"] {
        let host = &world.host;
        run(&format!(
            "ip -n {host} link add {port} type veth peer name {port}p"
        ));
        run(&format!("ip -n {host} link set {port} master br-t up"));
    }
    let note = daemon.folder().join("run/network/uplink");
    std::fs::create_dir_all(note.parent().unwrap()).unwrap();
    std::fs::write(&note, "trunk0").unwrap();
    daemon.serve();
    assert_eq!(world.attached(), ["others0"]);
    assert!(!note.exists());
}
