//! IPv6 beside IPv4, with guests that ask for it.

use crate::{
    console::Shell,
    support::{
        daemon::{Daemon, PATIENCE},
        skip, wait_for,
    },
    tools::{Offer, build},
    world::{SOON, World, address_of, can_make_networks, guests, run, wait_healed, within},
};
use serde_json::{Value, json};
use std::{
    io::Read,
    net::{Ipv6Addr, TcpListener, TcpStream},
    time::{Duration, SystemTime},
};

/// The hosts of the network between the namespaces.
const HOST: &str = "2001:db8::1";
const BEYOND: &str = "2001:db8::2";

/// The network beyond has IPv6 too.
fn world() -> World {
    let world = World::new();
    run(&format!(
        "ip -n {} addr add {HOST}/64 dev up0 nodad",
        world.host
    ));
    run(&format!(
        "ip -n {} addr add {BEYOND}/64 dev eth0 nodad",
        world.beyond
    ));
    world
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("no text: {value}"))
        .to_owned()
}

/// Has the guest ask for its address and take what it is told, which has to be what the API tells.
fn take_address(daemon: &Daemon, shell: &mut Shell, vm: &str) -> String {
    let told = text(&daemon.vm(vm)["local_ip6"]);
    let got = shell.soon("/tmp/dhcp6 eth0");
    assert_eq!(
        got.lines().next(),
        Some(&*format!("address {told}")),
        "{got}"
    );
    let dns = text(&daemon.get("/network/config")["gateway6"]);
    assert!(got.contains(&format!("dns {dns}")), "{got}");
    shell.ok(&format!("ip -6 addr add {told}/128 dev eth0"));
    told
}

/// What is told to who connects to this port of the host.
fn told_at(from: &str, port: u16) -> Option<String> {
    within(from, || {
        let to = format!("[{HOST}]:{port}").parse().unwrap();
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let mut told = String::new();
        stream.read_to_string(&mut told).ok()?;
        (!told.is_empty()).then_some(told)
    })
}

