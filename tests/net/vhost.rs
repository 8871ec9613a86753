//! Packets that the kernel carries itself, past QEMU.

use crate::{
    console::Shell,
    support::skip,
    world::{World, can_make_networks},
};
use serde_json::json;
use std::fs::{OpenOptions, read_dir, read_link};

const DEVICE: &str = "/dev/vhost-net";

/// How many of the kernel's workers a QEMU holds.
fn held(pid: u32) -> usize {
    let open = read_dir(format!("/proc/{pid}/fd")).unwrap();
    let held = open.filter(|entry| {
        let path = read_link(entry.as_ref().unwrap().path());
        path.is_ok_and(|path| path.as_os_str() == DEVICE)
    });
    held.count()
}

#[test]
fn every_queue_of_every_card_has_a_worker_of_the_kernels_where_there_is_vhost() {
    const NAME: &str = "every_queue_of_every_card_has_a_worker_of_the_kernels_where_there_is_vhost";
    if !can_make_networks(NAME) {
        return;
    }
    let there = OpenOptions::new().read(true).write(true).open(DEVICE);
    let world = World::new();
    let daemon = world.daemon(&[]);
    let config = daemon.get("/network/config");
    assert_eq!(config["vhost"], there.is_ok(), "{config}");
    if let Err(error) = there {
        let why = config["vhost_reason"].as_str().unwrap();
        assert!(why.contains(DEVICE), "{why}");
        skip(
            NAME,
            &format!("{DEVICE}: {error} (tests/debian/net.sh runs it where there is one)"),
        );
        return;
    }
    daemon.guest_template("");
    let vm = json!({"template_name": "guest", "name": "a", "cpu_count": 2});
    daemon.post("/vms", &vm).expect(201);
    assert_eq!(daemon.act("a", "start")["status"], "succeeded");
    let pid = daemon.pid_of("a");
    assert_eq!(held(pid), 2, "one for each queue");
    daemon.wait_console("a", "VMAN-GUEST address eth0 ");
    let mut a = Shell::open(&daemon, "a");
    let queues = a.ok("ls /sys/class/net/eth0/queues");
    assert!(
        queues.contains("rx-1") && queues.contains("tx-1"),
        "{queues}"
    );
    a.ok("ping -c 2 -W 5 192.168.100.1");

    // A card that is plugged in has them too, and gives them back.
    daemon.post("/vms/a/nics", &json!({})).expect(201);
    assert_eq!(held(pid), 4);
    a.soon("[ -e /sys/class/net/eth1 ]");
    a.ok("ip link set eth1 up");
    a.soon("udhcpc -n -q -f -i eth1 -s /bin/address -t 3 -T 1");
    a.soon("ping -c 2 -W 2 -I eth1 192.168.100.1");
    daemon.delete("/vms/a/nics/nic1").expect(204);
    assert_eq!(held(pid), 2);
    a.ok("ping -c 2 -W 5 192.168.100.1");
}
