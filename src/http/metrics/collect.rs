//! One collection: the inventory, the meters and a look at each QEMU's process.

use super::{DiskUsage, LinkUsage, ProcessUsage, text::Exposition};
use crate::http::state::HttpState;
use std::collections::BTreeMap;
use vman_actors::store::Inventory;
use vman_model::{
    OperationStatus, TapName, UnixMs,
    vm::{ApiState, VmRecord},
};

/// Everything, as text. May block for a moment: it reads what the kernel tells of
/// each process.
pub(super) fn collect(state: &HttpState) -> String {
    let mut out = Exposition::default();
    let inventory = state.inventory();
    daemon(&mut out, state);
    host(&mut out, state, &inventory);
    vms(&mut out, &inventory);
    processes(&mut out, state, &inventory);
    guests(&mut out, state);
    links(&mut out, state, &inventory);
    records(&mut out, state, &inventory);
    actors(&mut out, state);
    store(&mut out, state, &inventory);
    conversations(&mut out, state);
    observer(&mut out, state);
    out.finish()
}

#[allow(clippy::cast_precision_loss)] // Milliseconds since the epoch fit into 2^53.
fn seconds(at: UnixMs) -> f64 {
    at.0 as f64 / 1e3
}

fn daemon(out: &mut Exposition, state: &HttpState) {
    let settings = &state.settings;
    out.family("vman_build_info")
        .count(&[env!("CARGO_PKG_VERSION")], 1);
    let ready = *settings.readiness.done.borrow();
    out.family("vman_ready").count(&[], u64::from(ready));
    if let Some(took) = settings.metrics.recovery.get() {
        out.family("vman_recovery_seconds")
            .value(&[], took.as_secs_f64());
    }
    let mut family = out.family("vman_log_dropped_records_total");
    for (destination, dropped) in (settings.metrics.dropped_records)() {
        family.count(&[destination], dropped);
    }
    if let Some(own) = (settings.metrics.own)() {
        out.family("process_cpu_seconds_total")
            .value(&[], own.cpu.as_secs_f64());
        out.family("process_resident_memory_bytes")
            .count(&[], own.rss_bytes);
        out.family("process_threads").count(&[], own.threads);
    }
}

/// What the host has, and what of it is promised.
fn host(out: &mut Exposition, state: &HttpState, inventory: &Inventory) {
    let (has, allowed) = (state.settings.metrics.host, state.handles().allowance);
    let promised = inventory.promised;
    for (name, mib) in [
        ("vman_host_memory_bytes", has.map(|has| has.memory_mib)),
        ("vman_host_memory_allowed_bytes", allowed.memory_mib),
        ("vman_host_memory_promised_bytes", Some(promised.memory_mib)),
    ] {
        let mut family = out.family(name);
        if let Some(mib) = mib {
            family.count(&[], mib.saturating_mul(1 << 20));
        }
    }
    for (name, cpus) in [
        ("vman_host_cpus", has.map(|has| has.cpus)),
        ("vman_host_cpus_allowed", allowed.cpus),
        ("vman_host_cpus_promised", Some(promised.cpus)),
    ] {
        let mut family = out.family(name);
        if let Some(cpus) = cpus {
            family.count(&[], cpus);
        }
    }
}

fn vms(out: &mut Exposition, inventory: &Inventory) {
    let mut by_state: BTreeMap<&str, u64> = STATES.iter().map(|s| (s.as_str(), 0)).collect();
    let all = || inventory.vms.values().map(|row| &row.value);
    for vm in all() {
        *by_state.entry(vm.state().as_str()).or_default() += 1;
    }
    let mut family = out.family("vman_vms");
    for (state, count) in by_state {
        family.count(&[state], count);
    }
    let mut family = out.family("vman_vm_state");
    for vm in all() {
        family.count(&[vm.id.as_str(), vm.state().as_str()], 1);
    }
    each(out, "vman_vm_unresponsive", inventory, |vm| {
        u64::from(vm.unresponsive)
    });
    each(out, "vman_vm_incarnation", inventory, |vm| vm.incarnation.0);
    each(out, "vman_vm_vcpus", inventory, |vm| {
        u64::from(vm.spec.size.cpu_count)
    });
    each(out, "vman_vm_memory_configured_bytes", inventory, |vm| {
        vm.spec.size.ram_mib.saturating_mul(1 << 20)
    });
    let mut family = out.family("vman_vm_start_time_seconds");
    for vm in all() {
        if let (Some(at), Some(_)) = (vm.started_at, &vm.process) {
            family.value(&[vm.id.as_str()], seconds(at));
        }
    }
}