#[test]
fn two_guests_get_the_ipv6_addresses_that_the_api_tells_and_reach_each_other_and_the_world() {
    const NAME: &str =
        "two_guests_get_the_ipv6_addresses_that_the_api_tells_and_reach_each_other_and_the_world";
    if !can_make_networks(NAME) {
        return;
    }
    let world = world();
    let mut daemon = world.daemon(&[("VMAN_IPV6", "1")]);
    let Some(program) = build("dhcp6", daemon.folder()) else {
        return skip(NAME, "rustc cannot build a static program here");
    };
    let config = daemon.get("/network/config");
    assert_eq!(config["ipv6"], true, "{config}");
    let gateway = text(&config["gateway6"]);
    assert!(
        gateway.starts_with("fd") && gateway.ends_with("::1"),
        "{gateway}"
    );
    daemon.guest_template("");
    guests(&daemon, &["a", "b"]);
    let leases = daemon.get("/network/leases");
    let told = |vm: &str| {
        let mut all = leases.as_array().unwrap().iter();
        text(&all.find(|lease| lease["vm_id"] == vm).unwrap()["ip6"])
    };
    let offer = Offer::new(&world, &[program]);
    let mut shells: Vec<_> = ["a", "b"]
        .into_iter()
        .map(|vm| {
            daemon.wait_console(vm, "VMAN-GUEST address eth0 ");
            let mut shell = Shell::open(&daemon, vm);
            offer.give(&mut shell);
            assert_eq!(take_address(&daemon, &mut shell, vm), told(vm));
            assert_eq!(
                text(&daemon.get(&format!("/vms/{vm}/nics"))[0]["ip6"]),
                told(vm)
            );
            shell
        })
        .collect();
    let a = &mut shells[0];
    a.soon(&format!("ping6 -c 2 -W 5 {}", told("b")));
    a.ok(&format!("ping6 -c 2 -W 5 {gateway}"));
    let found = a.ok(&format!("nslookup -type=aaaa b {gateway}"));
    assert!(found.contains(&told("b")), "{found}");
    // Who is beyond knows no way to the guests: it answers the host.
    a.soon(&format!("ping6 -c 2 -W 5 {BEYOND}"));

    // Nobody from beyond gets in, who knows the way or not; nor a guest to the host's programs.
    let subnet = text(&config["subnet6"]);
    run(&format!(
        "ip -n {} route add {subnet} via {HOST}",
        world.beyond
    ));
    let ask = format!(
        "ip netns exec {} ping -c 1 -W 2 {}",
        world.beyond,
        told("a")
    );
    let words: Vec<_> = ask.split(' ').collect();
    let asked = std::process::Command::new(words[0])
        .args(&words[1..])
        .output()
        .unwrap();
    assert!(!asked.status.success(), "{asked:?}");
    let listener = within(&world.host, || {
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, 7777)).unwrap()
    });
    for to in [&*gateway, HOST] {
        assert_ne!(a.run(&format!("nc -w 2 {to} 7777 </dev/null")).0, 0, "{to}");
    }
    drop(listener);

    // But for who comes through a port that leads in, from beyond or from this host.
    let forward = json!({"vm_id": "a", "host_port": 8080, "guest_port": 9});
    daemon.post("/network/forwards", &forward).expect(201);
    a.ok("echo 'echo hello from the guest' >/tmp/say; chmod +x /tmp/say");
    a.ok("(nc -ll -p 9 -e sh /tmp/say >/dev/null 2>&1 &)");
    for from in [&world.beyond, &world.host] {
        let line = wait_for("the port to lead in", PATIENCE, || told_at(from, 8080));
        assert_eq!(line.trim(), "hello from the guest");
    }
    daemon.delete("/network/forwards/tcp-8080").expect(204);
    wait_for("the port to lead nowhere", SOON, || {
        told_at(&world.beyond, 8080).is_none().then_some(())
    });

    // All of it lasts and heals, and is asked for and given again.
    daemon.kill();
    daemon.serve();
    assert_eq!(daemon.get("/network/config")["subnet6"], subnet.as_str());
    wait_for("the VM to be found", SOON, || {
        (daemon.vm("a")["state"] == "running").then_some(())
    });
    let link = world.in_host("ip -6 addr show dev br-t scope link");
    let local = link.split("inet6 ").nth(1).unwrap();
    let local = local.split('/').next().unwrap();
    let removed = |address: &str| {
        (
            format!("ip addr del {address}/64 dev br-t"),
            format!("the address {address} of the bridge br-t was removed"),
        )
    };
    for (damage, repair) in [
        removed(&gateway),
        removed(local),
        (
            "ip link set br-t down".to_owned(),
            "br-t was set down".to_owned(),
        ),
        ("ip link del br-t".to_owned(), "br-t was deleted".to_owned()),
    ] {
        let broken = SystemTime::now();
        world.in_host(&damage);
        wait_healed(&daemon, &repair, broken);
        a.soon(&format!("ping6 -c 1 -W 2 {gateway}"));
        a.soon(&format!("ping6 -c 1 -W 2 {BEYOND}"));
        a.soon("/tmp/dhcp6 eth0");
    }
    assert_eq!(daemon.get("/health")["status"], "ok");
    // The host's ends of the guests' cards say nothing of their own.
    for tap in world.taps() {
        let told = world.in_host(&format!("ip -6 addr show dev {tap}"));
        assert_eq!(told, "", "{tap}");
    }
    let ipv4 = address_of(&daemon, "a");
    a.ok(&format!("ip addr show dev eth0 | grep -q {ipv4}"));
}

