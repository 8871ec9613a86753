//! Who holds which address.

use crate::{
    support::{
        daemon::{Daemon, PATIENCE},
        wait_for,
    },
    world::{SOON, World, can_make_networks, run, within},
};
use serde_json::{Value, json};
use std::time::Duration;
use vman::host::net::tap;
use vman_model::{TapName, VmId};

#[test]
fn a_subnet_that_is_full_refuses_and_gives_again_what_was_given_back() {
    if !can_make_networks("a_subnet_that_is_full_refuses_and_gives_again_what_was_given_back") {
        return;
    }
    let world = World::new();
    let daemon = world.daemon(&[("VMAN_SUBNET", "10.77.0.0/29")]);
    daemon.tiny_template();
    let vm = |name: &str| json!({"template_name": "tiny", "name": name});
    for n in 0..5 {
        daemon.post("/vms", &vm(&format!("vm{n}"))).expect(201);
    }
    let full = daemon.post("/vms", &vm("late")).expect(409);
    assert_eq!(full["code"], "addresses_exhausted");
    assert_eq!(daemon.call("GET", "/vms/late", &json!(null)).status, 404);
    let config = daemon.get("/network/config");
    assert_eq!(config["allocated_ips"], 5, "{config}");
    assert_eq!(config["available_ips"], 0);
    let leases = daemon.get("/network/leases");
    let mut all: Vec<_> = leases.as_array().unwrap().iter().collect();
    all.dedup_by_key(|lease| lease["ip"].to_string());
    assert_eq!(all.len(), 5);
    let free = daemon.vm("vm3")["local_ip"].clone();
    daemon.delete("/vms/vm3").expect(204);
    let made = daemon.post("/vms", &vm("late")).expect(201);
    assert_eq!(made["local_ip"], free);
    let taken = json!({"template_name": "tiny", "name": "x", "address": free});
    daemon.delete("/vms/vm0").expect(204);
    assert_eq!(
        daemon.post("/vms", &taken).expect(409)["code"],
        "address_in_use"
    );
    for wrong in ["10.77.0.1", "10.77.0.0", "10.77.0.7", "10.78.0.2", "x"] {
        let body = json!({"template_name": "tiny", "name": "x", "address": wrong});
        daemon.post("/vms", &body).expect(422);
    }
}

#[test]
fn a_changed_subnet_refuses_to_start_and_names_who_holds_what() {
    if !can_make_networks("a_changed_subnet_refuses_to_start_and_names_who_holds_what") {
        return;
    }
    let world = World::new();
    let mut daemon = world.daemon(&[("VMAN_SUBNET", "10.77.0.0/24")]);
    daemon.tiny_template();
    let vm = json!({"template_name": "tiny", "name": "holder", "address": "10.77.0.20"});
    daemon.post("/vms", &vm).expect(201);
    daemon.terminate();
    daemon.set("VMAN_SUBNET", "10.78.0.0/24");
    daemon.spawn();
    assert!(!daemon.ended().success());
    let log = daemon.log();
    assert!(log.contains("holder (10.77.0.20)"), "{log}");
    daemon.set("VMAN_SUBNET", "10.77.0.0/24");
    daemon.serve();
    assert_eq!(daemon.vm("holder")["local_ip"], "10.77.0.20");
}

#[test]
fn without_the_privilege_vms_run_in_user_mode_and_health_says_why() {
    if !can_make_networks("without_the_privilege_vms_run_in_user_mode_and_health_says_why") {
        return;
    }
    let world = World::new();
    let mut daemon = world
        .unstarted(&[("VMAN_NETWORK_MODE", "auto")])
        .powerless();
    daemon.serve();
    daemon.tiny_vms(&["a"]);
    assert_eq!(daemon.act("a", "start")["status"], "succeeded");
    let vm = daemon.vm("a");
    assert_eq!(vm["network_mode"], "user");
    assert_eq!(vm["local_ip"], "10.0.2.15");
    let why = vm["network_reason"].as_str().unwrap();
    assert!(why.contains("CAP_NET_ADMIN"), "{why}");
    let health = daemon.call("GET", "/health", &json!(null)).expect(503);
    assert_eq!(health["status"], "degraded");
    let said = health["checks"]["network"].as_str().unwrap();
    assert!(said.contains("CAP_NET_ADMIN"), "{said}");
    let config = daemon.get("/network/config");
    assert_eq!(config["status"], "not_configured");
}

