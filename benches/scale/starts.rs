//! Many starts at once: on the simulated host beside readers, and of real QEMUs
//! beside the same QEMUs started bare.

use super::{
    fleet::{Fleet, MANY, name},
    report::Report,
};
use crate::{
    Times, arguments_of,
    load::{Load, Outcome, floor::Floor, request, run},
    start_bare, stop_bare,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

const SIMULATED: usize = 1_000;
/// Readers come at this pace, far below what the daemon can do: what is told is how
/// long one waits.
const READS_A_SECOND: f64 = 2_000.0;
const READERS: usize = 8;
const IDLE: Duration = Duration::from_secs(3);
const PIECE: Duration = Duration::from_millis(500);
/// Launching at once on the simulated host: many, so that much is under way.
const TOGETHER: usize = 64;
/// The bytes of a VM.
const BODY: usize = 800;
/// The median round is told: one may meet a neighbour's burst.
const ROUNDS: usize = 3;
/// What a tiny QEMU takes of the host's memory, in MiB, and what is left alone.
const QEMU_MIB: u64 = 64;
const SPARED_MIB: u64 = 4_096;
const MOST_QEMUS: u64 = 1_000;
const LAUNCHES: usize = 8;
/// Stands for the folder of a bare QEMU in its arguments.
const FOLDER: &str = "/FOLDER";
/// Between two looks at who is launching.
const LOOK: Duration = Duration::from_millis(2);

pub(crate) fn measure(report: &mut Report) {
    for askers in [READERS, MANY] {
        reads_meanwhile(report, askers);
    }
    real(report);
}

/// Readers at a fixed pace, idle and while all VMs start; beside them readers of a
/// bare server at the same moments, who tell what of it is the machine's.
fn reads_meanwhile(report: &mut Report, askers: usize) {
    let mut rounds: Vec<_> = (0..ROUNDS).map(|_| round(askers)).collect();
    rounds.sort_by(|a, b| a.ratio().total_cmp(&b.ratio()));
    let round = &rounds[ROUNDS / 2];
    report.row(
        format!("`GET /vms/{{id}}` while {SIMULATED} VMs start, {TOGETHER} together, asked for over {askers} connections"),
        format!(
            "p99 {:.2} ms, idle {:.2} ms: {:.2} times (a bare server at the same moments {:.2} and \
             {:.2} ms; {READS_A_SECOND:.0} reads/s of each; the starts took {:.1} s; median of {ROUNDS} rounds)",
            round.busy.ms(0.99),
            round.idle.ms(0.99),
            round.ratio(),
            round.bare_busy.ms(0.99),
            round.bare_idle.ms(0.99),
            round.took.as_secs_f64(),
        ),
        "2 times",
    );
}

struct Round {
    idle: Outcome,
    bare_idle: Outcome,
    busy: Outcome,
    bare_busy: Outcome,
    took: Duration,
}

impl Round {
    fn ratio(&self) -> f64 {
        self.busy.ms(0.99) / self.idle.ms(0.99)
    }
}

fn round(askers: usize) -> Round {
    let fleet = Fleet::simulated(&[("VMAN_MAX_LAUNCHES", &TOGETHER.to_string())]);
    fleet.fill(0, SIMULATED);
    let bare = Floor::answering(BODY);
    let (idle, bare_idle) = both(&fleet, &bare, IDLE);
    thread::scope(|scope| {
        let starting = scope.spawn(|| {
            let began = Instant::now();
            fleet.ask_to_start(SIMULATED, askers);
            fleet.wait_for_all(SIMULATED, "running");
            began.elapsed()
        });
        // In pieces, until the last has started.
        let (mut busy, mut bare_busy) = both(&fleet, &bare, PIECE);
        while !starting.is_finished() {
            let (more, bare_more) = both(&fleet, &bare, PIECE);
            busy.join(more);
            bare_busy.join(bare_more);
        }
        Round {
            idle,
            bare_idle,
            busy,
            bare_busy,
            took: starting.join().unwrap(),
        }
    })
}

/// Reads of the daemon and of the bare server at the same time.
fn both(fleet: &Fleet, bare: &Floor, length: Duration) -> (Outcome, Outcome) {
    let load = Load::open(READERS, length, READS_A_SECOND);
    thread::scope(|scope| {
        let beside = scope.spawn(|| {
            run(&bare.target, load, |out, _, _| {
                request(out, "GET", "/", "", b"");
            })
        });
        let ours = fleet.reads(load, |worker, n| {
            let n = usize::try_from(n).unwrap();
            format!("/vms/{}", name((worker * 131 + n) % SIMULATED))
        });
        (ours, beside.join().unwrap())
    })
}

/// As many as the memory that is free allows.
fn affordable() -> usize {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let free = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap();
    let fit = (free / 1_024).saturating_sub(SPARED_MIB) / QEMU_MIB;
    usize::try_from(fit.min(MOST_QEMUS)).unwrap()
}

fn real(report: &mut Report) {
    let count = affordable();
    let launches = LAUNCHES.to_string();
    let fleet = Fleet::start(&[("VMAN_MAX_LAUNCHES", &launches)]);
    let empty = fleet.rss_kib();
    fleet.fill(0, count);
    let watching = AtomicBool::new(true);
    let began = Instant::now();
    let most = thread::scope(|scope| {
        let watcher = scope.spawn(|| most_launching(&fleet, &watching));
        fleet.ask_to_start(count, MANY);
        fleet.wait_for_all(count, "running");
        watching.store(false, Ordering::Relaxed);
        watcher.join().unwrap()
    });
    let took = began.elapsed();
    let ours = launch_times(&fleet);
    let running = fleet.rss_kib();
    let arguments = arguments_of(fleet.daemon.pid_of(&name(0)), Path::new(FOLDER));
    let folder = tempfile::tempdir().unwrap();
    drop(fleet);
    let bare = bare_starts(&arguments, folder.path(), count);
    let ratio = ours.at(0.5) / bare.at(0.5);
    report.row(
        format!("{count} real QEMUs started at once, {LAUNCHES} together"),
        format!(
            "{:.1} s, none failed, at most {most} in `launching`; each {:.0} ms, bare {:.0} ms: {ratio:.2} times (p99 {:.0} and {:.0} ms)",
            took.as_secs_f64(), ours.at(0.5), bare.at(0.5), ours.at(0.99), bare.at(0.99)
        ),
        "never above the configured number; 1.5 times the floor",
    );
    report.row(
        "memory for each running VM (real QEMU)",
        format!("{} KiB", running.saturating_sub(empty) / count as u64),
        "64 KiB",
    );
}

/// The most VMs that were seen in `launching` at once.
fn most_launching(fleet: &Fleet, watching: &AtomicBool) -> usize {
    let mut connection = fleet.connect();
    let (mut ask, mut most) = (Vec::new(), 0);
    fleet.get(&mut ask, "/vms?state=starting");
    while watching.load(Ordering::Relaxed) {
        connection.exchange(&ask).unwrap();
        let all: Value = serde_json::from_slice(connection.body()).unwrap();
        let launching = all.as_array().unwrap().iter();
        most = most.max(launching.filter(|vm| vm["phase"] == "launching").count());
        thread::sleep(LOOK);
    }
    most
}

/// How long each VM was in `launching`, from the event log.
fn launch_times(fleet: &Fleet) -> Times {
    let (mut since, mut begun, mut times) = (0, BTreeMap::new(), Times::default());
    loop {
        let events = fleet.value(&format!("/events?since={since}&limit=1000"));
        let events = events.as_array().unwrap();
        let Some(last) = events.last() else {
            return times;
        };
        since = last["revision"].as_u64().unwrap();
        for event in events {
            let id = event["vm_id"].as_str().unwrap_or_default().to_owned();
            let at: jiff::Timestamp = event["at"].as_str().unwrap().parse().unwrap();
            if event["to"] == "launching" {
                begun.insert(id, at);
            } else if event["to"] == "running"
                && let Some(began) = begun.remove(&id)
            {
                let took = at.duration_since(began);
                times.add(took.unsigned_abs());
            }
        }
    }
}

/// The same QEMUs without a daemon, as many together; each lives until all are up.
fn bare_starts(arguments: &[String], folder: &Path, count: usize) -> Times {
    let next = AtomicUsize::new(0);
    let started: Vec<_> = thread::scope(|scope| {
        let work = || {
            let mut mine = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return mine;
                }
                let own = folder.join(n.to_string());
                fs::create_dir(&own).unwrap();
                let word = |word: &String| word.replace(FOLDER, own.to_str().unwrap());
                let arguments: Vec<_> = arguments.iter().map(word).collect();
                mine.push(start_bare(&arguments, &own));
            }
        };
        let workers: Vec<_> = (0..LAUNCHES).map(|_| scope.spawn(work)).collect();
        let all = workers.into_iter().map(|worker| worker.join().unwrap());
        all.flatten().collect()
    });
    let mut times = Times::default();
    for (bare, took) in started {
        times.add(took);
        stop_bare(bare);
    }
    times
}
