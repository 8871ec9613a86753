//! One case of the crash matrix: a daemon of its own that has what an operation
//! needs, dies where it is told to, and is looked at after its recovery. What is
//! asked for is in `operations.rs`, which cases there are in `walk.rs`.

use crate::{
    operations::{Operation, daemon_for, summary},
    support::{
        daemon::{Daemon, PATIENCE},
        sight, wait_for,
    },
};
use std::{
    collections::BTreeSet,
    fmt, fs,
    path::PathBuf,
    time::{Duration, Instant},
};
use vman_actors::oracle::{Promised, Seen, untouched};

/// What happens every few seconds and belongs to no operation.
const BY_THE_CLOCK: [&str; 3] = ["hypervisor.trim-logs", "folders.empty-trash", "store.event"];
/// The key under which each operation is asked for.
pub(crate) const FIRST_KEY: &str = "the-same-key";
/// Whoever has passed no step for so long has begun all that belongs to its last one.
const AFTERMATH: Duration = Duration::from_millis(150);
/// Whoever has passed no step for so long does not die any more of the one it was to die at.
const SURVIVED: Duration = Duration::from_secs(1);
/// How often a death is tried whose step was not passed. What is done at once, such as
/// recording an attachment and opening its disk, was recorded in one try and not in the next.
const TRIES: usize = 4;

/// The point of a step: `store.event.after#2` is one of `store.event`.
pub(crate) fn point(step: &str) -> &str {
    step.rsplit_once('.').map_or(step, |(point, _)| point)
}

fn of_the_operation(steps: &str) -> Vec<String> {
    let lines = steps
        .lines()
        .filter(|step| !BY_THE_CLOCK.contains(&point(step)));
    lines.map(str::to_owned).collect()
}

/// One daemon that has what an operation needs.
pub(crate) struct Case {
    pub(crate) daemon: Daemon,
    pub(crate) before: BTreeSet<String>,
    pub(crate) seen: Seen,
}

/// What an operation leads to where nothing fails.
pub(crate) struct Known {
    pub(crate) passed: Vec<String>,
    pub(crate) after: BTreeSet<String>,
}

impl Case {
    pub(crate) fn new(operation: &Operation) -> Self {
        let daemon = daemon_for(operation);
        let seen = sight::judge(&daemon, &Promised::default(), operation.name);
        let before = summary(&daemon);
        Self {
            daemon,
            before,
            seen,
        }
    }

    fn log_file(&self) -> PathBuf {
        self.daemon.folder().join("steps")
    }

    /// The steps that this life has passed.
    fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Another life, which writes down its steps or dies at one.
    pub(crate) fn next_life(&mut self, until: Option<&str>) {
        self.daemon.kill();
        let log = self.log_file();
        let _ = fs::remove_file(&log);
        self.daemon.set("FAILPOINT", until.unwrap_or_default());
        self.daemon.set("FAILPOINT_LOG", log.to_str().unwrap());
        self.daemon.spawn();
    }

    /// Waits until the daemon is ready, or has died. Whether it lives.
    pub(crate) fn up(&mut self) -> bool {
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

    /// Waits until the daemon has passed no step for as long as `quiet`, or has
    /// died. Whether it lives.
    fn rests(&mut self, quiet: Duration) -> bool {
        let file = self.log_file();
        let length = || fs::metadata(&file).map_or(0, |log| log.len());
        let mut last = (length(), Instant::now());
        wait_for("the daemon to rest or to be dead", PATIENCE, || {
            if self.daemon.has_ended() {
                return Some(false);
            }
            let now = length();
            if now != last.0 {
                last = (now, Instant::now());
            }
            (last.1.elapsed() >= quiet).then_some(true)
        })
    }

    /// A life that is to die at a step. Whether it did.
    pub(crate) fn dies_at(&mut self, step: &str, ask: impl FnOnce(&Daemon)) -> bool {
        self.next_life(Some(step));
        if !self.up() {
            return true;
        }
        ask(&self.daemon);
        !self.rests(SURVIVED)
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
    pub(crate) fn ask_again(&self, operation: &Operation, known: &Known, cut: &str) {
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
pub(crate) fn undisturbed(operation: &Operation) -> Known {
    let mut case = Case::new(operation);
    case.next_life(None);
    assert!(case.up() && case.rests(AFTERMATH), "{}", operation.name);
    let before = case.log().len();
    let answer = operation.ask(&case.daemon, FIRST_KEY).unwrap();
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(answer.status < 300, "{}: {text}", operation.name);
    sight::judge(&case.daemon, &Promised::default(), operation.name);
    assert!(case.rests(AFTERMATH), "{}", operation.name);
    let passed = of_the_operation(&case.log()[before..]);
    let after = summary(&case.daemon);
    Known { passed, after }
}

/// Where an operation is cut: the daemon dies at `first`, and the next one, in
/// the recovery from it, at `second`.
#[derive(Clone, Copy)]
pub(crate) struct Cut<'a> {
    pub(crate) operation: &'static Operation,
    pub(crate) known: &'a Known,
    pub(crate) first: &'a str,
    pub(crate) second: Option<&'a str>,
}

impl fmt::Display for Cut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cut at {}", self.operation.name, self.first)?;
        self.second.map_or(Ok(()), |second| {
            write!(f, " and, in the recovery, at {second}")
        })
    }
}

impl Cut<'_> {
    /// Dies as it says, and holds what became of it against what must. Answers
    /// what the last life passed until it was at rest; none where a step was not
    /// passed, since two commits became one.
    fn try_once(&self) -> Option<Vec<String>> {
        let (name, mut case, mut promised) = (self.to_string(), Case::new(self.operation), false);
        let mut died = case.dies_at(self.first, |daemon| {
            let answer = self.operation.ask(daemon, FIRST_KEY);
            promised = answer.is_ok_and(|answer| matches!(answer.status, 200 | 201 | 204));
        });
        if let Some(second) = self.second {
            died &= case.dies_at(second, |_| ());
        }
        case.next_life(None);
        assert!(case.up() && case.rests(AFTERMATH), "{name}");
        let passed = of_the_operation(&case.log());
        case.judge(self.operation, self.known, promised, &name);
        died.then_some(passed)
    }

    /// Writes are gathered as they come, and some steps are taken side by side, so
    /// that one is not passed each time: it is waited for again.
    pub(crate) fn go(&self) -> Option<Vec<String>> {
        (0..TRIES).find_map(|_| self.try_once())
    }
}