#[test]
fn an_interface_of_the_bridges_name_that_is_somebody_elses_is_never_touched() {
    const NAME: &str = "an_interface_of_the_bridges_name_that_is_somebody_elses_is_never_touched";
    if !can_make_networks(NAME) {
        return;
    }
    let world = World::new();
    world.in_host("ip link add br-t type bridge");
    let mut daemon = world.daemon(&[("VMAN_NETWORK_MODE", "auto")]);
    let said = daemon.call("GET", "/health", &json!(null)).expect(503);
    let said = said["checks"]["network"].as_str().unwrap();
    assert!(said.contains("not VMAN's"), "{said}");
    let link = world.in_host("ip addr show br-t");
    assert!(
        link.contains("state DOWN") && !link.contains("inet "),
        "{link}"
    );
    daemon.terminate();
    daemon.set("VMAN_NETWORK_MODE", "bridge");
    daemon.spawn();
    assert!(!daemon.ended().success(), "only auto falls back");
    assert!(daemon.log().contains("not VMAN's"));
}

#[test]
fn a_tap_that_a_stranger_holds_fails_the_start_in_words_and_leaves_nothing() {
    const NAME: &str = "a_tap_that_a_stranger_holds_fails_the_start_in_words_and_leaves_nothing";
    if !can_make_networks(NAME) {
        return;
    }
    let world = World::new();
    let daemon = world.daemon(&[]);
    daemon.tiny_vms(&["a", "b"]);
    let leases = daemon.get("/network/leases");
    let name = TapName::of(&VmId::parse("a").unwrap(), 0).to_string();
    let stranger = within(&world.host, || tap::open(&name, 1)).unwrap();
    let start = daemon.act("a", "start");
    assert_eq!(start["status"], "failed");
    let why = start["error"]["detail"].as_str().unwrap();
    assert!(why.contains("held by another process"), "{why}");
    assert_eq!(daemon.vm("a")["state"], "error");
    assert_eq!(daemon.qemus(), []);
    assert_eq!(daemon.get("/network/leases"), leases);
    assert_eq!(
        world.taps(),
        [name.as_str()],
        "the stranger's is left alone"
    );
    assert_eq!(daemon.act("b", "start")["status"], "succeeded");
    drop(stranger);
    assert_eq!(daemon.act("a", "start")["status"], "succeeded");
    assert_eq!(world.attached().len(), 2);
}

#[test]
fn what_runs_has_a_tap_and_what_was_stopped_has_none() {
    if !can_make_networks("what_runs_has_a_tap_and_what_was_stopped_has_none") {
        return;
    }
    let world = World::new();
    let mut daemon = world.daemon(&[]);
    daemon.tiny_vms(&["a", "b", "c"]);
    for _ in 0..3 {
        for name in ["a", "b", "c"] {
            daemon.act(name, "start");
        }
        assert_eq!(world.taps().len(), 3);
        assert_eq!(world.attached().len(), 3);
        daemon.kill();
        daemon.serve();
        for name in ["a", "b", "c"] {
            daemon.act(name, "stop?force=true");
        }
        wait_for("the TAPs to be gone", SOON, || {
            world.taps().is_empty().then_some(())
        });
    }
    assert_eq!(daemon.get("/network/leases").as_array().unwrap().len(), 3);
    for name in ["a", "b", "c"] {
        daemon.delete(&format!("/vms/{name}")).expect(204);
    }
    assert_eq!(daemon.get("/network/leases"), json!([]));
}

