//! System calls that fail: strace(1) lets one call of the daemon answer an error
//! while it starts a VM, attaches a disk or deletes a VM. Each call that names a
//! file, and each beginning of a program, fails in its turn. What is asked for
//! then succeeds or is refused in a sentence, nothing is half-made, the oracle
//! holds, and asked once more it succeeds.
//!
//! strace counts the calls of each thread by itself, so a fault is a call, the
//! file it is about, and the how manyeth such call of one thread. Calls on
//! sockets are not among them: `tests/qemu` and the fake QEMU break those.

use crate::{
    case::{Case, FIRST_KEY, Known},
    operations::{OPERATIONS, Operation, START_AGAIN, summary},
    support::{
        can_run,
        daemon::{Daemon, PATIENCE},
        host, sight, skip, wait_for,
    },
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, panic,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use vman_actors::oracle::{Promised, untouched};

/// A kind of call: its name, its calls, and the errors they answer, one after the other.
type Kind = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);
const KINDS: [Kind; 5] = [
    ("fsync", &["fsync", "fdatasync"], &["EIO", "ENOSPC"]),
    (
        "write",
        &["write", "writev", "pwrite64"],
        &["EIO", "ENOSPC"],
    ),
    (
        "rename",
        &["rename", "renameat", "renameat2"],
        &["EIO", "ENOSPC"],
    ),
    (
        "open",
        &["open", "openat", "openat2"],
        &["EIO", "ENOSPC", "EMFILE"],
    ),
    // With a pidfd asked for, it may lack a descriptor too.
    (
        "spawn",
        &["clone", "vfork", "fork"],
        &["EIO", "EAGAIN", "EMFILE"],
    ),
];
/// How often a fault is tried whose call another thread made than the last time.
const TRIES: usize = 3;
/// Files that belong to no operation.
const NOT_OURS: [&str; 2] = ["/proc/", "@/daemon.log"];

/// Whatever the daemon does after its answer, it has begun by now.
fn aftermath() {
    std::thread::park_timeout(Duration::from_millis(150));
}

/// One call that is to fail.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Fault {
    kind: usize,
    error: &'static str,
    call: String,
    /// The file, with what differs from daemon to daemon left open.
    file: Option<String>,
    number: usize,
}

