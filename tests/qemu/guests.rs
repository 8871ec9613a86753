//! Real guests, booted under software emulation.

use crate::support::{
    can_run,
    daemon::{Daemon, PATIENCE},
    guest, host, skip, wait_for,
};
use serde_json::json;

#[test]
fn a_guest_counts_on_across_a_kill_of_the_daemon_and_stops_politely_afterwards() {
    if !can_run("a_guest_counts_on_across_a_kill_of_the_daemon_and_stops_politely_afterwards") {
        return;
    }
    let mut daemon = Daemon::start();
    daemon.guest_template("vman.counter_ms=100");
    daemon
        .post("/vms", &json!({"template_name": "guest", "name": "hello"}))
        .expect(201);
    assert_eq!(daemon.act("hello", "start")["status"], "succeeded");
    daemon.wait_console("hello", "VMAN-GUEST userland up");
    let before = wait_for("the guest to count", PATIENCE, || daemon.counter("hello"));
    let (pid, started) = (
        daemon.pid_of("hello"),
        host::start_time(daemon.pid_of("hello")),
    );

    daemon.kill();
    assert!(host::lives(pid), "the guest outlives the daemon");
    daemon.serve();

    let vm = daemon.vm("hello");
    assert_eq!(vm["state"], "running");
    assert_eq!(vm["pid"], pid);
    assert_eq!(host::start_time(pid), started);
    wait_for("the guest to count on", PATIENCE, || {
        daemon.counter("hello").filter(|now| *now > before + 5)
    });
    // What the guest wrote while there was no daemon is on its console.
    let console = daemon.console("hello");
    let numbers: Vec<u64> = console
        .lines()
        .filter_map(|line| {
            line.split("VMAN-GUEST counter ")
                .nth(1)?
                .trim()
                .parse()
                .ok()
        })
        .collect();
    assert!(
        numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "{numbers:?}"
    );

    let operation = daemon.act("hello", "stop");
    assert_eq!(operation["status"], "succeeded", "{operation}");
    let vm = daemon.vm("hello");
    assert_eq!(
        (&vm["state"], &vm["reason"]),
        (&json!("stopped"), &json!("user"))
    );
    assert!(
        daemon.console("hello").contains("VMAN-GUEST power button"),
        "it was asked, not killed"
    );
}

#[test]
fn a_guest_that_powers_itself_off_is_stopped_by_guest_shutdown() {
    if !can_run("a_guest_that_powers_itself_off_is_stopped_by_guest_shutdown") {
        return;
    }
    let daemon = Daemon::start();
    daemon.guest_template("vman.poweroff_after_ms=100");
    daemon
        .post("/vms", &json!({"template_name": "guest", "name": "short"}))
        .expect(201);
    daemon.act("short", "start");
    let vm = daemon.wait_state("short", "stopped");
    assert_eq!(vm["reason"], "guest_shutdown");
    assert_eq!(daemon.qemus(), []);
}

#[test]
fn a_guest_that_powered_off_while_the_daemon_was_away_is_told_from_one_that_died() {
    if !can_run("a_guest_that_powered_off_while_the_daemon_was_away_is_told_from_one_that_died") {
        return;
    }
    let mut daemon = Daemon::start();
    daemon.guest_template("vman.poweroff_after_ms=1500");
    for name in ["off", "dead"] {
        daemon
            .post("/vms", &json!({"template_name": "guest", "name": name}))
            .expect(201);
        daemon.act(name, "start");
    }
    daemon.wait_console("off", "VMAN-GUEST userland up");
    let dead = daemon.pid_of("dead");
    daemon.kill();
    host::signal(dead, rustix::process::Signal::KILL);
    let console = daemon.storage().join("vms/off/console.log");
    wait_for("the guest to power off", PATIENCE, || {
        let text = std::fs::read(&console).ok()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        // The kernel's or the guest's last word.
        (text.contains("Power down") || text.contains("powering off")).then_some(())
    });
    daemon.serve();
    let vm = daemon.wait_state("off", "stopped");
    assert_eq!(vm["reason"], "guest_shutdown", "{vm}");
    let vm = daemon.wait_state("dead", "error");
    assert_eq!(vm["reason"], "qemu_exit", "{vm}");
}

#[test]
fn a_guests_reboot_is_no_stop() {
    if !can_run("a_guests_reboot_is_no_stop") {
        return;
    }
    let daemon = Daemon::start();
    daemon.guest_template("vman.reboot_after_ms=100");
    daemon
        .post("/vms", &json!({"template_name": "guest", "name": "again"}))
        .expect(201);
    daemon.act("again", "start");
    let pid = daemon.pid_of("again");
    wait_for("the guest to boot twice", PATIENCE * 2, || {
        let console = daemon.console("again");
        (console.matches("VMAN-GUEST userland up").count() >= 2).then_some(())
    });
    let vm = daemon.vm("again");
    assert_eq!((&vm["state"], &vm["pid"]), (&json!("running"), &json!(pid)));
    assert!(
        daemon
            .get("/vms/again/explain")
            .to_string()
            .contains("guest_reset")
    );
}

#[test]
fn a_guest_boots_from_a_disk_image_by_bios_and_by_uefi() {
    if !can_run("a_guest_boots_from_a_disk_image_by_bios_and_by_uefi") {
        return;
    }
    let disk = guest().join("disk.qcow2");
    if !disk.exists() {
        skip(
            "a_guest_boots_from_a_disk_image_by_bios_and_by_uefi",
            "no disk image of the guest",
        );
        return;
    }
    let daemon = Daemon::start();
    daemon.put_image("disk", "disk", &disk);
    let template = json!({"name": "disk", "cpu_count": 1, "ram_mib": 256, "image": "disk"});
    daemon.post("/templates", &template).expect(201);
    let mut names = vec!["bios"];
    if std::path::Path::new("/usr/share/OVMF/OVMF_CODE_4M.fd").exists() {
        names.push("uefi");
    } else {
        skip(
            "a_guest_boots_from_a_disk_image_by_bios_and_by_uefi (uefi)",
            "OVMF is not installed",
        );
    }
    for name in &names {
        let body = json!({"template_name": "disk", "name": name, "firmware": name});
        daemon.post("/vms", &body).expect(201);
        assert_eq!(
            daemon.act(name, "start")["status"],
            "succeeded",
            "{}",
            daemon.vm(name)
        );
    }
    for name in &names {
        daemon.wait_console(name, "VMAN-GUEST userland up");
    }
    let refused = daemon.delete("/images/disk");
    assert_eq!(refused.status, 409, "a disk is based on it");
    for name in &names {
        assert_eq!(daemon.delete(&format!("/vms/{name}")).status, 204);
    }
    assert_eq!(
        std::fs::read_dir(daemon.storage().join("disks"))
            .unwrap()
            .count(),
        0
    );
}
