//! More than one network, with guests of each.

use crate::{
    console::Shell,
    support::{daemon::Daemon, wait_for},
    world::{BEYOND, HOST, SOON, World, address_of, can_make_networks, wait_healed, within},
};
use serde_json::json;
use std::{
    io::Read,
    net::{TcpListener, TcpStream},
    time::{Duration, SystemTime},
};

const LAB: &str = "[network.lab]
bridge = \"br-lab\"
subnet = \"10.9.0.0/24\"
nat = false
mtu = 1400
";

/// Makes and starts a guest in each of these networks.
fn guests_in(daemon: &Daemon, guests: &[(&str, &str)]) {
    for (name, network) in guests {
        let vm = json!({"template_name": "guest", "name": name, "network": network});
        assert_eq!(daemon.post("/vms", &vm).expect(201)["network"], *network);
    }
    for (name, _) in guests {
        assert_eq!(daemon.act(name, "start")["status"], "succeeded");
    }
}

fn settled_again(daemon: &Daemon, vm: &str) {
    wait_for("the VM to be found", SOON, || {
        (daemon.vm(vm)["state"] == "running").then_some(())
    });
}

#[test]
fn guests_of_two_networks_get_their_leases_and_are_kept_from_each_other_and_nat_off_is_no_way_out()
{
    const NAME: &str = "guests_of_two_networks_get_their_leases_and_are_kept_from_each_other_and_nat_off_is_no_way_out";
    if !can_make_networks(NAME) {
        return;
    }
    let world = World::new();
    // One that connects has it from beyond: the guest's own wget would look up names.
    let listener = within(&world.beyond, || TcpListener::bind((BEYOND, 80)).unwrap());
    let mut daemon = world.unstarted(&[]);
    daemon.configure(LAB);
    daemon.serve();
    daemon.guest_template("");
    guests_in(&daemon, &[("a", "default"), ("b", "lab"), ("c", "lab")]);
    for name in ["a", "b", "c"] {
        let address = address_of(&daemon, name);
        let within = if name == "a" {
            "192.168.100."
        } else {
            "10.9.0."
        };
        assert!(address.starts_with(within), "{name}: {address}");
        let got = daemon.wait_console(name, "VMAN-GUEST address eth0 ");
        assert!(
            got.contains(&format!("VMAN-GUEST address eth0 {address}")),
            "{address}: {got}"
        );
    }
    let told = daemon.get("/network/config");
    assert_eq!(told["networks"][1]["allocated_ips"], 2, "{told}");

    // What is one network's is reached, also after the daemon was killed; the MTU is its own.
    daemon.kill();
    daemon.serve();
    settled_again(&daemon, "b");
    let (a_at, c_at) = (address_of(&daemon, "a"), address_of(&daemon, "c"));
    let mut b = Shell::open(&daemon, "b");
    b.ok(&format!("ping -c 2 -W 5 {c_at}"));
    b.ok("ping -c 2 -W 5 10.9.0.1");
    assert!(b.ok("nslookup c 10.9.0.1").contains(&c_at));
    b.ok("printf '#!/bin/sh\\necho told mtu $mtu\\n' >/tmp/mtu; chmod +x /tmp/mtu");
    let told = b.soon("udhcpc -n -q -f -i eth0 -O mtu -s /tmp/mtu -t 3 -T 1");
    assert!(told.contains("told mtu 1400"), "{told}");
    for tap in world.on("br-lab") {
        let link = world.in_host(&format!("ip link show {tap}"));
        assert!(link.contains("mtu 1400"), "{link}");
    }
    // Neither the other network, nor its gateway, nor its names, nor the world.
    let closed = |shell: &mut Shell, what: &str| {
        let (code, out) = shell.run(what);
        assert_ne!(code, 0, "{what}: {out}");
    };
    for to in [&*a_at, "192.168.100.1", HOST, BEYOND] {
        closed(&mut b, &format!("ping -c 2 -W 1 {to}"));
    }
    closed(&mut b, "nslookup a 10.9.0.1");
    closed(&mut b, &format!("nc -w 3 {BEYOND} 80 </dev/null"));
    let mut a = Shell::open(&daemon, "a");
    for to in [&*c_at, "10.9.0.1"] {
        closed(&mut a, &format!("ping -c 2 -W 1 {to}"));
    }
    a.ok(&format!("ping -c 2 -W 5 {BEYOND}"));
    // Nobody of lab has come through.
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "a guest came out without NAT");

    // A forwarded port leads in all the same.
    let forward = json!({"vm_id": "b", "host_port": 8080, "guest_port": 9});
    daemon.post("/network/forwards", &forward).expect(201);
    b.ok("echo 'echo hello from the lab' >/tmp/say; chmod +x /tmp/say");
    b.ok("(nc -ll -p 9 -e sh /tmp/say >/dev/null 2>&1 &)");
    let line = wait_for("an answer through the forwarded port", SOON * 2, || {
        within(&world.beyond, || {
            let to = format!("{HOST}:8080").parse().unwrap();
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
            let mut line = String::new();
            stream.read_to_string(&mut line).ok()?;
            (!line.is_empty()).then_some(line)
        })
    });
    assert_eq!(line.trim(), "hello from the lab");
}

