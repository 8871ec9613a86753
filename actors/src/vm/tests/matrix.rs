//! The crash matrix on the simulated host: each operation is cut at each step it
//! passes, and the recovery from that at each step it passes. Then the oracle
//! holds, what a user sees is as it was before or as it was asked for, and
//! asking once more makes it so.

use super::{
    daemon::{Daemon, alone},
    operations::{Operation, summary},
    trial::{Pass, Trial},
};
use crate::{
    failpoint::{POINTS, Side},
    oracle::{Promised, Seen, untouched},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// How long what follows from an operation may take to begin: the network is
/// settled a moment later.
const AFTERMATH: Duration = Duration::from_millis(600);
/// The simulated hosts at once.
const WORKERS: usize = 4;

/// A daemon that has what an operation needs, and one life of it watched.
struct Case {
    operation: Operation,
    daemon: Daemon,
    before: BTreeSet<String>,
    seen: Seen,
}

/// What an operation leads to where nothing fails.
struct Known {
    passed: Vec<Pass>,
    after: BTreeSet<String>,
}

impl Case {
    /// The daemon lives its second life, so that it is one as any other.
    async fn new(operation: Operation) -> Self {
        let mut daemon = Daemon::start_in_step(operation.host()).await;
        operation.given(&daemon).await;
        daemon.trial = Some(Trial::watch(&daemon.host));
        daemon.stop_and_start().await;
        daemon.until("everything rests", || daemon.rests()).await;
        daemon.pass(AFTERMATH).await;
        let (before, seen) = (summary(&daemon), super::sight::seen(&daemon));
        Self {
            operation,
            daemon,
            before,
            seen,
        }
    }

    fn trial(&self) -> &Trial {
        self.daemon.trial.as_ref().expect("every life is watched")
    }

    /// Asks, and waits until all that follows has come to an end, or to the
    /// daemon's. Whether a yes was heard.
    async fn run(&self) -> bool {
        let (on, host) = (self.daemon.on().clone(), self.daemon.host.clone());
        let asking = tokio::spawn(self.operation.ask(on, host));
        let dead = || self.trial().is_dead();
        let what = format!("{:?} ends", self.operation);
        let ended = || asking.is_finished() && self.daemon.rests();
        self.daemon.until(&what, || dead() || ended()).await;
        let until = tokio::time::Instant::now() + AFTERMATH;
        let late = || tokio::time::Instant::now() >= until && self.daemon.rests();
        self.daemon.until(&what, || dead() || late()).await;
        asking.is_finished() && asking.await.expect("to ask does not panic")
    }

    /// Another life, that ends at this pass. Whether it came to it.
    async fn live(&mut self, until: Option<Pass>) -> bool {
        let host = &self.daemon.host;
        self.daemon.trial = Some(match until {
            Some(pass) => Trial::until(host, pass),
            None => Trial::watch(host),
        });
        self.daemon.kill_and_start().await;
        if !self.daemon.is_up() {
            return false;
        }
        let dead = || self.trial().is_dead();
        self.daemon
            .until("recovery ends", || dead() || self.daemon.rests())
            .await;
        let until = tokio::time::Instant::now() + AFTERMATH;
        let late = || tokio::time::Instant::now() >= until;
        self.daemon
            .until("recovery ends", || dead() || late())
            .await;
        !dead()
    }

    /// What must hold after the last death.
    async fn judge(&self, heard: bool, known: &Known, cut: &str) {
        let daemon = &self.daemon;
        daemon.oracle_on(&Promised::default()).await;
        let broken = untouched(&self.seen, &super::sight::seen(daemon), &["keeper"]);
        assert!(broken.is_empty(), "{cut}: {broken:#?}");
        let now = summary(daemon);
        let (before, after) = (&self.before, &known.after);
        let promised = heard && self.operation.answers_when_done();
        let whole = now == *after || (!promised && now == *before);
        assert!(
            whole,
            "{cut}: half-made (answered: {heard})\nbefore {before:#?}\nafter {after:#?}\nnow {now:#?}"
        );
        self.run().await;
        daemon.oracle_on(&Promised::default()).await;
        let again = summary(daemon);
        assert_eq!(again, *after, "{cut}: asked for once more");
    }
}

/// Where nothing fails.
async fn undisturbed(operation: Operation) -> Known {
    let case = Case::new(operation).await;
    case.trial().begin(None);
    assert!(case.run().await, "{operation:?} was refused");
    let passed = case.trial().passed();
    case.daemon.oracle().await;
    let after = summary(&case.daemon);
    Known { passed, after }
}

/// Dies at `first`, and in the recovery from it at `second`. Answers what the
/// last life passed.
async fn cut(operation: Operation, known: &Known, first: Pass, second: Option<Pass>) -> Vec<Pass> {
    let mut name = format!("{operation:?} cut at {}#{}", first.0, first.1);
    let mut case = Case::new(operation).await;
    case.trial().begin(Some(first));
    let heard = case.run().await;
    assert!(case.trial().is_dead(), "{name}: it was not passed");
    if let Some(second) = second {
        name = format!("{name} and {}#{}", second.0, second.1);
        assert!(!case.live(Some(second)).await, "{name}: it was not passed");
    }
    assert!(case.live(None).await, "{name}");
    let passed = case.trial().passed();
    case.judge(heard, known, &name).await;
    passed
}

/// All that is known of one operation.
#[derive(Default)]
struct Row {
    singles: usize,
    doubles: usize,
    passed: BTreeSet<Pass>,
    failed: Vec<String>,
}

fn row(operation: Operation) -> Row {
    let mut row = Row::default();
    let known = Mutex::new(None);
    alone(async { *known.lock().unwrap() = Some(undisturbed(operation).await) });
    let known = known.into_inner().unwrap().expect("it was found out");
    for first in &known.passed {
        let recovery = Mutex::new(Vec::new());
        let single = std::panic::AssertUnwindSafe(|| {
            alone(async { *recovery.lock().unwrap() = cut(operation, &known, *first, None).await });
        });
        row.singles += 1;
        if std::panic::catch_unwind(single).is_err() {
            row.failed
                .push(format!("{operation:?} {}#{}", first.0, first.1));
            continue;
        }
        for second in recovery.into_inner().unwrap() {
            row.doubles += 1;
            let double = std::panic::AssertUnwindSafe(|| {
                alone(async { drop(cut(operation, &known, *first, Some(second)).await) });
            });
            if std::panic::catch_unwind(double).is_err() {
                let (a, b) = (first, second);
                row.failed
                    .push(format!("{operation:?} {}#{} {}#{}", a.0, a.1, b.0, b.1));
            }
            row.passed.insert(second);
        }
    }
    row.passed.extend(known.passed);
    row
}

#[test]
fn every_operation_cut_at_every_step_and_its_recovery_cut_too_comes_to_its_end() {
    let (next, rows) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(operation) = Operation::ALL
                    .get(next.fetch_add(1, Ordering::SeqCst))
                    .copied()
                {
                    let row = row(operation);
                    println!("{operation:?}: {} + {}", row.singles, row.doubles);
                    rows.lock().unwrap().insert(operation, row);
                }
            });
        }
    });
    let rows = rows.into_inner().unwrap();
    let failed: Vec<_> = rows.values().flat_map(|row| &row.failed).collect();
    assert!(failed.is_empty(), "{} failed: {failed:#?}", failed.len());
    assert_eq!(
        rows.len(),
        Operation::ALL.len(),
        "an operation went wrong undisturbed"
    );
    let steps = rows.values().flat_map(|row| &row.passed);
    let passed: BTreeSet<_> = steps.map(|(step, _)| (step.point, step.side)).collect();
    let both = |point: &&'static str| [(*point, Side::Before), (*point, Side::After)];
    let listed: BTreeSet<_> = POINTS.iter().flat_map(both).collect();
    let missed: Vec<_> = listed.difference(&passed).collect();
    let unlisted: Vec<_> = passed.difference(&listed).collect();
    assert!(
        missed.is_empty() && unlisted.is_empty(),
        "never passed: {missed:?}, not in the list: {unlisted:?}"
    );
    let (singles, doubles) = rows.values().fold((0, 0), |sum, row| {
        (sum.0 + row.singles, sum.1 + row.doubles)
    });
    let told = format!(
        "{} operations, {} points: {singles} deaths, and {doubles} with a second one in the recovery",
        Operation::ALL.len(),
        POINTS.len(),
    );
    println!("{told}");
    assert!(
        PAGE.lines().any(|line| agree(line, &told)),
        "tests/README.md does not tell: {told}"
    );
}

/// What the tests' page says.
const PAGE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/README.md"));

/// Whether a line has the same words, and numbers that differ by a tenth at most:
/// a commit more or less need not be told.
fn agree(line: &str, told: &str) -> bool {
    let number = |word: &str| word.parse::<f64>().ok();
    let same = |(said, is): (&str, &str)| match (number(said), number(is)) {
        (Some(said), Some(is)) => (said - is).abs() <= is / 10.0,
        _ => said == is,
    };
    let (said, is) = (line.split_whitespace(), told.split_whitespace());
    said.clone().count() == is.clone().count() && said.zip(is).all(same)
}
