//! What the oracle sees of a real host: the API, the processes, the folders.

use super::{
    daemon::{Daemon, PATIENCE},
    host,
    qmp::Monitor,
    wait_for,
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, path::Path};
use vman_actors::oracle::{DiskSeen, Life, ProcessSeen, Promised, Seen, VmSeen, verdict};

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(daemon: &Daemon, target: &str) -> Vec<Value> {
    match daemon.get(target) {
        Value::Array(all) => all,
        other => panic!("{target}: {other}"),
    }
}

/// The names in a folder, without what is after the last dot if `stems`.
fn names(folder: &Path, stems: bool) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let named = paths.filter_map(|path| {
        let name = if stems {
            path.file_stem()
        } else {
            path.file_name()
        };
        Some(name?.to_str()?.to_owned())
    });
    named.collect()
}

/// The disks whose files a process has open.
fn open_disks(pid: u32, folder: &Path) -> BTreeSet<String> {
    let open = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    let targets = open
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok());
    let ours = targets.filter(|file| file.starts_with(folder));
    ours.filter_map(|file| Some(file.file_stem()?.to_str()?.to_owned()))
        .collect()
}

fn vm(vm: &Value, disks: &[Value]) -> VmSeen {
    let held = disks.iter().filter(|disk| disk["vm_id"] == vm["id"]);
    VmSeen {
        id: text(&vm["id"]),
        uuid: text(&vm["uuid"]),
        mac: text(&vm["mac"]),
        life: match vm["state"].as_str() {
            Some("running" | "paused") => Life::Alive,
            Some("stopped" | "error") => Life::Rest,
            _ => Life::Moving,
        },
        pid: vm["pid"].as_u64().and_then(|pid| pid.try_into().ok()),
        incarnation: vm["incarnation"].as_u64().unwrap_or_default(),
        disks: held.map(|disk| text(&disk["id"])).collect(),
    }
}

/// Files and folders of nobody.
fn leftovers(daemon: &Daemon, vms: &[VmSeen]) -> Vec<String> {
    let named = |what: &str, names: BTreeSet<String>| -> Vec<String> {
        names.iter().map(|name| format!("{what}/{name}")).collect()
    };
    let of = |wanted: fn(&VmSeen) -> bool| -> BTreeSet<String> {
        let wanted = vms.iter().filter(|vm| wanted(vm));
        wanted.map(|vm| vm.id.clone()).collect()
    };
    let folder = daemon.storage();
    let mut all = named("tmp", names(&folder.join("tmp"), false));
    let known = of(|_| true);
    let folders = names(&folder.join("vms"), false);
    all.extend(named("vms", &folders - &known));
    let runtime = daemon.folder().join("run/vms");
    let alive = of(|vm| vm.life == Life::Alive);
    all.extend(named("run/vms", &names(&runtime, false) - &alive));
    all
}

/// What the daemon's own check of its store and of the manifests tells.
fn store_faults(daemon: &Daemon) -> Vec<String> {
    let checked = daemon.post("/store/check", &json!({})).expect(200);
    let faults = checked["faults"].as_array().cloned().unwrap_or_default();
    faults.iter().map(ToString::to_string).collect()
}

/// Images whose files are not as long as their records say.
fn image_faults(daemon: &Daemon, images: &[Value]) -> Vec<String> {
    let folder = daemon.storage().join("images");
    let wrong = images.iter().filter(|image| {
        let file = fs::metadata(folder.join(text(&image["name"])));
        file.is_ok_and(|file| image["size_bytes"] != file.len())
    });
    wrong
        .map(|image| format!("the file of an image has another length: {image}"))
        .collect()
}

/// VMs whose CPUs stand still though they are told running, or the reverse, as
/// their QEMUs tell it.
fn run_state_faults(daemon: &Daemon, vms: &[Value]) -> Vec<String> {
    let fault = |vm: &Value| {
        let (id, state) = (text(&vm["id"]), text(&vm["state"]));
        if !matches!(state.as_str(), "running" | "paused") {
            return None;
        }
        let monitor = Monitor::try_open(&daemon.monitor(&id));
        let status = monitor.and_then(|mut qemu| qemu.try_run("query-status", &json!({})));
        match status {
            Ok(status) if status["running"] == (state == "running") => None,
            status => Some(format!("VM {id} is told {state}, its QEMU: {status:?}")),
        }
    };
    vms.iter().filter_map(fault).collect()
}

/// Everything there is, now.
pub fn seen(daemon: &Daemon) -> Seen {
    let disks = list(daemon, "/disks");
    let rows = list(daemon, "/vms");
    let vms: Vec<_> = rows.iter().map(|row| vm(row, &disks)).collect();
    let folder = daemon.storage().join("disks");
    let processes = daemon.qemus().into_iter().map(|qemu| ProcessSeen {
        uuid: qemu.uuid,
        incarnation: qemu.incarnation,
        pid: qemu.pid,
        start_time: host::start_time(qemu.pid),
        disks: open_disks(qemu.pid, &folder),
        counter: daemon.counter(&qemu.name),
    });
    let operations = list(daemon, "/operations");
    let open = operations
        .iter()
        .filter(|op| op["status"] == "running" || op["status"] == "pending");
    let images = list(daemon, "/images");
    Seen {
        disks: disks
            .iter()
            .map(|disk| DiskSeen {
                id: text(&disk["id"]),
                vm: disk["vm_id"].as_str().map(str::to_owned),
                made: disk["root"] == false,
            })
            .collect(),
        images: images.iter().map(|image| text(&image["name"])).collect(),
        open_operations: open.map(ToString::to_string).collect(),
        processes: processes.collect(),
        disk_files: names(&folder, true),
        image_files: names(&daemon.storage().join("images"), false),
        leases: list(daemon, "/network/leases")
            .iter()
            .map(|lease| (text(&lease["ip"]), text(&lease["vm_id"])))
            .collect(),
        leftovers: leftovers(daemon, &vms),
        violations: [
            store_faults(daemon),
            image_faults(daemon, &images),
            run_state_faults(daemon, &rows),
        ]
        .concat(),
        networks: None,
        vms,
    }
}

/// Waits until everything rests, then judges; answers what was seen.
pub fn judge(daemon: &Daemon, promised: &Promised, when: &str) -> Seen {
    wait_for(
        &format!("{when}: everything to come to rest"),
        PATIENCE,
        || {
            let moving = list(daemon, "/vms").iter().any(|row| {
                let state = row["state"].as_str();
                !matches!(state, Some("running" | "paused" | "stopped" | "error"))
            });
            let mut operations = list(daemon, "/operations").into_iter();
            let open = operations.any(|op| op["finished_at"].is_null());
            (!moving && !open).then_some(())
        },
    );
    // A process that has ended, or a file that is closed, is seen a moment later.
    let mut broken = Vec::new();
    let mut found = None;
    for _ in 0..100 {
        let now = seen(daemon);
        broken = verdict(&now, promised);
        if broken.is_empty() {
            found = Some(now);
            break;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
    found.unwrap_or_else(|| panic!("{when}: {broken:#?}"))
}
