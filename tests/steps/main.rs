//! The crash matrix on real QEMU: a daemon dies at each step that an operation
//! passes, and the next one at each step that its recovery passes. Then the
//! oracle holds, what a user sees is as before or as asked for, and the same
//! request under the same key makes it so. Needs the feature `failpoints`.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod injected;
mod operations;
mod stalled;
#[path = "../support/mod.rs"]
mod support;

use operations::{OPERATIONS, Operation, daemon_for, summary};
use std::{
    collections::BTreeSet,
    fs,
    panic::{self, AssertUnwindSafe},
    time::{Duration, Instant},
};
use support::{
    can_run,
    daemon::{Daemon, PATIENCE},
    sight, wait_for,
};
use vman_actors::{
    failpoint::{HOST_POINTS, POINTS},
    oracle::{Promised, Seen, untouched},
};

/// What happens every few seconds and belongs to no operation.
const BY_THE_CLOCK: [&str; 3] = ["hypervisor.trim-logs", "folders.empty-trash", "store.event"];
/// The key under which each operation is asked for.
const FIRST_KEY: &str = "the-same-key";
/// One recovery's step in so many is where `make test` dies again.
const SELDOM: usize = 40;

/// One daemon that has what an operation needs.
struct Case {
    daemon: Daemon,
    before: BTreeSet<String>,
    seen: Seen,
}

/// What an operation leads to where nothing fails.
struct Known {
    passed: Vec<String>,
    after: BTreeSet<String>,
}

fn point(step: &str) -> &str {
    step.rsplit_once('.').map_or(step, |(point, _)| point)
}

fn of_the_operation(steps: &str) -> Vec<String> {
    let lines = steps
        .lines()
        .filter(|step| !BY_THE_CLOCK.contains(&point(step)));
    lines.map(str::to_owned).collect()
}

/// Whatever the daemon does after its answer, it has begun by now.
fn aftermath() {
    std::thread::park_timeout(Duration::from_millis(150));
}

impl Case {
    fn new(operation: &Operation) -> Self {
        let daemon = daemon_for(operation);
        let seen = sight::judge(&daemon, &Promised::default(), operation.name);
        let before = summary(&daemon);
        Self {
            daemon,
            before,
            seen,
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.daemon.folder().join("steps")).unwrap_or_default()
    }

    /// Another life, which writes down its steps or dies at one.
    fn next_life(&mut self, until: Option<&str>) {
        self.daemon.kill();
        let log = self.daemon.folder().join("steps");
        let _ = fs::remove_file(&log);
        self.daemon.set("FAILPOINT", until.unwrap_or_default());
        self.daemon.set("FAILPOINT_LOG", log.to_str().unwrap());
        self.daemon.spawn();
    }

    /// Waits until the daemon is ready, or has died. Whether it lives.
    fn up(&mut self) -> bool {
        wait_for("the daemon to be ready or dead", PATIENCE, || {
            if self.daemon.has_ended() {
                return Some(false);
            }
            let ready = self
                .daemon
                .try_call("GET", "/ready", &serde_json::Value::Null);
            ready
                .is_ok_and(|answer| answer.status == 200)
                .then_some(true)
        })
    }

    fn judge(&self, operation: &Operation, known: &Known, promised: bool, cut: &str) {
        let daemon = &self.daemon;
        let seen = sight::judge(daemon, &Promised::default(), cut);
        let broken = untouched(&self.seen, &seen, &["keeper"]);
        assert!(broken.is_empty(), "{cut}: {broken:#?}");
        let (now, before, after) = (summary(daemon), &self.before, &known.after);
        assert!(
            now == *after || (!promised && now == *before),
            "{cut}: half-made (answered: {promised})\nbefore {before:#?}\nafter {after:#?}\nnow {now:#?}"
        );
        self.ask_again(operation, known, cut);
    }

