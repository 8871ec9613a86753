//! A real QEMU in its jail: what the kernel says of it.

use crate::{
    explained::story,
    support::{
        can_run,
        daemon::{Daemon, PATIENCE},
        skip, wait_for,
    },
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
};

/// One whose storage other users may reach, as is the usual place under /var/lib.
fn reachable(variables: &[(&str, &str)]) -> Daemon {
    let mut daemon = Daemon::unstarted(variables);
    fs::set_permissions(daemon.folder(), Permissions::from_mode(0o711)).unwrap();
    daemon.serve();
    daemon
}

fn field(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name}"))
        .trim_start_matches(':')
        .trim()
        .to_owned()
}

fn uid(pid: u32) -> u32 {
    let all: BTreeSet<u32> = field(pid, "Uid")
        .split_whitespace()
        .map(|id| id.parse().unwrap())
        .collect();
    assert_eq!(all.len(), 1, "real, effective, saved and file system uid");
    all.into_iter().next().unwrap()
}

fn start(daemon: &Daemon, name: &str) -> u32 {
    daemon
        .post("/vms", &json!({"template_name": "guest", "name": name}))
        .expect(201);
    let operation = daemon.act(name, "start");
    assert_eq!(operation["status"], "succeeded", "{operation}");
    daemon.pid_of(name)
}

/// Where the QEMU's control groups are, with what one of them says held against the claim.
fn control_groups(pid: u32, bounded: bool) -> Vec<PathBuf> {
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let inside = own.lines().filter(|line| line.contains("/vman/a."));
    let names: Vec<_> = inside.filter_map(|line| line.rsplit('/').next()).collect();
    assert_eq!(!names.is_empty(), bounded, "{own}");
    let mut groups = Vec::new();
    for mount in fs::read_dir("/sys/fs/cgroup").unwrap() {
        for name in &names {
            groups.push(mount.as_ref().unwrap().path().join("vman").join(name));
        }
    }
    groups.retain(|group| group.exists());
    for group in &groups {
        if let Ok(most) = fs::read_to_string(group.join("pids.max")) {
            assert_eq!(most.trim(), "2048");
        }
    }
    groups
}

#[test]
fn a_running_vm_has_a_user_of_its_own_no_capabilities_and_no_descriptor_of_the_daemons() {
    let name =
        "a_running_vm_has_a_user_of_its_own_no_capabilities_and_no_descriptor_of_the_daemons";
    if !can_run(name) {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return skip(name, "not root, so no user can be changed");
    }
    let mut daemon = reachable(&[]);
    daemon.guest_template("vman.counter_ms=100");
    let told = daemon.get("/health")["host"]["jail"].clone();
    let (a, b) = (start(&daemon, "a"), start(&daemon, "b"));
    assert!(uid(a) >= 70_001, "{told}");
    assert_ne!(uid(a), uid(b));
    for pid in [a, b] {
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(pid, set), "0000000000000000", "{set}");
        }
        assert_eq!(field(pid, "NoNewPrivs"), "1");
        assert_eq!(field(pid, "Seccomp"), "2");
    }
    let confinement = daemon.vm("a")["confinement"].clone();
    let words: BTreeSet<_> = confinement
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for word in [
        "own_user",
        "no_capabilities",
        "no_new_privileges",
        "seccomp",
    ] {
        assert!(words.contains(word), "{words:?}");
    }
    let groups = control_groups(a, words.contains("cgroup_pids"));
    let store = daemon.storage().join("vman.redb");
    for entry in fs::read_dir(format!("/proc/{a}/fd")).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap_or_default();
        assert_ne!(target, store, "QEMU has the store open");
        assert!(!target.ends_with("vman.sock"), "QEMU has the API's socket");
    }
    let mode = |file: &str| {
        let found = fs::metadata(daemon.storage().join(file)).unwrap();
        (found.uid(), found.mode() & 0o777)
    };
    assert_eq!(mode("vms/a/console.log"), (uid(a), 0o600));
    assert_eq!(mode("vman.redb").0, 0);

    // The guest lives in it, and is found again by a daemon that did not start it.
    daemon.wait_console("a", "VMAN-GUEST userland up");
    let uids = (uid(a), uid(b));
    daemon.kill();
    daemon.serve();
    assert_eq!(daemon.pid_of("a"), a);
    let pid = start(&daemon, "c");
    assert!(
        uid(pid) != uids.0 && uid(pid) != uids.1,
        "an id is never shared"
    );
    assert_eq!(daemon.act("a", "stop")["status"], "succeeded");
    wait_for("a's folder to be root's again", PATIENCE, || {
        let folder = fs::metadata(daemon.storage().join("vms/a")).ok()?;
        (folder.gid() == 0 && folder.mode() & 0o777 == 0o700).then_some(())
    });
    assert_eq!(daemon.vm("a")["confinement"], json!([]));
    for group in groups {
        assert!(!group.exists(), "{} is left", group.display());
    }
    // With another id than before it can still do all it did.
    assert_eq!(daemon.act("a", "start")["status"], "succeeded");
    assert_ne!(uid(daemon.pid_of("a")), uids.0);
}