#[test]
fn each_network_is_healed_and_a_card_of_another_network_is_plugged_into_a_running_guest() {
    const NAME: &str =
        "each_network_is_healed_and_a_card_of_another_network_is_plugged_into_a_running_guest";
    if !can_make_networks(NAME) {
        return;
    }
    let world = World::new();
    let mut daemon = world.unstarted(&[]);
    daemon.configure(LAB);
    daemon.serve();
    daemon.guest_template("");
    guests_in(&daemon, &[("a", "default"), ("b", "lab")]);
    for name in ["a", "b"] {
        daemon.wait_console(name, "VMAN-GUEST address eth0 ");
    }
    let card = daemon
        .post("/vms/a/nics", &json!({"network": "lab"}))
        .expect(201);
    assert_eq!(card["network"], "lab", "{card}");
    let address = card["ip"].as_str().unwrap();
    assert!(address.starts_with("10.9.0."), "{card}");
    let mut a = Shell::open(&daemon, "a");
    a.soon("[ -e /sys/class/net/eth1 ]");
    a.ok("ip link set eth1 up");
    a.soon("udhcpc -n -q -f -i eth1 -s /bin/address -t 3 -T 1");
    let told = a.ok("ip addr show dev eth1");
    assert!(told.contains(address), "{address}: {told}");
    let b_at = address_of(&daemon, "b");
    a.soon(&format!("ping -c 2 -W 2 -I eth1 {b_at}"));

    for (damage, told) in [
        ("ip link del br-lab", "the bridge br-lab was deleted"),
        (
            "nft delete table bridge vman-br-lab",
            "the firewall tables vman-br-lab were changed",
        ),
        (
            "nft delete table inet vman-br-t",
            "the firewall tables vman-br-t were changed",
        ),
    ] {
        let broken = SystemTime::now();
        world.in_host(damage);
        wait_healed(&daemon, told, broken);
    }
    a.soon(&format!("ping -c 2 -W 2 -I eth1 {b_at}"));
    a.ok("ping -c 2 -W 5 192.168.100.1");

    // A network that VMs hold addresses of cannot be taken out of the configuration.
    daemon.terminate();
    daemon.configure("");
    daemon.spawn();
    assert!(!daemon.ended().success());
    let log = daemon.log();
    assert!(log.contains("the network lab is not configured"), "{log}");
    assert!(log.contains(&format!("b ({b_at})")), "{log}");
    daemon.configure(LAB);
    daemon.serve();
    settled_again(&daemon, "b");
    a.soon(&format!("ping -c 2 -W 2 -I eth1 {b_at}"));
}