const STATES: [ApiState; 6] = [
    ApiState::Stopped,
    ApiState::Starting,
    ApiState::Running,
    ApiState::Paused,
    ApiState::Stopping,
    ApiState::Error,
];

fn each(out: &mut Exposition, name: &str, inventory: &Inventory, value: impl Fn(&VmRecord) -> u64) {
    let mut family = out.family(name);
    for (id, row) in &inventory.vms {
        family.count(&[id.as_str()], value(&row.value));
    }
}

/// What the kernel tells of the QEMUs.
fn processes(out: &mut Exposition, state: &HttpState, inventory: &Inventory) {
    let look = &state.settings.metrics.vm;
    let seen: Vec<(&str, ProcessUsage)> = inventory
        .vms
        .iter()
        .filter_map(|(id, row)| Some((id.as_str(), look(row.value.process.as_ref()?)?)))
        .collect();
    let mut family = out.family("vman_vm_cpu_seconds_total");
    for (id, used) in &seen {
        family.value(&[id], used.cpu.as_secs_f64());
    }
    let mut family = out.family("vman_vm_memory_rss_bytes");
    for (id, used) in &seen {
        family.count(&[id], used.rss_bytes);
    }
    let mut family = out.family("vman_vm_threads");
    for (id, used) in &seen {
        family.count(&[id], used.threads);
    }
    let storage = || {
        seen.iter()
            .filter_map(|(id, used)| Some((id, used.storage?)))
    };
    let mut family = out.family("vman_vm_storage_read_bytes_total");
    for (id, (read, _)) in storage() {
        family.count(&[id], read);
    }
    let mut family = out.family("vman_vm_storage_written_bytes_total");
    for (id, (_, written)) in storage() {
        family.count(&[id], written);
    }
}

/// What the guests said last.
fn guests(out: &mut Exposition, state: &HttpState) {
    let guests = (state.settings.metrics.guests)();
    let mut family = out.family("vman_vm_memory_balloon_bytes");
    for guest in &guests {
        if let Some(bytes) = guest.balloon {
            family.count(&[&guest.vm], bytes);
        }
    }
    type Figure = fn(&DiskUsage) -> u64;
    let figures: [(&str, Figure); 5] = [
        ("vman_vm_disk_read_bytes_total", |disk| disk.bytes.0),
        ("vman_vm_disk_written_bytes_total", |disk| disk.bytes.1),
        ("vman_vm_disk_read_requests_total", |disk| disk.requests.0),
        ("vman_vm_disk_write_requests_total", |disk| disk.requests.1),
        ("vman_vm_disk_flush_requests_total", |disk| disk.requests.2),
    ];
    for (name, figure) in figures {
        let mut family = out.family(name);
        for guest in &guests {
            for disk in &guest.disks {
                family.count(&[&guest.vm, &disk.disk], figure(disk));
            }
        }
    }
}

/// What went through the guests' cards: what the host receives from a TAP is what the guest has sent.
fn links(out: &mut Exposition, state: &HttpState, inventory: &Inventory) {
    let links = (state.settings.metrics.links)();
    let seen: Vec<(&str, String, LinkUsage)> = inventory
        .leases
        .values()
        .filter_map(|row| {
            let (vm, nic) = (&row.value.vm_id, row.value.nic);
            let used = links.get(TapName::of(vm, nic).as_str())?;
            Some((vm.as_str(), nic.to_string(), *used))
        })
        .collect();
    type Figure = fn(&LinkUsage) -> u64;
    let figures: [(&str, Figure); 4] = [
        ("vman_vm_network_transmit_bytes_total", |link| link.bytes.0),
        ("vman_vm_network_receive_bytes_total", |link| link.bytes.1),
        ("vman_vm_network_transmit_packets_total", |link| {
            link.packets.0
        }),
        ("vman_vm_network_receive_packets_total", |link| {
            link.packets.1
        }),
    ];
    for (name, figure) in figures {
        let mut family = out.family(name);
        for (vm, nic, used) in &seen {
            family.count(&[vm, nic], figure(used));
        }
    }
}