#[test]
fn with_a_required_jail_a_vm_that_would_have_less_does_not_start() {
    let name = "with_a_required_jail_a_vm_that_would_have_less_does_not_start";
    if !can_run(name) {
        return;
    }
    // Its folder is closed to others, so no QEMU can have another user.
    let mut daemon = Daemon::unstarted(&[("VMAN_JAIL", "require")]);
    fs::set_permissions(daemon.folder(), Permissions::from_mode(0o700)).unwrap();
    daemon.serve();
    daemon.tiny_vms(&["a"]);
    let operation = daemon.act("a", "start");
    assert_eq!(operation["status"], "failed", "{operation}");
    let vm = daemon.wait_state("a", "error");
    let why = vm["detail"].as_str().unwrap();
    assert!(why.contains("VMAN_JAIL=require"), "{why}");
    assert!(daemon.qemus().is_empty());
}

/// Leaves the QEMU's memory group a little more than it has taken; false where it has none.
fn squeeze(pid: u32) -> bool {
    const MORE: u64 = 4 << 20;
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    for line in own.lines().filter(|line| line.contains("/vman/")) {
        let group = line.splitn(3, ':').nth(2).unwrap();
        for (root, usage, limit) in [
            (
                "/sys/fs/cgroup/memory",
                "memory.usage_in_bytes",
                "memory.limit_in_bytes",
            ),
            ("/sys/fs/cgroup", "memory.current", "memory.max"),
        ] {
            let group = PathBuf::from(format!("{root}{group}"));
            if let Ok(used) = fs::read_to_string(group.join(usage)) {
                let most = used.trim().parse::<u64>().unwrap() + MORE;
                fs::write(group.join(limit), most.to_string()).unwrap();
                return true;
            }
        }
    }
    false
}

#[test]
fn a_qemu_that_takes_more_memory_than_it_may_is_told_as_that_also_when_nobody_looked() {
    let name = "a_qemu_that_takes_more_memory_than_it_may_is_told_as_that_also_when_nobody_looked";
    if !can_run(name) {
        return;
    }
    let mut daemon = reachable(&[]);
    daemon.guest_template("");
    // It has only begun to boot, and has most of its memory still to touch.
    let (a, b) = (start(&daemon, "a"), start(&daemon, "b"));
    if !squeeze(a) {
        return skip(name, "no control group bounds memory here");
    }
    let vm = daemon.wait_state("a", "error");
    assert_eq!(vm["reason"], "oom", "{vm}");
    let told = story(&daemon, "a");
    let links = [
        "failed ← the kernel killed QEMU for memory",
        " ← VM a was made with 192 MiB of memory (`create`, asked by ",
    ];
    assert!(told.starts_with(&links.concat()), "{told}");
    assert_eq!(daemon.vm("b")["state"], "running", "no other is hurt");
    daemon.kill();
    assert!(squeeze(b));
    wait_for("the kernel to end b", PATIENCE, || {
        (!PathBuf::from(format!("/proc/{b}/exe")).exists()).then_some(())
    });
    daemon.serve();
    assert_eq!(daemon.wait_state("b", "error")["reason"], "oom");
}

/// The daemon's own group in a hierarchy, of which the QEMU's is below or beside.
fn put_out(pid: u32) -> bool {
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let mut groups = 0;
    for line in own.lines().filter(|line| line.contains("/vman/")) {
        let words: Vec<_> = line.splitn(3, ':').collect();
        let root = PathBuf::from("/sys/fs/cgroup").join(words[1]);
        let outside = words[2].split("/vman/").next().unwrap_or_default();
        let door = root
            .join(outside.trim_start_matches('/'))
            .join("cgroup.procs");
        if door.exists() {
            fs::write(&door, pid.to_string()).unwrap();
            groups += 1;
        }
    }
    groups > 0
}

/// A daemon that dies between a QEMU's spawn and its moving into its groups leaves it outside.
#[test]
fn a_qemu_that_had_not_come_into_its_control_groups_is_put_there_when_it_is_found() {
    let name = "a_qemu_that_had_not_come_into_its_control_groups_is_put_there_when_it_is_found";
    if !can_run(name) {
        return;
    }
    let mut daemon = reachable(&[]);
    daemon.guest_template("");
    let pid = start(&daemon, "a");
    let groups = || {
        let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        own.matches("/vman/a.").count()
    };
    let all = groups();
    daemon.kill();
    if !put_out(pid) {
        return skip(name, "no control group bounds anything here");
    }
    assert_eq!(groups(), 0);
    daemon.serve();
    daemon.wait_state("a", "running");
    assert_eq!((daemon.pid_of("a"), groups()), (pid, all));
}
