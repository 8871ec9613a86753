//! What guests can say and hear.

use crate::{
    console::Shell,
    world::{BEYOND, HOST, World, can_make_networks, guests, within},
};
use serde_json::json;
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

/// A request for a page. (The guest's wget looks up names and ports in files that it has not.)
const GET: &str = r"printf 'GET / HTTP/1.0\r\n\r\n'";

/// Answers one request after the other with `body`, in the namespace beyond, until the test ends.
fn serve_http(world: &World, body: &'static [u8]) {
    let listener = within(&world.beyond, || TcpListener::bind((BEYOND, 80)).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 4096]);
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.write_all(body);
        }
    });
}

/// Connects from the namespace beyond and reads a line.
fn ask_from_beyond(world: &World, port: u16) -> std::io::Result<String> {
    within(&world.beyond, || {
        let to = format!("{HOST}:{port}").parse().unwrap();
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut line = String::new();
        stream.read_to_string(&mut line)?;
        Ok(line)
    })
}

#[test]
fn two_guests_get_their_leases_and_reach_each_other_the_gateway_and_the_world() {
    if !can_make_networks(
        "two_guests_get_their_leases_and_reach_each_other_the_gateway_and_the_world",
    ) {
        return;
    }
    let world = World::new();
    serve_http(&world, b"hello from beyond");
    let daemon = world.daemon(&[]);
    daemon.guest_template("");
    let addresses = guests(&daemon, &["a", "b"]);
    for (name, address) in ["a", "b"].iter().zip(&addresses) {
        let got = daemon.wait_console(name, "VMAN-GUEST address eth0 ");
        assert!(
            got.contains(&format!("VMAN-GUEST address eth0 {address}")),
            "the API told {address}: {got}"
        );
        assert_eq!(daemon.vm(name)["network_mode"], "bridge");
    }
    let mut a = Shell::open(&daemon, "a");
    a.ok(&format!("ping -c 2 -W 5 {}", addresses[1]));
    a.ok("ping -c 2 -W 5 192.168.100.1");
    let found = a.ok("nslookup b 192.168.100.1");
    assert!(found.contains(&addresses[1]), "{found}");
    assert!(a.ok("cat /etc/resolv.conf").contains("192.168.100.1"));
    assert!(a.ok("ip link show eth0").contains("mtu 1500"));
    let page = a.ok(&format!("{GET} | nc -w 10 {BEYOND} 80"));
    assert!(page.contains("hello from beyond"), "{page}");

    // What went through is counted, from the guest's side.
    let nics = daemon.get("/vms/a/nics");
    let count = |name: &str| nics[0][name].as_u64().unwrap();
    assert!(
        count("rx_packets") >= 8 && count("tx_packets") >= 8,
        "{nics}"
    );
    assert!(count("rx_bytes") > count("rx_packets") * 40, "{nics}");
    assert_eq!(nics[0]["ip"], addresses[0].as_str());
    assert!(
        world
            .taps()
            .iter()
            .any(|tap| nics[0]["tap"] == tap.as_str())
    );

    // Into the guest, through a port of the host.
    let forward = json!({"vm_id": "a", "host_port": 8080, "guest_port": 9});
    daemon.post("/network/forwards", &forward).expect(201);
    let same = daemon.post("/network/forwards", &forward);
    assert_eq!(same.expect(409)["code"], "forward_exists");
    a.ok("echo 'echo hello from the guest' >/tmp/say; chmod +x /tmp/say");
    a.ok("(nc -ll -p 9 -e sh /tmp/say >/dev/null 2>&1 &)");
    let deadline = Instant::now() + Duration::from_secs(20);
    let line = loop {
        match ask_from_beyond(&world, 8080) {
            Ok(line) => break line,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    assert_eq!(line.trim(), "hello from the guest");
    // Nothing of the guest is reached beside the forwarded port, nor after its end.
    daemon.delete("/network/forwards/tcp-8080").expect(204);
    assert_eq!(daemon.get("/network/forwards"), json!([]));
    let deadline = Instant::now() + Duration::from_secs(5);
    while ask_from_beyond(&world, 8080).is_ok() {
        assert!(Instant::now() < deadline, "the port still leads in");
    }
}

#[test]
fn isolated_guests_with_several_queues_reach_the_gateway_and_not_each_other() {
    if !can_make_networks(
        "isolated_guests_with_several_queues_reach_the_gateway_and_not_each_other",
    ) {
        return;
    }
    let world = World::new();
    let daemon = world.daemon(&[("VMAN_NETWORK_ISOLATED", "1")]);
    daemon.guest_template("");
    for name in ["a", "b"] {
        let vm = json!({"template_name": "guest", "name": name, "cpu_count": 2});
        daemon.post("/vms", &vm).expect(201);
        assert_eq!(daemon.act(name, "start")["status"], "succeeded");
    }
    for name in ["a", "b"] {
        daemon.wait_console(name, "VMAN-GUEST address eth0 ");
    }
    assert_eq!(daemon.get("/network/config")["isolated"], true);
    let mut a = Shell::open(&daemon, "a");
    let queues = a.ok("ls /sys/class/net/eth0/queues");
    assert!(
        queues.contains("rx-1") && queues.contains("tx-1"),
        "{queues}"
    );
    a.ok("ping -c 2 -W 5 192.168.100.1");
    let other = daemon.vm("b")["local_ip"].as_str().unwrap().to_owned();
    assert_ne!(a.run(&format!("ping -c 2 -W 1 {other}")).0, 0);
}
