//! What somebody breaks is made whole.

use crate::{
    console::Shell,
    support::{host, wait_for},
    world::{SOON, World, can_make_networks, guests, wait_healed},
};
use serde_json::{Value, json};
use std::time::SystemTime;

#[test]
fn a_bridge_a_table_and_a_dnsmasq_that_were_taken_away_are_there_again() {
    if !can_make_networks("a_bridge_a_table_and_a_dnsmasq_that_were_taken_away_are_there_again") {
        return;
    }
    let world = World::new();
    let daemon = world.daemon(&[]);
    daemon.guest_template("");
    guests(&daemon, &["a"]);
    daemon.wait_console("a", "VMAN-GUEST address eth0 ");
    let mut a = Shell::open(&daemon, "a");
    a.ok("ping -c 1 -W 5 192.168.100.1");

    let broken = SystemTime::now();
    world.in_host("ip link del br-t");
    wait_healed(&daemon, "the bridge br-t was deleted", broken);
    wait_for("the TAP to be attached again", SOON, || {
        (world.attached() == world.taps()).then_some(())
    });
    a.soon("ping -c 1 -W 2 192.168.100.1");

    let broken = SystemTime::now();
    world.in_host("nft flush ruleset");
    wait_healed(&daemon, "the firewall tables", broken);
    let rules = world.in_host("nft list table bridge vman-br-t");
    assert!(rules.contains("52:56:"), "{rules}");
    a.soon("ping -c 1 -W 2 192.168.100.1");

    let kept = daemon.folder().join("run/network/dnsmasq.json");
    let pid = || -> u32 {
        let kept: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap();
        kept["identity"]["pid"]
            .as_u64()
            .unwrap()
            .try_into()
            .unwrap()
    };
    let before = pid();
    let broken = SystemTime::now();
    host::signal(before, rustix::process::Signal::KILL);
    wait_healed(&daemon, "dnsmasq had ended", broken);
    assert_ne!(pid(), before);
    a.soon("udhcpc -n -q -f -i eth0 -s /bin/address -t 3 -T 1");
    assert_eq!(daemon.get("/health")["status"], "ok");
}

#[test]
fn a_tap_that_was_deleted_is_replaced_and_the_guest_is_on_the_network_again() {
    if !can_make_networks(
        "a_tap_that_was_deleted_is_replaced_and_the_guest_is_on_the_network_again",
    ) {
        return;
    }
    let world = World::new();
    let daemon = world.daemon(&[]);
    daemon.guest_template("");
    let address = guests(&daemon, &["a"]).remove(0);
    daemon.wait_console("a", "VMAN-GUEST address eth0 ");
    let mut a = Shell::open(&daemon, "a");
    a.ok("ping -c 1 -W 5 192.168.100.1");
    let pid = daemon.pid_of("a");
    let tap = world.taps().remove(0);
    let broken = SystemTime::now();
    world.in_host(&format!("ip link del {tap}"));
    wait_healed(&daemon, "was deleted by somebody: its network card", broken);
    wait_for("the new TAP to be attached", SOON, || {
        (world.attached() == [tap.clone()]).then_some(())
    });
    a.soon("ip addr show dev eth0 | grep 192.168.100");
    assert!(a.ok("ip addr show dev eth0").contains(&address));
    a.soon("ping -c 1 -W 2 192.168.100.1");
    assert_eq!(daemon.pid_of("a"), pid, "the same QEMU");
}

#[test]
fn another_firewall_that_drops_what_is_forwarded_is_named() {
    if !can_make_networks("another_firewall_that_drops_what_is_forwarded_is_named") {
        return;
    }
    let world = World::new();
    let daemon = world.daemon(&[]);
    let network = || {
        let health = daemon
            .call("GET", "/health", &serde_json::Value::Null)
            .json();
        health["checks"]["network"].as_str().unwrap().to_owned()
    };
    wait_for("a healthy network", SOON, || {
        (network() == "ok").then_some(())
    });
    world.in_host("nft add table ip filter");
    world.in_host(
        "nft add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
    );
    let said = wait_for("health to name it", SOON, || {
        Some(network()).filter(|said| said != "ok")
    });
    assert!(
        said.contains("the chain FORWARD of the table ip filter"),
        "{said}"
    );
    world.in_host("nft add rule ip filter FORWARD iifname br-t accept");
    wait_for("a healthy network again", SOON, || {
        (network() == "ok").then_some(())
    });
}

#[test]
fn what_is_on_the_bridge_and_not_ours_is_told_by_one_check_and_left_alone() {
    if !can_make_networks("what_is_on_the_bridge_and_not_ours_is_told_by_one_check_and_left_alone")
    {
        return;
    }
    let world = World::new();
    let daemon = world.daemon(&[]);
    let check = || daemon.post("/observer/check", &Value::Null).expect(200);
    assert_eq!(check()["last_issues"], json!([]), "all is well at first");
    world.in_host("ip link add eth9 type veth peer name eth9p");
    world.in_host("ip link set eth9 master br-t");
    world.in_host("ip tuntap add dev v0gone-abcdefg mode tap");
    let report = check();
    let issues = report["last_issues"].as_array().unwrap();
    let of = |class: &str| {
        let mut issues = issues.iter();
        issues.find(|issue| issue["issue_type"] == class).cloned()
    };
    assert_eq!(
        of("link_foreign").expect("a foreign link")["resource_id"],
        "eth9"
    );
    let orphan = of("tap_orphan").expect("an orphaned TAP");
    assert_eq!(orphan["resource_id"], "v0gone-abcdefg");
    assert_eq!(issues.len(), 2, "{report}");
    let links = world.links();
    for link in ["eth9", "v0gone-abcdefg"] {
        assert!(links.iter().any(|there| there == link), "{links:?}");
    }
    world.in_host("ip link del eth9");
    world.in_host("ip link del v0gone-abcdefg");
    assert_eq!(check()["last_issues"], json!([]));
}
