//! QEMU's user-mode network: what works there too.

use crate::{
    console::Shell,
    support::{daemon::Daemon, host, wait_for},
    world::{SOON, World, can_make_networks, wait_event, within},
};
use serde_json::json;
use std::{
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    time::Duration,
};

fn ask(world: &World, port: u16) -> Option<String> {
    within(&world.host, || {
        let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        (!line.is_empty()).then_some(line)
    })
}

#[test]
fn a_port_of_the_host_leads_into_a_guest_in_user_mode_whatever_is_killed() {
    if !can_make_networks("a_port_of_the_host_leads_into_a_guest_in_user_mode_whatever_is_killed") {
        return;
    }
    let world = World::new();
    let mut daemon = world.daemon(&[("VMAN_NETWORK_MODE", "user")]);
    daemon.guest_template("");
    let restart = json!({"policy": "on-failure", "backoff_ms": 10});
    let vm = json!({"template_name": "guest", "name": "a", "restart": restart});
    daemon.post("/vms", &vm).expect(201);
    assert_eq!(daemon.act("a", "start")["status"], "succeeded");
    assert_eq!(daemon.vm("a")["network_mode"], "user");
    daemon.wait_console("a", "VMAN-GUEST address eth0 ");
    let mut a = listen(&daemon);
    let forward = json!({"vm_id": "a", "host_port": 8080, "guest_port": 9});
    daemon.post("/network/forwards", &forward).expect(201);
    let line = wait_for("the port to lead in", SOON, || ask(&world, 8080));
    assert_eq!(line.trim(), "hello from the guest");

    // A port that somebody else has is told, and taken when it is free.
    let taken = within(&world.host, || {
        TcpListener::bind(("0.0.0.0", 8081)).unwrap()
    });
    let forward = json!({"vm_id": "a", "host_port": 8081, "guest_port": 9});
    daemon.post("/network/forwards", &forward).expect(201);
    wait_event(&daemon, "network.failed", "tcp port 8081");
    drop(taken);
    wait_for("the other port to lead in", SOON, || ask(&world, 8081));

    daemon.kill();
    assert!(
        ask(&world, 8080).is_some(),
        "nobody needs the daemon for it"
    );
    daemon.serve();
    daemon.delete("/network/forwards/tcp-8080").expect(204);
    wait_for("the port to lead nowhere", SOON, || {
        ask(&world, 8080).is_none().then_some(())
    });
    assert!(ask(&world, 8081).is_some());

    // A further card comes and goes here as well.
    let card = daemon.post("/vms/a/nics", &json!({})).expect(201);
    assert_eq!(card["mode"], "user");
    a.soon("[ -e /sys/class/net/eth1 ]");
    daemon.delete("/vms/a/nics/nic1").expect(204);
    assert_ne!(a.run("[ -e /sys/class/net/eth1 ]").0, 0);

    // The next life has its port again, whoever ended the last one.
    assert_eq!(daemon.act("a", "restart?force=true")["status"], "succeeded");
    leads_in_again(&world, &daemon, 2);
    let before = daemon.pid_of("a");
    host::signal(before, rustix::process::Signal::KILL);
    wait_for("the policy to start it again", SOON, || {
        let vm = daemon.vm("a");
        (vm["state"] == "running" && vm["pid"] != json!(before)).then_some(())
    });
    leads_in_again(&world, &daemon, 3);
}

/// Through the port that is left to a guest that has just been started. QEMU accepts before there
/// is a guest, so that somebody listens is not enough.
fn leads_in_again(world: &World, daemon: &Daemon, life: usize) {
    wait_for("the guest of this life", SOON, || {
        let addresses = daemon
            .console("a")
            .matches("VMAN-GUEST address eth0 ")
            .count();
        (addresses >= life).then_some(())
    });
    listen(daemon);
    wait_for("the port to lead in again", SOON, || ask(world, 8081));
    assert_eq!(ask(world, 8080), None, "the other was given up");
}

/// The guest says a line to everyone who connects.
fn listen(daemon: &Daemon) -> Shell {
    let mut a = Shell::open(daemon, "a");
    a.ok("echo 'echo hello from the guest' >/tmp/say; chmod +x /tmp/say");
    a.ok("(nc -ll -p 9 -e sh /tmp/say >/dev/null 2>&1 &)");
    a
}