/// What differs from daemon to daemon in the names of files, and a sign for it.
fn signs(daemon: &Daemon) -> [(String, &'static str); 3] {
    let folder = daemon.folder().to_str().unwrap().to_owned();
    let uuid = daemon.vm("a")["uuid"].as_str().unwrap().to_owned();
    let pid = format!("-{}-", daemon.pid());
    [(folder, "@"), (uuid, "%uuid%"), (pid, "-%pid%-")]
}

/// strace at the threads that the daemon has; not at what it starts.
pub(crate) struct Strace {
    child: Child,
    log: PathBuf,
}

impl Strace {
    /// None where this host does not let it.
    pub(crate) fn attach(daemon: &Daemon, words: &[String]) -> Option<Self> {
        let log = daemon.folder().join("strace.log");
        let tasks = format!("/proc/{}/task", daemon.pid());
        let threads: Vec<_> = fs::read_dir(tasks)
            .unwrap()
            .map(|task| task.unwrap().path())
            .collect();
        let mut strace = Command::new("strace");
        strace.args(["-y", "-s", "8", "-o"]).arg(&log).args(words);
        for thread in &threads {
            strace.arg("-p").arg(thread.file_name().unwrap());
        }
        strace.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = strace.spawn().ok()?;
        let traced = |thread: &PathBuf| {
            let status = fs::read_to_string(thread.join("status")).unwrap_or_default();
            status.is_empty() || status.contains(&format!("TracerPid:\t{}\n", child.id()))
        };
        let until = Instant::now() + Duration::from_secs(10);
        while !threads.iter().all(traced) {
            if Instant::now() > until {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
            std::thread::park_timeout(Duration::from_millis(2));
        }
        Some(Self { child, log })
    }

    /// Lets go of the daemon; answers what was seen.
    pub(crate) fn detach(mut self) -> String {
        if self.child.try_wait().unwrap().is_none() {
            host::signal(self.child.id(), rustix::process::Signal::TERM);
        }
        let limit = Duration::from_secs(20);
        wait_for("strace to end", limit, || self.child.try_wait().unwrap());
        String::from_utf8_lossy(&fs::read(self.log).unwrap_or_default()).into_owned()
    }
}

/// The call of a line and the file it is about.
fn call(line: &str) -> Option<(&str, Option<&str>)> {
    let (_, rest) = line.split_once(' ')?;
    let (call, arguments) = rest.trim_start().split_once('(')?;
    let arguments = arguments
        .strip_prefix("AT_FDCWD<")
        .map_or(arguments, |rest| {
            rest.split_once('>').map_or(rest, |(_, rest)| rest)
        });
    let starts = ["<@", "<%", "</", "\"@", "\"/"];
    let start = starts.iter().filter_map(|sign| arguments.find(sign)).min();
    let file = start.and_then(|start| {
        let (open, file) = arguments[start..].split_at(1);
        file.split(if open == "<" { '>' } else { '"' }).next()
    });
    Some((call, file))
}

/// The faults that there may be, of what was seen where nothing failed.
fn faults(seen: &str) -> Vec<Fault> {
    let mut counts: BTreeMap<(usize, String, Option<String>), usize> = BTreeMap::new();
    for (call, file) in seen.lines().filter_map(call) {
        let Some(kind) = KINDS.iter().position(|(_, calls, _)| calls.contains(&call)) else {
            continue;
        };
        let is_ours =
            file.is_some_and(|file| !NOT_OURS.iter().any(|other| file.starts_with(other)));
        let is_spawn = KINDS[kind].0 == "spawn";
        if is_spawn || is_ours {
            let file = file.filter(|_| !is_spawn).map(str::to_owned);
            *counts.entry((kind, call.to_owned(), file)).or_default() += 1;
        }
    }
    let each = counts.into_iter().flat_map(|((kind, call, file), count)| {
        let (_, _, errors) = KINDS[kind];
        let numbers = (1..=count).flat_map(move |number| errors.iter().map(move |e| (number, *e)));
        numbers.map(move |(number, error)| Fault {
            kind,
            error,
            call: call.clone(),
            file: file.clone(),
            number,
        })
    });
    each.collect()
}

/// Where nothing fails: what it leads to, and the calls on the way. None where
/// strace cannot be had.
fn undisturbed(operation: &Operation) -> Option<(Known, Vec<Fault>)> {
    let case = Case::new(operation);
    let signs = signs(&case.daemon);
    let calls: Vec<_> = KINDS
        .iter()
        .flat_map(|(_, calls, _)| *calls)
        .copied()
        .collect();
    let words = ["-e".to_owned(), format!("trace={}", calls.join(","))];
    let strace = Strace::attach(&case.daemon, &words)?;
    let answer = operation.ask(&case.daemon, FIRST_KEY).unwrap();
    assert!(answer.status < 300, "{}: {}", operation.name, answer.status);
    aftermath();
    let mut seen = strace.detach();
    for (text, sign) in &signs {
        seen = seen.replace(text, sign);
    }
    sight::judge(&case.daemon, &Promised::default(), operation.name);
    let known = Known {
        passed: Vec::new(),
        after: summary(&case.daemon),
    };
    Some((known, faults(&seen)))
}

/// A VM whose start failed is at rest as one that was not started.
fn at_rest(summary: &BTreeSet<String>) -> BTreeSet<String> {
    let rests = summary
        .iter()
        .map(|line| line.replace("\"error\"", "\"stopped\""));
    rests.collect()
}

/// Lets one call fail. Whether it did.
fn fail(operation: &Operation, known: &Known, fault: &Fault) -> bool {
    let mut case = Case::new(operation);
    let name = format!("{}, {fault:?}", operation.name);
    let Fault {
        error,
        call,
        number,
        ..
    } = fault;
    let mut words = vec![
        "-e".to_owned(),
        format!("trace={call}"),
        "-e".to_owned(),
        format!("inject={call}:error={error}:when={number}"),
    ];
    if let Some(file) = &fault.file {
        let signs = signs(&case.daemon);
        let file = signs
            .iter()
            .fold(file.clone(), |file, (text, sign)| file.replace(sign, text));
        words.extend(["-P".to_owned(), file]);
    }
    let strace = Strace::attach(&case.daemon, &words).expect("strace, as before");
    let answer = operation.ask(&case.daemon, FIRST_KEY);
    aftermath();
    let injected = strace.detach().contains("(INJECTED)");
    let promised = match &answer {
        Ok(answer) => {
            let told = if answer.body.is_empty() {
                Value::Null
            } else {
                answer.json()
            };
            let done = answer.status < 300 && told["status"] != "failed";
            let why = if answer.status < 300 {
                &told["error"]
            } else {
                &told
            };
            let why = why["detail"].as_str().or(why.as_str()).unwrap_or_default();
            assert!(done || !why.is_empty(), "{name}: no reason in {told}");
            done
        }
        Err(error) => {
            assert!(
                case.daemon.has_ended(),
                "{name}: {error}, and the daemon lives"
            );
            false
        }
    };
    if !case.up() {
        case.next_life(None);
        assert!(case.up(), "{name}: the next daemon is not ready");
    }
    wait_for(&format!("{name}: the store"), PATIENCE, || {
        let health = case.daemon.try_call("GET", "/health", &Value::Null).ok()?;
        (health.json()["checks"]["store"] == "ok").then_some(())
    });
    let seen = sight::judge(&case.daemon, &Promised::default(), &name);
    let broken = untouched(&case.seen, &seen, &["keeper"]);
    assert!(broken.is_empty(), "{name}: {broken:#?}");
    let (now, before) = (summary(&case.daemon), &case.before);
    assert!(
        now == known.after || (!promised && at_rest(&now) == *before),
        "{name}: half-made (answered: {promised})\nbefore {before:#?}\nafter {:#?}\nnow {now:#?}",
        known.after
    );
    case.ask_again(operation, known, &name);
    injected
}

fn operations() -> impl Iterator<Item = &'static Operation> {
    let names = [
        "start",
        "attach-to-stopped",
        "attach-to-running",
        "delete-stopped",
        "delete-running",
    ];
    let named = OPERATIONS
        .iter()
        .filter(move |operation| names.contains(&operation.name));
    named.chain([&START_AGAIN])
}

/// Lets those calls fail that `chosen` takes of an operation's.
fn walk(test: &str, chosen: impl Fn(usize, Vec<Fault>) -> Vec<Fault>) {
    if !can_run(test) {
        return;
    }
    let (mut missed, mut broken) = (Vec::new(), Vec::new());
    let mut failed: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (number, operation) in operations().enumerate() {
        let began = Instant::now();
        let Some((known, faults)) = undisturbed(operation) else {
            return skip(test, "strace is not installed, or may not trace");
        };
        let of = faults.len();
        for fault in chosen(number, faults) {
            // One that breaks something does not hide the others.
            let tried = panic::catch_unwind(|| (0..TRIES).any(|_| fail(operation, &known, &fault)));
            let told = format!("{}: {fault:?}", operation.name);
            match tried {
                Ok(true) => {
                    let pair = (KINDS[fault.kind].0, fault.error);
                    *failed.entry(pair).or_default() += 1;
                }
                Ok(false) => missed.push(told),
                Err(_) => broken.push(told),
            }
        }
        println!("{}: {of} calls, {:?}", operation.name, began.elapsed());
    }
    println!(
        "failed: {failed:?}; {} not made again: {missed:#?}",
        missed.len()
    );
    assert!(
        broken.is_empty(),
        "{} broke something, see above: {broken:#?}",
        broken.len()
    );
    for (kind, ..) in KINDS {
        let done = failed.keys().any(|(of, _)| *of == kind);
        assert!(done, "no {kind} ever failed");
    }
    let failed: usize = failed.values().sum();
    assert!(
        missed.len() * 4 <= failed,
        "too many calls were not made again"
    );
}

#[test]
fn chosen_system_calls_that_fail_leave_nothing_half_made() {
    walk(
        "chosen_system_calls_that_fail_leave_nothing_half_made",
        |number, faults| {
            let kinds = 0..KINDS.len();
            let one = |kind| {
                let of: Vec<_> = faults.iter().filter(|fault| fault.kind == kind).collect();
                (!of.is_empty()).then(|| of[(number * 7) % of.len()].clone())
            };
            kinds.filter_map(one).collect()
        },
    );
}

#[test]
#[ignore = "takes some minutes; part of make test-long"]
fn every_system_call_that_fails_leaves_nothing_half_made() {
    walk(
        "every_system_call_that_fails_leaves_nothing_half_made",
        |_, faults| faults,
    );
}
