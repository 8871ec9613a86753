//! Network cards that come and go, over HTTP on the simulated host.

use crate::support::{Api, Setup};
use axum::body::Body;
use core::net::Ipv4Addr;
use serde_json::{Value, json};
use vman_actors::{
    fakes::{FakeHost, plain_bridge},
    ports::{BridgeFacts, Ipv6},
};
use vman_model::{
    Pool, VmId,
    network::{LinkState, Prefix6},
};

/// VMs on a bridge of a network with so many bits for hosts.
async fn bridged(prefix: u8) -> Api {
    bridged_with(prefix, Ipv6::Off).await
}

async fn bridged_with(prefix: u8, ipv6: Ipv6) -> Api {
    let host = FakeHost::new();
    let at = |last| Ipv4Addr::new(10, 0, 0, last);
    let pool = Pool::new(at(0), prefix, at(1)).unwrap();
    host.bridge(BridgeFacts {
        ipv6,
        ..plain_bridge(pool)
    });
    let api = Api::on(host, Setup::default()).await;
    api.small_template().await;
    api.small_vm("a").await;
    api
}

fn cards(api: &Api) -> Vec<(u8, LinkState)> {
    api.host.nics_of(&VmId::parse("a").unwrap())
}

async fn attach(api: &Api, body: &Value) -> Value {
    api.post("/vms/a/nics", body).await.expect(201)
}

async fn patch(api: &Api, nic: &str, body: Value) -> crate::support::Answer {
    let headers = [("content-type", "application/json")];
    let target = format!("/vms/a/nics/{nic}");
    let body = Body::from(body.to_string());
    api.send("PATCH", &target, &headers, body).await
}

async fn leases(api: &Api) -> Vec<String> {
    let all = api.get("/network/leases").await.expect(200);
    let all = all.as_array().unwrap().iter();
    let mut all: Vec<_> = all
        .map(|lease| format!("{} {}", lease["nic"].as_str().unwrap(), lease["ip"]))
        .collect();
    all.sort();
    all
}

#[tokio::test]
async fn a_stopped_vm_has_its_new_card_at_its_next_start_with_the_address_it_was_told() {
    let api = bridged(24).await;
    let card = attach(&api, &json!({"address": "10.0.0.77"})).await;
    assert_eq!(
        (&card["id"], &card["ip"]),
        (&json!("nic1"), &json!("10.0.0.77"))
    );
    assert_eq!(card["state"], "attached");
    assert_eq!(leases(&api).await[1], "nic1 \"10.0.0.77\"");
    api.act("a", "start").await.expect(200);
    assert_eq!(cards(&api), [(1, LinkState::Up), (2, LinkState::Up)]);
    let all = api.get("/vms/a/nics").await.expect(200);
    assert_eq!(all.as_array().unwrap().len(), 2);
    assert_eq!(all[1], api.get("/vms/a/nics/nic1").await.expect(200));
    assert_ne!(all[0]["mac"], all[1]["mac"]);
}