/// How often the daemon is killed while VMs start and stop.
const ROUNDS: usize = 200;

#[test]
fn after_two_hundred_kills_taps_leases_rules_and_records_agree() {
    if !can_make_networks("after_two_hundred_kills_taps_leases_rules_and_records_agree") {
        return;
    }
    let world = World::new();
    let mut daemon = world.daemon(&[("VMAN_LOG_LEVEL", "info"), ("VMAN_IPV6", "1")]);
    let names = ["a", "b", "c", "d"];
    daemon.tiny_vms(&names);
    let addresses = |daemon: &Daemon| -> Vec<Value> {
        let leases = daemon.get("/network/leases");
        let all = leases.as_array().unwrap().iter();
        all.map(|lease| json!([lease["ip"], lease["ip6"], lease["vm_id"], lease["mac"]]))
            .collect()
    };
    let before = addresses(&daemon);
    // A kernel without IPv6 has one address for each of them.
    let ipv6 = daemon.get("/network/config")["ipv6"] == true;
    let has_both = |lease: &Value| lease[1].is_string() == ipv6;
    assert!(before.iter().all(has_both), "{before:?}");
    for round in 0..ROUNDS {
        // Each round asks for something else, and the kill comes at another moment of it.
        for (at, name) in names.iter().enumerate() {
            let action = if (round + at) % 2 == 0 {
                "start"
            } else {
                "stop?force=true"
            };
            let _ = daemon.try_call(
                "POST",
                &format!("/vms/{name}/actions/{action}"),
                &json!(null),
            );
        }
        std::thread::park_timeout(Duration::from_millis(
            u64::try_from(round * 7 % 60).unwrap(),
        ));
        daemon.kill();
        daemon.serve();
    }
    let resting = |state: &Value| state == "running" || state == "stopped";
    let vms = wait_for("every VM to come to rest", PATIENCE, || {
        let vms = daemon.get("/vms");
        let all = vms.as_array()?.clone();
        all.iter().all(|vm| resting(&vm["state"])).then_some(all)
    });
    let lives: u64 = vms.iter().filter_map(|vm| vm["incarnation"].as_u64()).sum();
    assert!(lives > 50, "only {lives} QEMUs were started in all");
    let running = vms.iter().filter(|vm| vm["state"] == "running").count();
    wait_for("a TAP for each that runs, and no other", SOON, || {
        (world.taps().len() == running && world.attached().len() == running).then_some(())
    });
    assert_eq!(daemon.qemus().len(), running);
    assert_eq!(addresses(&daemon), before, "held by the same as ever");
    // By IPv6 each has its link-local address too.
    let sets = [("addresses", 1), ("addresses6", 2)];
    for (set, each) in sets.into_iter().take(if ipv6 { 2 } else { 1 }) {
        let rules = world.in_host(&format!("nft -j list set bridge vman-br-t {set}"));
        let rules: Value = serde_json::from_str(&rules).unwrap();
        let sets = rules["nftables"].as_array().unwrap().iter();
        let elements = sets
            .filter_map(|object| object["set"]["elem"].as_array())
            .flatten();
        assert_eq!(elements.count(), each * names.len(), "{set}");
    }
    // One dnsmasq, whatever has died.
    let pids = run(&format!("ip netns pids {}", world.host));
    let dnsmasqs = pids.split_whitespace().filter(|pid| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name.trim() == "dnsmasq")
    });
    assert_eq!(dnsmasqs.count(), 1);
    let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    assert!(open.count() < 100, "descriptors leak");
    for name in names {
        daemon.delete(&format!("/vms/{name}")).expect(204);
    }
    assert_eq!(daemon.get("/network/leases"), json!([]));
    wait_for("the last TAP to be gone", SOON, || {
        world.taps().is_empty().then_some(())
    });
}