#[test]
fn a_host_without_ipv6_says_so_and_its_guests_have_ipv4() {
    if !can_make_networks("a_host_without_ipv6_says_so_and_its_guests_have_ipv4") {
        return;
    }
    let world = World::new();
    world.in_host("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    let daemon = world.daemon(&[("VMAN_IPV6", "1")]);
    daemon.tiny_vms(&["a"]);
    assert_eq!(daemon.act("a", "start")["status"], "succeeded");
    assert_eq!(daemon.vm("a")["network_mode"], "bridge");
    assert_eq!(daemon.vm("a")["local_ip6"], Value::Null);
    let config = daemon.get("/network/config");
    assert_eq!(config["ipv6"], false);
    let why = text(&config["ipv6_reason"]);
    assert!(why.contains("disable_ipv6 is 1"), "{why}");
    let health = daemon.call("GET", "/health", &json!(null)).expect(503);
    assert!(
        text(&health["checks"]["network"]).contains(&why),
        "{health}"
    );
    assert!(daemon.log().contains(&why));
}

const LAB: &str = "[network.lab]
bridge = \"br-lab\"
subnet = \"10.9.0.0/24\"
nat = false
ipv6 = true
subnet6 = \"fd12:3456:789a::/64\"
";

/// Takes the address that the API tells, unasked.
fn assume_address(daemon: &Daemon, shell: &mut Shell, vm: &str) -> String {
    let told = text(&daemon.vm(vm)["local_ip6"]);
    shell.ok(&format!("ip -6 addr add {told}/128 dev eth0"));
    told
}

#[test]
fn networks_with_ipv6_are_kept_from_each_other_and_without_nat_there_is_no_way_out() {
    const NAME: &str =
        "networks_with_ipv6_are_kept_from_each_other_and_without_nat_there_is_no_way_out";
    if !can_make_networks(NAME) {
        return;
    }
    let world = world();
    // Who is beyond knows the way back: it is the rules that keep lab's guests in.
    run(&format!(
        "ip -n {} route add fd12:3456:789a::/64 via {HOST}",
        world.beyond
    ));
    let mut daemon = world.unstarted(&[("VMAN_IPV6", "1")]);
    daemon.configure(LAB);
    daemon.serve();
    daemon.guest_template("");
    let mut shells = Vec::new();
    for (name, network) in [("a", "default"), ("b", "lab"), ("c", "lab")] {
        let vm = json!({"template_name": "guest", "name": name, "network": network});
        daemon.post("/vms", &vm).expect(201);
        assert_eq!(daemon.act(name, "start")["status"], "succeeded");
    }
    let mut at = Vec::new();
    for name in ["a", "b", "c"] {
        daemon.wait_console(name, "VMAN-GUEST address eth0 ");
        let mut shell = Shell::open(&daemon, name);
        // Advertisements tell which addresses are near.
        shell.soon("ip -6 route show | grep '^fd.*/64 dev eth0'");
        at.push(assume_address(&daemon, &mut shell, name));
        shells.push(shell);
    }
    let [a, b, _] = &mut shells[..] else { panic!() };
    assert!(at[1].starts_with("fd12:3456:789a::1:"), "{at:?}");
    b.soon(&format!("ping6 -c 1 -W 5 {}", at[2]));
    b.ok("ping6 -c 1 -W 5 fd12:3456:789a::1");
    assert_eq!(
        b.ok("ip -6 route show default"),
        "",
        "no router is advertised"
    );
    let gateway = text(&daemon.get("/network/config")["gateway6"]);
    b.ok("ip -6 route add default via fd12:3456:789a::1");
    for to in [&*at[0], &gateway, HOST, BEYOND] {
        assert_ne!(b.run(&format!("ping6 -c 1 -W 2 {to}")).0, 0, "{to}");
    }
    a.soon(&format!("ping6 -c 1 -W 5 {BEYOND}"));
    for to in [&*at[1], "fd12:3456:789a::1"] {
        assert_ne!(a.run(&format!("ping6 -c 1 -W 2 {to}")).0, 0, "{to}");
    }
}

#[test]
fn isolated_guests_do_not_reach_each_other_by_way_of_the_host_either() {
    if !can_make_networks("isolated_guests_do_not_reach_each_other_by_way_of_the_host_either") {
        return;
    }
    let world = World::new();
    let daemon = world.daemon(&[("VMAN_IPV6", "1"), ("VMAN_NETWORK_ISOLATED", "1")]);
    daemon.guest_template("");
    let local = guests(&daemon, &["a", "b"]);
    let gateway = text(&daemon.get("/network/config")["gateway6"]);
    let mut shells: Vec<_> = ["a", "b"]
        .into_iter()
        .map(|vm| {
            daemon.wait_console(vm, "VMAN-GUEST address eth0 ");
            let mut shell = Shell::open(&daemon, vm);
            let own = assume_address(&daemon, &mut shell, vm);
            shell.soon(&format!("ping6 -c 1 -W 5 {gateway}"));
            (shell, own)
        })
        .collect();
    let at: Vec<_> = shells.iter().map(|(_, own)| own.clone()).collect();
    for (number, (shell, _)) in shells.iter_mut().enumerate() {
        let other = 1 - number;
        shell.ok(&format!("ip route add {} via 192.168.100.1", local[other]));
        shell.ok(&format!("ip -6 route add {} via {gateway}", at[other]));
    }
    let (a, _) = &mut shells[0];
    for ping in [
        format!("ping -c 2 -W 2 {}", local[1]),
        format!("ping6 -c 2 -W 2 {}", at[1]),
    ] {
        assert_ne!(a.run(&ping).0, 0, "{ping}");
    }
    a.ok("ping -c 1 -W 5 192.168.100.1");
}

fn network_health(daemon: &Daemon) -> String {
    let health = daemon.call("GET", "/health", &json!(null)).json();
    text(&health["checks"]["network"])
}

fn wait_health(daemon: &Daemon, holds: impl Fn(&str) -> bool) -> String {
    wait_for("health to follow", SOON, || {
        Some(network_health(daemon)).filter(|said| holds(said))
    })
}

#[test]
fn a_host_keeps_the_way_out_that_a_router_tells_it_and_what_drops_ipv6_is_named() {
    const NAME: &str =
        "a_host_keeps_the_way_out_that_a_router_tells_it_and_what_drops_ipv6_is_named";
    if !can_make_networks(NAME) {
        return;
    }
    let world = world();
    run(&format!(
        "ip -n {} addr flush dev up0 scope global",
        world.host
    ));
    let router = "--interface=eth0 --bind-interfaces --port=0 --enable-ra --leasefile-ro --pid-file= \
                  --conf-file=/dev/null --user=root --dhcp-range=2001:db8::,ra-only";
    // It goes with its namespace.
    run(&format!("ip netns exec {} dnsmasq {router}", world.beyond));
    let way_out = || world.in_host("ip -6 route show default proto ra");
    wait_for("the host to have a way out", SOON, || {
        (!way_out().is_empty()).then_some(())
    });
    let daemon = world.daemon(&[("VMAN_IPV6", "1")]);
    let forwarding = || {
        let all = world.in_host("cat /proc/sys/net/ipv6/conf/all/forwarding");
        all.trim() == "1"
    };
    let said = wait_health(&daemon, |said| said != "ok");
    assert!(
        said.contains("set net.ipv6.conf.up0.accept_ra to 2"),
        "{said}"
    );
    assert!(!forwarding() && !way_out().is_empty());
    world.in_host("sysctl -qw net.ipv6.conf.up0.accept_ra=2");
    wait_health(&daemon, |said| said == "ok");
    assert!(forwarding() && !way_out().is_empty());

    world.in_host("nft add table ip6 filter");
    let chain = "{ type filter hook forward priority 0; policy drop; }";
    world.in_host(&format!("nft add chain ip6 filter FORWARD {chain}"));
    let said = wait_health(&daemon, |said| said != "ok");
    assert!(
        said.contains("the chain FORWARD of the table ip6 filter"),
        "{said}"
    );
    assert!(said.contains("ip6tables -I DOCKER-USER -i br-t"), "{said}");
    world.in_host("nft add rule ip6 filter FORWARD iifname br-t accept");
    wait_health(&daemon, |said| said == "ok");
}
