//! What things cost with 10, 100, 1,000 and 10,000 VMs. Costs are CPU time of the
//! daemon where there is a choice: it says the same on a busy machine.

use super::{
    fleet::{Fleet, MANY, name, new_vm},
    plot::{Series, draw},
    report::Report,
};
use std::{fs, path::Path, time::Duration};

const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];
const READS: usize = 500;
const LISTS: usize = 20;
const WRITES: usize = 200;
const TICKS: u32 = 5;
const RESTARTS: usize = 3;

/// What is followed, in the order of [`at`]'s answer.
const FOLLOWED: [(&str, &str); 8] = [
    ("GET /vms", "µs of CPU"),
    ("GET /vms?limit=100", "µs of CPU"),
    ("GET /vms/{id}", "µs of CPU"),
    ("POST /vms", "µs of CPU"),
    ("start", "µs of CPU"),
    ("observer's check", "µs of CPU"),
    ("memory, all of the daemon's", "MiB"),
    ("daemon's start", "ms"),
];

pub(crate) fn measure(report: &mut Report) {
    let figures: Vec<[f64; FOLLOWED.len()]> = SIZES.iter().map(|size| at(*size)).collect();
    let series: Vec<_> = FOLLOWED
        .iter()
        .enumerate()
        .map(|(index, (what, unit))| Series {
            what,
            unit,
            points: SIZES
                .iter()
                .zip(&figures)
                .map(|(size, at)| (*size, at[index]))
                .collect(),
        })
        .collect();
    report.growth(&series);
    if std::env::var_os("VMAN_BENCH_WRITE").is_some() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/scale.svg");
        fs::write(file, draw(&series)).unwrap();
    }
}

/// All figures with so many VMs.
fn at(size: usize) -> [f64; FOLLOWED.len()] {
    let mut fleet = Fleet::simulated(&[]);
    fleet.fill(0, size);
    let mut connection = fleet.connect();
    // A revision for each list: what is told is the cost of writing it, not of
    // giving the same again.
    let touch = |connection: &mut crate::load::Connection, n: usize| {
        let mut out = Vec::new();
        let body = format!("{{\"name\":\"touch{n}\",\"cpu_count\":1,\"ram_mib\":64}}");
        fleet.post(&mut out, "/templates", &body);
        assert_eq!(connection.exchange(&out).unwrap(), 201);
    };
    let mut gets = |fleet: &Fleet, path: &dyn Fn(usize) -> String, count: usize, touched: usize| {
        let mut spent = Duration::ZERO;
        for n in 0..count {
            if touched > 0 {
                touch(&mut connection, touched + n);
            }
            let mut out = Vec::new();
            fleet.get(&mut out, &path(n));
            spent += fleet.cost(|| assert_eq!(connection.exchange(&out).unwrap(), 200));
        }
        micros(spent, count)
    };
    let list = gets(&fleet, &|_| "/vms".to_owned(), LISTS, 1_000);
    let page = gets(&fleet, &|_| "/vms?limit=100".to_owned(), LISTS, 2_000);
    let get = gets(
        &fleet,
        &|n| format!("/vms/{}", name(n * 7 % size)),
        READS,
        0,
    );
    let post = micros(
        fleet.cost(|| {
            let mut connection = fleet.connect();
            for n in 0..WRITES {
                let mut out = Vec::new();
                fleet.post(&mut out, "/vms", &new_vm(&format!("more{n}")));
                assert_eq!(connection.exchange(&out).unwrap(), 201);
            }
        }),
        WRITES,
    );
    let started = size.min(WRITES);
    let start = micros(
        fleet.cost(|| {
            fleet.ask_to_start(started, MANY);
            fleet.wait_for_all(started, "running");
        }),
        started,
    );
    fleet
        .daemon
        .post("/observer/check", &serde_json::Value::Null)
        .expect(200);
    let tick = fleet.cost(|| {
        for _ in 0..TICKS {
            fleet
                .daemon
                .post("/observer/check", &serde_json::Value::Null)
                .expect(200);
        }
    });
    let memory = fleet.rss_kib() / 1_024;
    let mut ready: Vec<_> = (0..RESTARTS).map(|_| fleet.restart()).collect();
    ready.sort();
    #[allow(clippy::cast_precision_loss)]
    let memory = memory as f64;
    [
        list,
        page,
        get,
        post,
        start,
        micros(tick, TICKS as usize),
        memory,
        ready[RESTARTS / 2].as_secs_f64() * 1_000.0,
    ]
}

fn micros(spent: Duration, count: usize) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let count = count as f64;
    spent.as_secs_f64() * 1e6 / count
}
