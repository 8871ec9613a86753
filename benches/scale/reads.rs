//! GETs: one VM, lists, pages, with and without what the client has already.

use super::{
    fleet::{Fleet, check, name},
    report::Report,
};
use crate::load::{Load, Outcome, Target, floor::Floor, request, run};
use std::{thread, time::Duration};

const CONNECTIONS: usize = 8;
/// How long each half of a pair is measured, and how often in turn.
const LENGTH: Duration = Duration::from_millis(1_500);
const TURNS: usize = 3;
/// Who ask for all VMs without pause, and the pace of those who ask for one meanwhile.
const LISTERS: usize = 4;
const READS_A_SECOND: f64 = 2_000.0;

/// The best of the turns: a neighbour's noise only takes away.
struct Best(Option<Outcome>);

impl Best {
    fn take(&mut self, outcome: Outcome) {
        if self
            .0
            .as_ref()
            .is_none_or(|best| outcome.rate() > best.rate())
        {
            self.0 = Some(outcome);
        }
    }

    fn get(&self) -> &Outcome {
        self.0.as_ref().unwrap()
    }
}

/// Measures a GET and its floor in turn, and tells both.
fn beside_floor(
    report: &mut Report,
    what: &str,
    aim: &'static str,
    fleet: &Fleet,
    path: impl Fn(usize, u64) -> String + Sync,
) {
    let load = Load::closed(CONNECTIONS, LENGTH);
    let bytes = fleet.reads(Load::closed(1, LENGTH / 10), &path).body_bytes;
    let bare = Floor::answering(bytes);
    let [mut ours, mut floor] = [Best(None), Best(None)];
    for _ in 0..TURNS {
        ours.take(fleet.reads(load, &path));
        let outcome = run(&bare.target, load, |out, _, _| {
            request(out, "GET", "/", "", b"");
        });
        check(&outcome);
        floor.take(outcome);
    }
    let (ours, floor) = (ours.get(), floor.get());
    let cost = fleet_cost(fleet, &path);
    let figure = format!(
        "{:.0}/s, p99 {:.2} ms ({} bytes; {:.2} of the floor's {:.0}/s; {cost:.1} µs of CPU)",
        ours.rate(),
        ours.ms(0.99),
        bytes,
        ours.rate() / floor.rate(),
        floor.rate(),
    );
    report.row(what, figure, aim);
}

/// CPU of the daemon for one answer, in microseconds.
fn fleet_cost(fleet: &Fleet, path: &(impl Fn(usize, u64) -> String + Sync)) -> f64 {
    let mut answers = 0;
    let spent = fleet.cost(|| {
        let outcome = fleet.reads(Load::closed(CONNECTIONS, LENGTH), path);
        answers = outcome.answers;
    });
    #[allow(clippy::cast_precision_loss)]
    let answers = answers as f64;
    spent.as_secs_f64() * 1e6 / answers
}

pub(crate) fn measure(report: &mut Report) {
    let fleet = Fleet::simulated(&[]);
    fleet.fill(0, 100);
    let one = |all: usize| {
        move |worker: usize, n: u64| {
            let n = usize::try_from(n).unwrap();
            format!("/vms/{}", name((worker * 1_301 + n * 17) % all))
        }
    };
    let get = "`GET /vms/{id}`";
    let aim = "40,000/s, p99 below 1 ms";
    beside_floor(report, &format!("{get} of 100"), aim, &fleet, one(100));
    over_the_socket(
        report,
        &format!("{get} of 100, UNIX socket"),
        &fleet,
        one(100),
    );
    let list = |_: usize, _: u64| "/vms".to_owned();
    let aim = "15,000/s, p99 below 3 ms";
    beside_floor(report, "`GET /vms`, 100 VMs", aim, &fleet, list);
    unchanged(report, &fleet);
    let page = |_: usize, _: u64| "/vms?limit=100".to_owned();
    beside_floor(report, "`GET /vms?limit=100` of 100", "", &fleet, page);
    fleet.fill(100, 10_000);
    let aim = "1.2 times the same of 100";
    beside_floor(report, "`GET /vms?limit=100` of 10,000", aim, &fleet, page);
    beside_floor(report, &format!("{get} of 10,000"), "", &fleet, one(10_000));
    beside_floor(report, "`GET /vms`, 10,000 VMs", "", &fleet, list);
    beside_whole_lists(report, &fleet, one(10_000));
}

/// Who asks for one VM waits for those who ask for all of them.
fn beside_whole_lists(
    report: &mut Report,
    fleet: &Fleet,
    path: impl Fn(usize, u64) -> String + Sync,
) {
    let one = Load::open(CONNECTIONS, LENGTH * 2, READS_A_SECOND);
    let idle = fleet.reads(one, &path);
    let busy = thread::scope(|scope| {
        let longer = Load::closed(LISTERS, one.length + LENGTH);
        scope.spawn(move || fleet.reads(longer, |_, _| "/vms".to_owned()));
        // They have begun.
        thread::sleep(LENGTH / 3);
        fleet.reads(one, &path)
    });
    let what = format!("`GET /vms/{{id}}` while {LISTERS} connections ask for all 10,000 VMs");
    let figure = format!(
        "p99 {:.2} ms, p50 {:.2} ms; idle {:.2} and {:.2} ms ({READS_A_SECOND:.0} reads/s)",
        busy.ms(0.99),
        busy.ms(0.5),
        idle.ms(0.99),
        idle.ms(0.5)
    );
    report.row(what, figure, "");
}

fn over_the_socket(
    report: &mut Report,
    what: &str,
    fleet: &Fleet,
    path: impl Fn(usize, u64) -> String + Sync,
) {
    let target = Target::Unix(fleet.daemon.socket());
    let mut best = Best(None);
    for _ in 0..TURNS {
        let outcome = run(
            &target,
            Load::closed(CONNECTIONS, LENGTH),
            |out, worker, n| {
                fleet.get(out, &path(worker, n));
            },
        );
        check(&outcome);
        best.take(outcome);
    }
    let ours = best.get();
    let figure = format!("{:.0}/s, p99 {:.2} ms", ours.rate(), ours.ms(0.99));
    report.row(what, figure, "");
}

/// A list asked for by who has it already.
fn unchanged(report: &mut Report, fleet: &Fleet) {
    let headers = fleet.daemon.call("GET", "/vms", &serde_json::Value::Null);
    let tag = headers.header("etag").unwrap().to_owned();
    let headers = format!("{}If-None-Match: {tag}\r\n", fleet.headers);
    let load = Load::closed(CONNECTIONS, LENGTH).answered(304);
    let mut best = Best(None);
    for _ in 0..TURNS {
        let outcome = run(&fleet.target, load, |out, _, _| {
            request(out, "GET", "/vms", &headers, b"");
        });
        check(&outcome);
        best.take(outcome);
    }
    let ours = best.get();
    let figure = format!("{:.0}/s, p99 {:.2} ms", ours.rate(), ours.ms(0.99));
    report.row("`GET /vms`, 100 VMs, unchanged (304)", figure, "");
}
