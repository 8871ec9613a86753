//! What the daemon holds, and how it comes back with 10,000 VMs.

use super::{
    fleet::{Fleet, MANY},
    report::Report,
};

const DEFINED: usize = 10_000;
const RUNNING: usize = 1_000;
const RESTARTS: usize = 5;

pub(crate) fn measure(report: &mut Report) {
    let mut fleet = Fleet::simulated(&[]);
    let empty = fleet.rss_kib();
    report.row(
        "daemon's memory, empty",
        format!("{:.1} MiB", mib(empty)),
        "20 MiB",
    );
    fleet.fill(0, DEFINED);
    let defined = fleet.rss_kib();
    fleet.daemon.get("/vms");
    let listed = fleet.rss_kib();
    let each = |more: u64, count: usize| format!("{:.1} KiB", more as f64 / count as f64);
    let mut ready: Vec<_> = (0..RESTARTS).map(|_| fleet.restart()).collect();
    ready.sort();
    let back = fleet.rss_kib();
    report.row(
        "memory for each defined VM",
        format!(
            "{} ({} once all were listed, {} after a restart)",
            each(defined - empty, DEFINED),
            each(listed - empty, DEFINED),
            each(back.saturating_sub(empty), DEFINED)
        ),
        "8 KiB",
    );
    report.row(
        format!("exec to `/ready` with {DEFINED} defined VMs"),
        format!("{:.0} ms", ready[RESTARTS / 2].as_secs_f64() * 1_000.0),
        "500 ms",
    );
    fleet.ask_to_start(RUNNING, MANY);
    fleet.wait_for_all(RUNNING, "running");
    report.row(
        "memory for each running VM (simulated QEMU, which is in the daemon)",
        each(fleet.rss_kib().saturating_sub(back), RUNNING),
        "64 KiB",
    );
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1_024.0
}