fn records(out: &mut Exposition, state: &HttpState, inventory: &Inventory) {
    let mut family = out.family("vman_records");
    for (kind, count) in [
        ("disk", inventory.disks.len()),
        ("image", inventory.images.len()),
        ("operation", inventory.operations.len()),
        ("template", inventory.templates.len()),
        ("vm", inventory.vms.len()),
    ] {
        family.count(&[kind], count as u64);
    }
    out.family("vman_quarantined_records")
        .count(&[], inventory.quarantined.len() as u64);
    let mut running: BTreeMap<&str, u64> = BTreeMap::new();
    for row in inventory.operations.values() {
        if row.value.status == OperationStatus::Running {
            *running.entry(row.value.kind.as_str()).or_default() += 1;
        }
    }
    let mut family = out.family("vman_operations_running");
    for (kind, count) in running {
        family.count(&[kind], count);
    }
    let meters = state.handles().store.meters();
    let mut family = out.family("vman_operation_duration_seconds");
    for ([kind, status], took) in meters.operations.all() {
        family.histogram(&[&kind, &status], &took);
    }
    let mut family = out.family("vman_vm_disk_errors_total");
    for ([vm, disk, reason], counter) in meters.disk_errors.all() {
        family.count(&[&vm, &disk, &reason], counter.get());
    }
    for (name, counted) in [
        ("vman_events_total", &meters.events),
        ("vman_vm_restarts_total", &meters.vm_restarts),
        ("vman_actor_restarts_total", &meters.actor_restarts),
    ] {
        let mut family = out.family(name);
        for ([label], counter) in counted.all() {
            family.count(&[&label], counter.get());
        }
    }
}

/// How the tree's actors are doing, by what they are.
fn actors(out: &mut Exposition, state: &HttpState) {
    let kinds = state.handles().store.meters().actors.all();
    let mut family = out.family("vman_actor_mailbox_depth");
    for ([actor], meter) in &kinds {
        family.count(&[actor], meter.waiting.get());
    }
    let mut family = out.family("vman_actor_handler_duration_seconds");
    for ([actor], meter) in &kinds {
        family.histogram(&[actor], &meter.handled);
    }
}

fn store(out: &mut Exposition, state: &HttpState, inventory: &Inventory) {
    let store = &state.handles().store;
    let meters = store.meters();
    out.family("vman_store_commit_duration_seconds")
        .histogram(&[], &meters.commit_time);
    out.family("vman_store_commit_changes")
        .histogram(&[], &meters.batch);
    out.family("vman_store_commit_failures_total")
        .count(&[], meters.failed_commits.get());
    out.family("vman_store_size_bytes").count(&[], store.size());
    out.family("vman_store_revision")
        .count(&[], inventory.revision.0);
}

/// With QEMUs and with clients.
fn conversations(out: &mut Exposition, state: &HttpState) {
    let mut family = out.family("vman_qmp_command_duration_seconds");
    for ([command, outcome], took) in state.settings.metrics.qmp.all() {
        family.histogram(&[&command, &outcome], &took);
    }
    let mut family = out.family("vman_http_requests_total");
    for ([method, route, status], counter) in state.meters.requests.all() {
        family.count(&[&method, &route, &status], counter.get());
    }
    let mut family = out.family("vman_http_request_duration_seconds");
    for ([method, route], took) in state.meters.times.all() {
        family.histogram(&[&method, &route], &took);
    }
    let most = state.settings.limits.max_inflight;
    let under_way = most.saturating_sub(state.inflight.available_permits());
    out.family("vman_http_requests_in_flight")
        .count(&[], under_way as u64);
}

#[allow(clippy::cast_precision_loss)]
fn observer(out: &mut Exposition, state: &HttpState) {
    let report = state.handles().observer.report();
    out.family("vman_observer_checks_total")
        .count(&[], report.checks);
    if let Some(at) = report.last_check_at {
        out.family("vman_observer_last_check_time_seconds")
            .value(&[], seconds(at));
        out.family("vman_observer_check_duration_seconds")
            .value(&[], report.last_duration_ms as f64 / 1e3);
    }
    let mut by_class: BTreeMap<&str, u64> = BTreeMap::new();
    for finding in &report.last_issues {
        *by_class.entry(&finding.issue_type).or_default() += 1;
    }
    let mut family = out.family("vman_observer_findings");
    for (class, count) in by_class {
        family.count(&[class], count);
    }
}