#[tokio::test]
async fn a_running_vm_gets_and_loses_cards_and_their_addresses_are_free_again() {
    let api = bridged(24).await;
    api.act("a", "start").await.expect(200);
    let one = attach(&api, &json!({})).await;
    let two = attach(&api, &json!({"link": "down"})).await;
    assert_eq!(
        cards(&api),
        [(1, LinkState::Up), (2, LinkState::Up), (3, LinkState::Down)]
    );
    assert_eq!((&one["id"], &two["link"]), (&json!("nic1"), &json!("down")));
    let fourth = api.post("/vms/a/nics", &json!({})).await;
    fourth.problem(409, "no_free_nic_slot");
    assert_eq!(leases(&api).await.len(), 3);
    assert_eq!(api.delete("/vms/a/nics/nic1").await.status, 204);
    assert_eq!(cards(&api), [(1, LinkState::Up), (3, LinkState::Down)]);
    assert_eq!(leases(&api).await.len(), 2);
    api.get("/vms/a/nics/nic1").await.problem(404, "not_found");
    // The number that became free is given again, with the same addresses.
    let again = attach(&api, &json!({})).await;
    assert_eq!((&again["id"], &again["mac"]), (&json!("nic1"), &one["mac"]));
    assert_eq!(again["ip"], one["ip"]);
    assert_eq!(api.delete("/vms/a").await.status, 204);
    assert!(leases(&api).await.is_empty());
    assert_eq!(api.host.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn the_first_card_stays_and_what_is_no_card_is_not_found() {
    let api = bridged(24).await;
    api.delete("/vms/a/nics/nic0")
        .await
        .problem(409, "nic_is_first");
    for nic in ["nic1", "nic9", "eth0", "1"] {
        let target = format!("/vms/a/nics/{nic}");
        api.delete(&target).await.problem(404, "not_found");
        api.get(&target).await.problem(404, "not_found");
    }
    api.get("/vms/nobody/nics").await.problem(404, "not_found");
    api.post("/vms/nobody/nics", &json!({}))
        .await
        .problem(404, "not_found");
}

#[tokio::test]
async fn wrong_fields_and_addresses_that_cannot_be_had_leave_nothing() {
    let api = bridged(24).await;
    let before = leases(&api).await;
    for (body, status, code) in [
        (json!({"colour": 1}), 422, "unknown_field"),
        (json!({"address": "10.0.0.1"}), 422, "invalid_fields"),
        (json!({"address": "10.9.9.9"}), 422, "invalid_fields"),
        (json!({"address": "x"}), 422, "invalid_fields"),
        (json!({"link": "sideways"}), 422, "invalid_fields"),
    ] {
        api.post("/vms/a/nics", &body).await.problem(status, code);
    }
    let held = api.get("/vms/a").await.expect(200)["local_ip"].clone();
    let taken = api.post("/vms/a/nics", &json!({"address": held})).await;
    taken.problem(409, "address_in_use");
    assert_eq!(leases(&api).await, before);
    // A network of two addresses: the second card gets the last one.
    let small = bridged(29).await;
    for name in ["b", "c", "d"] {
        small.small_vm(name).await;
    }
    attach(&small, &json!({})).await;
    let none = small.post("/vms/a/nics", &json!({})).await;
    none.problem(409, "addresses_exhausted");
    assert_eq!(leases(&small).await.len(), 5);
}

#[tokio::test]
async fn what_qemu_refuses_leaves_nothing_and_what_a_guest_holds_stays_and_may_be_tried_again() {
    let api = bridged(24).await;
    api.act("a", "start").await.expect(200);
    api.host.script(|script| script.nic_refused = true);
    let refused = api.post("/vms/a/nics", &json!({})).await;
    refused.problem(409, "operation_failed");
    assert_eq!(leases(&api).await.len(), 1);
    api.host.script(|script| script.nic_refused = false);
    attach(&api, &json!({})).await;
    api.host.script(|script| script.guest_holds_nics = true);
    let operation = api.delete("/vms/a/nics/nic1").await.expect(202);
    assert_eq!(operation["error"]["code"], "guest_holds_nic");
    assert_eq!(operation["nic"], "nic1");
    assert_eq!(leases(&api).await.len(), 2);
    api.host.script(|script| script.guest_holds_nics = false);
    assert_eq!(api.delete("/vms/a/nics/nic1").await.status, 204);
}

#[tokio::test]
async fn a_pulled_cable_is_seen_at_once_and_stays_pulled_over_restarts() {
    let api = bridged(24).await;
    api.act("a", "start").await.expect(200);
    let down = patch(&api, "nic0", json!({"link": "down"})).await;
    assert_eq!(down.expect(200)["link"], "down");
    assert_eq!(cards(&api), [(1, LinkState::Down)]);
    let restart = "/vms/a/actions/restart?force=true&wait_s=20";
    api.post(restart, &json!({})).await.expect(200);
    assert_eq!(cards(&api), [(1, LinkState::Down)]);
    patch(&api, "nic0", json!({"link": "up"})).await.expect(200);
    assert_eq!(cards(&api), [(1, LinkState::Up)]);
    patch(&api, "nic0", json!({}))
        .await
        .problem(422, "invalid_fields");
    patch(&api, "nic1", json!({"link": "up"}))
        .await
        .problem(404, "not_found");
}

#[tokio::test]
async fn the_same_key_attaches_one_card() {
    let api = bridged(24).await;
    let key = [("idempotency-key", "k-1")];
    let first = api.post_with("/vms/a/nics", &key, &json!({})).await;
    let again = api.post_with("/vms/a/nics", &key, &json!({})).await;
    assert_eq!(first.expect(201), again.expect(201));
    assert_eq!(again.header("location"), "/vms/a/nics/nic1");
    assert_eq!(leases(&api).await.len(), 2);
}

#[tokio::test]
async fn in_user_mode_a_card_comes_without_an_address_of_ours() {
    let api = Api::start().await;
    api.small_template().await;
    api.small_vm("a").await;
    let card = attach(&api, &json!({})).await;
    assert_eq!((&card["mode"], &card["ip"]), (&json!("user"), &Value::Null));
    let address = json!({"address": "10.0.0.9"});
    let refused = api.post("/vms/a/nics", &address).await;
    refused.problem(422, "invalid_fields");
}

#[tokio::test]
async fn limits_are_told_kept_over_restarts_and_lifted_again() {
    let api = bridged(24).await;
    let limits = json!({
        "inbound": {"average": 1000, "peak": 2000, "burst": 300},
        "outbound": {"average": 500},
    });
    let vm = json!({"template_name": "small", "name": "b", "limits": limits});
    api.post("/vms", &vm).await.expect(201);
    let told = json!({
        "inbound": {"average": 1000, "peak": 2000, "burst": 300},
        "outbound": {"average": 500, "burst": 500},
    });
    let first = api.get("/vms/b/nics/nic0").await.expect(200);
    assert_eq!(
        (&first["limits"], &first["limits_reason"]),
        (&told, &Value::Null)
    );
    api.act("a", "start").await.expect(200);
    let card = attach(&api, &json!({"limits": {"outbound": {"average": 70}}})).await;
    assert_eq!(card["limits"]["outbound"]["burst"], 70);
    assert_eq!(
        api.get("/vms/a/nics/nic0").await.expect(200)["limits"],
        Value::Null
    );
    // The host was told by the time that the answer comes.
    let change = json!({"limits": limits, "link": "down"});
    let changed = patch(&api, "nic0", change).await.expect(200);
    assert_eq!(
        (&changed["limits"], &changed["link"]),
        (&told, &json!("down"))
    );
    let plan = api.host.bridge_plan().0;
    let held = plan
        .ports
        .iter()
        .find(|port| port.vm.as_str() == "a" && port.nic == 0);
    assert_eq!(held.unwrap().limits.inbound.unwrap().average, 1000);
    let restart = "/vms/a/actions/restart?force=true&wait_s=20";
    api.post(restart, &json!({})).await.expect(200);
    assert_eq!(
        api.get("/vms/a/nics/nic0").await.expect(200)["limits"],
        told
    );
    let lifted = patch(&api, "nic0", json!({"limits": {}})).await.expect(200);
    assert_eq!(
        (&lifted["limits"], &lifted["link"]),
        (&Value::Null, &json!("down"))
    );
    let json = [("accept", "application/json")];
    let events = api.send("GET", "/events?limit=1000", &json, Body::empty());
    let events = events.await.expect(200);
    let said = events.as_array().unwrap().iter().filter(|event| {
        let detail = event["detail"].as_str().unwrap_or_default();
        event["kind"] == "nic.changed" && detail.contains("its guest receives")
    });
    assert_eq!(said.count(), 2);
}

#[tokio::test]
async fn limits_that_cannot_be_are_refused_all_at_once_and_change_nothing() {
    let api = bridged(24).await;
    let inbound = |limit: Value| json!({"limits": {"inbound": limit}});
    for (body, code) in [
        (json!({"limits": 5}), "invalid_fields"),
        (json!({"limits": {"sideways": {}}}), "unknown_field"),
        (inbound(json!({})), "invalid_fields"),
        (inbound(json!({"average": 0})), "invalid_fields"),
        (inbound(json!({"average": 4_000_001})), "invalid_fields"),
        (inbound(json!({"average": "fast"})), "invalid_fields"),
        (
            inbound(json!({"average": 9, "burst": 63})),
            "invalid_fields",
        ),
        (inbound(json!({"average": 9, "peak": 9})), "invalid_fields"),
        (inbound(json!({"average": 9, "colour": 1})), "unknown_field"),
        (
            json!({"limits": {"outbound": {"average": 9, "peak": 10}}}),
            "invalid_fields",
        ),
    ] {
        patch(&api, "nic0", body.clone()).await.problem(422, code);
        let mut vm = json!({"template_name": "small", "name": "b"});
        vm["limits"] = body["limits"].clone();
        api.post("/vms", &vm).await.problem(422, code);
        api.post("/vms/a/nics", &body).await.problem(422, code);
    }
    let both = json!({"limits": {"inbound": {"burst": 1}, "outbound": {}}});
    let refused = patch(&api, "nic0", both)
        .await
        .problem(422, "invalid_fields");
    assert_eq!(refused["errors"].as_array().unwrap().len(), 3, "{refused}");
    patch(&api, "nic1", json!({"limits": {}}))
        .await
        .problem(404, "not_found");
    assert_eq!(
        api.get("/vms/a/nics/nic0").await.expect(200)["limits"],
        Value::Null
    );
}

#[tokio::test]
async fn in_user_mode_limits_are_refused_with_the_reason() {
    let api = Api::start().await;
    api.small_template().await;
    api.small_vm("a").await;
    let limits = json!({"inbound": {"average": 1000}});
    let vm = json!({"template_name": "small", "name": "b", "limits": limits});
    let body = json!({"limits": limits});
    for refused in [
        api.post("/vms", &vm).await,
        api.post("/vms/a/nics", &body).await,
        patch(&api, "nic0", body.clone()).await,
    ] {
        let problem = refused.problem(422, "invalid_fields");
        assert!(problem.to_string().contains("user-mode"), "{problem}");
    }
}

#[tokio::test]
async fn a_limit_that_the_kernel_cannot_hold_is_kept_and_says_so() {
    let api = bridged(24).await;
    api.host.lack_limits("this kernel has no tbf");
    let body = json!({"limits": {"inbound": {"average": 1000}}});
    let card = patch(&api, "nic0", body).await.expect(200);
    assert_eq!(card["limits"]["inbound"]["average"], 1000);
    assert_eq!(card["limits_reason"], "this kernel has no tbf");
    let sent = json!({"limits": {"outbound": {"average": 1000}}});
    let card = patch(&api, "nic0", sent).await.expect(200);
    assert_eq!(card["limits_reason"], Value::Null);
}

#[tokio::test]
async fn a_card_says_its_network_and_one_that_is_not_there_is_refused_with_those_that_are() {
    let api = bridged(24).await;
    let card = attach(&api, &json!({"network": "default"})).await;
    assert_eq!(card["network"], "default");
    assert_eq!(api.get("/vms/a").await.expect(200)["network"], "default");
    let lease = &api.get("/network/leases").await.expect(200)[0];
    assert_eq!(lease["network"], "default");
    let vm = json!({"template_name": "small", "name": "b", "network": "lab"});
    for (target, body) in [("/vms", vm), ("/vms/a/nics", json!({"network": "lab"}))] {
        let refused = api.post(target, &body).await.expect(400);
        assert_eq!(refused["code"], "unknown_network");
        let detail = refused["detail"].as_str().unwrap();
        assert!(detail.contains("there is default"), "{detail}");
    }
    let config = api.get("/network/config").await.expect(200);
    let networks = config["networks"].as_array().unwrap();
    assert_eq!(
        (networks.len(), &networks[0]["name"]),
        (1, &json!("default"))
    );
    assert_eq!(networks[0]["bridge_name"], config["bridge_name"]);
    assert_eq!(
        (&config["nat"], &config["mtu"]),
        (&json!(true), &json!(1500))
    );
}

#[tokio::test]
async fn with_ipv6_every_lease_tells_a_second_address_and_without_it_none() {
    let prefix = Prefix6::new("fd12:3456:789a::".parse().unwrap()).unwrap();
    let api = bridged_with(24, Ipv6::On(prefix)).await;
    attach(&api, &json!({"address": "10.0.0.77"})).await;
    let vm = api.get("/vms/a").await.expect(200);
    let nics = api.get("/vms/a/nics").await.expect(200);
    assert_eq!(nics[1]["ip6"], "fd12:3456:789a::1:a00:4d");
    assert_eq!(nics[0]["ip6"], vm["local_ip6"]);
    assert_ne!(vm["local_ip6"], nics[1]["ip6"]);
    let leases = api.get("/network/leases").await.expect(200);
    let mut told: Vec<_> = leases
        .as_array()
        .unwrap()
        .iter()
        .map(|lease| &lease["ip6"])
        .collect();
    told.sort_by_key(|address| **address == nics[1]["ip6"]);
    assert_eq!(told, [&vm["local_ip6"], &nics[1]["ip6"]]);
    let config = api.get("/network/config").await.expect(200);
    assert_eq!(config["ipv6"], true);
    assert_eq!(config["subnet6"], "fd12:3456:789a::/64");
    assert_eq!(config["networks"][0]["gateway6"], "fd12:3456:789a::1");

    let missing = Ipv6::Missing("this kernel has none".to_owned());
    for (ipv6, reason) in [
        (Ipv6::Off, Value::Null),
        (missing, json!("this kernel has none")),
    ] {
        let api = bridged_with(24, ipv6).await;
        let vm = api.get("/vms/a").await.expect(200);
        assert_eq!(vm["local_ip6"], Value::Null);
        let nics = api.get("/vms/a/nics").await.expect(200);
        assert_eq!(nics[0]["ip6"], Value::Null);
        let config = api.get("/network/config").await.expect(200);
        assert_eq!(
            (&config["ipv6"], &config["ipv6_reason"]),
            (&json!(false), &reason)
        );
        assert_eq!(config["subnet6"], Value::Null);
    }
}