    /// The same key tells what became of it; if that was nothing, another makes
    /// it so.
    fn ask_again(&self, operation: &Operation, known: &Known, cut: &str) {
        let daemon = &self.daemon;
        let mut again = wait_for(cut, PATIENCE, || {
            let answer = operation.ask(daemon, FIRST_KEY).unwrap();
            // An actor is being restarted: later.
            (answer.status != 503).then_some(answer)
        });
        let failed = again.status == 200 && again.json()["status"] == "failed";
        if failed || again.status == 409 {
            let mut keys = 0..;
            again = wait_for(cut, PATIENCE, || {
                let key = format!("another-key-{}", keys.next()?);
                let answer = operation.ask(daemon, &key).unwrap();
                // So is a VM whose QEMU is looked for.
                let later = answer.status == 503
                    || (answer.status == 409 && answer.json()["code"] == "vm_recovering");
                (!later).then_some(answer)
            });
        }
        let text = String::from_utf8_lossy(&again.body).into_owned();
        assert!(again.status < 500, "{cut}: asked again: {text}");
        sight::judge(daemon, &Promised::default(), cut);
        assert_eq!(
            summary(daemon),
            known.after,
            "{cut}: asked again: {} {text}",
            again.status
        );
    }
}

/// Where nothing fails.
fn undisturbed(operation: &Operation) -> Known {
    let mut case = Case::new(operation);
    case.next_life(None);
    assert!(case.up(), "{}", operation.name);
    aftermath();
    let before = case.log().len();
    let answer = operation.ask(&case.daemon, FIRST_KEY).unwrap();
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(answer.status < 300, "{}: {text}", operation.name);
    sight::judge(&case.daemon, &Promised::default(), operation.name);
    aftermath();
    let passed = of_the_operation(&case.log()[before..]);
    let after = summary(&case.daemon);
    Known { passed, after }
}

/// Dies at `first`, and in the recovery from it at `second`. Answers what the
/// last life passed until it was ready; none where a step was not passed, since
/// two commits became one.
fn cut(
    operation: &Operation,
    known: &Known,
    first: &str,
    second: Option<&str>,
) -> Option<Vec<String>> {
    let name = format!("{} cut at {first} and {second:?}", operation.name);
    let mut case = Case::new(operation);
    case.next_life(Some(first));
    let mut promised = false;
    if case.up() {
        let answer = operation.ask(&case.daemon, FIRST_KEY);
        promised = answer.is_ok_and(|answer| matches!(answer.status, 200 | 201 | 204));
        let until = Instant::now() + Duration::from_secs(5);
        while !case.daemon.has_ended() && Instant::now() < until {
            aftermath();
        }
    }
    let died = case.daemon.has_ended();
    if let Some(second) = second {
        case.next_life(Some(second));
        if case.up() {
            let until = Instant::now() + Duration::from_secs(2);
            while !case.daemon.has_ended() && Instant::now() < until {
                aftermath();
            }
        }
    }
    let died = died && (second.is_none() || case.daemon.has_ended());
    case.next_life(None);
    assert!(case.up(), "{name}");
    aftermath();
    let passed = of_the_operation(&case.log());
    case.judge(operation, known, promised, &name);
    died.then_some(passed)
}

/// Writes are gathered as they come, so that a step is not passed each time: it
/// is waited for once more.
fn cut_if_passed(
    operation: &Operation,
    known: &Known,
    first: &str,
    second: Option<&str>,
) -> Option<Vec<String>> {
    (0..2).find_map(|_| cut(operation, known, first, second))
}

/// What a run came to.
#[derive(Default)]
struct Tally {
    deaths: usize,
    doubles: usize,
    missed: usize,
    broken: Vec<String>,
    passed: BTreeSet<String>,
}

impl Tally {
    /// Dies as [`cut`] says and notes what came of it; answers what the last life passed. One that breaks
    /// something does not hide the others.
    fn cut(
        &mut self,
        operation: &Operation,
        known: &Known,
        first: &str,
        second: Option<&str>,
    ) -> Vec<String> {
        let cut = || cut_if_passed(operation, known, first, second);
        match panic::catch_unwind(AssertUnwindSafe(cut)) {
            Ok(Some(passed)) => {
                match second {
                    Some(_) => self.doubles += 1,
                    None => self.deaths += 1,
                }
                self.pass(&passed);
                return passed;
            }
            Ok(None) => self.missed += 1,
            Err(_) => {
                let told = format!("{} cut at {first} and {second:?}", operation.name);
                self.broken.push(told);
            }
        }
        Vec::new()
    }

    fn pass(&mut self, steps: &[String]) {
        self.passed
            .extend(steps.iter().map(|step| point(step).to_owned()));
    }
}

/// Where a step stands: the how manyeth it is, and among those of its operation.
#[derive(Clone, Copy)]
struct Place {
    number: usize,
    within: usize,
    of: usize,
}

impl Place {
    /// Whether `make test` dies here: once in each operation.
    fn is_chosen(self) -> bool {
        self.within == (self.number - self.within) % self.of
    }
}

/// Goes through the steps of all operations that `first` takes, and through
/// those of the recoveries from them that `second` takes.
fn walk(first: impl Fn(Place) -> bool, second: impl Fn(Place) -> bool) -> Tally {
    let (mut tally, mut singles, mut doubles) = (Tally::default(), 0, 0);
    let wanted = std::env::var("VMAN_TEST_OPERATION").ok();
    let is_wanted = |operation: &&Operation| {
        let wanted = wanted.as_deref();
        wanted.is_none_or(|name| name == operation.name)
    };
    for operation in OPERATIONS.iter().filter(is_wanted) {
        let began = Instant::now();
        let Ok(known) = panic::catch_unwind(|| undisturbed(operation)) else {
            tally.broken.push(operation.name.to_owned());
            continue;
        };
        tally.pass(&known.passed);
        let of = known.passed.len();
        for (within, step) in known.passed.iter().enumerate() {
            let number = singles + within;
            if !first(Place { number, within, of }) {
                continue;
            }
            let recovery = tally.cut(operation, &known, step, None);
            let of = recovery.len();
            for (within, again) in recovery.iter().enumerate() {
                let number = doubles + within;
                if second(Place { number, within, of }) {
                    tally.cut(operation, &known, step, Some(again));
                }
            }
            doubles += of;
        }
        singles += of;
        println!("{}: {of} steps, {:?}", operation.name, began.elapsed());
    }
    let Tally {
        deaths,
        doubles,
        missed,
        broken,
        ..
    } = &tally;
    println!(
        "{deaths} deaths, {doubles} with a second one in the recovery, {missed} steps not passed again"
    );
    assert!(
        broken.is_empty(),
        "{} broke something, see above: {broken:#?}",
        broken.len()
    );
    // On a busy host more commits become one.
    assert!(
        missed * 10 <= deaths + doubles,
        "too many steps were not passed again"
    );
    tally
}

#[test]
fn chosen_steps_of_every_operation_lead_to_its_end_on_real_qemu() {
    if can_run("chosen_steps_of_every_operation_lead_to_its_end_on_real_qemu") {
        walk(Place::is_chosen, |place| place.number % SELDOM == 0);
    }
}

/// `VMAN_TEST_SHARD=2/8` is the second of eight shares.
fn share() -> (usize, usize) {
    let text = std::env::var("VMAN_TEST_SHARD").unwrap_or_else(|_| "1/1".to_owned());
    let (which, of) = text.split_once('/').expect("VMAN_TEST_SHARD is a/b");
    (which.parse().unwrap(), of.parse().unwrap())
}

#[test]
#[ignore = "takes half an hour; part of make test-long"]
fn every_step_of_every_operation_leads_to_its_end_on_real_qemu() {
    if !can_run("every_step_of_every_operation_leads_to_its_end_on_real_qemu") {
        return;
    }
    let (which, of) = share();
    let tally = walk(|place| place.number % of == which % of, |_| false);
    if of == 1 && std::env::var_os("VMAN_TEST_OPERATION").is_none() {
        let passed = |point: &&&str| !tally.passed.contains(**point);
        let missed: Vec<_> = HOST_POINTS.iter().filter(passed).collect();
        assert!(missed.is_empty(), "never passed: {missed:?}");
    }
    let listed = |step: &&String| !POINTS.iter().chain(HOST_POINTS).any(|point| point == *step);
    let unlisted: Vec<_> = tally.passed.iter().filter(listed).collect();
    assert!(unlisted.is_empty(), "not in the list: {unlisted:?}");
}

#[test]
#[ignore = "takes hours; part of make test-long, in shares"]
fn every_step_of_every_recovery_leads_to_the_same_end_on_real_qemu() {
    if can_run("every_step_of_every_recovery_leads_to_the_same_end_on_real_qemu") {
        let (which, of) = share();
        walk(|_| true, |place| place.number % of == which % of);
    }
}
