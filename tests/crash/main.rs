//! `kill -9` of the daemon at random moments under a stream of work, and what
//! must hold after each restart.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use support::{
    can_run,
    daemon::{Daemon, PATIENCE},
    host, wait_for,
};

/// VMs that the stream works on; one client each, so that what it was answered
/// last is what must hold.
const CLIENTS: usize = 6;

/// A small generator of its own: a failing seed is printed and runs again.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// What a client knows of its VM: answered, or unknown because the daemon died
/// over the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    There,
    NotThere,
    Unknown,
}

type Knowledge = Arc<Mutex<BTreeMap<String, Known>>>;

/// Sends random work for one VM until told to end or the daemon is gone.
fn client(daemon: &Daemon, name: &str, seed: u64, known: &Knowledge, end: &AtomicBool) -> u64 {
    let mut dice = Dice(seed | 1);
    let set = |state| known.lock().unwrap().insert(name.to_owned(), state);
    let mut answered = 0;
    while !end.load(Ordering::Relaxed) {
        let (method, target, body) = match dice.below(10) {
            0..=2 => (
                "POST",
                "/vms".to_owned(),
                json!({"template_name": "tiny", "name": name}),
            ),
            3..=5 => ("POST", format!("/vms/{name}/actions/start"), Value::Null),
            6 => (
                "POST",
                format!("/vms/{name}/actions/stop?force=true"),
                Value::Null,
            ),
            7 => (
                "POST",
                format!("/vms/{name}/actions/stop?timeout_s=0.2"),
                Value::Null,
            ),
            8 => (
                "POST",
                format!("/vms/{name}/actions/restart?force=true"),
                Value::Null,
            ),
            _ => ("DELETE", format!("/vms/{name}"), Value::Null),
        };
        let changes_existence = target == "/vms" || method == "DELETE";
        let before = known.lock().unwrap()[name];
        if changes_existence {
            set(Known::Unknown);
        }
        let Ok(answer) = daemon.try_call(method, &target, &body) else {
            return answered;
        };
        answered += 1;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(
            answer.status < 500 || answer.status == 503,
            "{method} {target}: {text}"
        );
        if changes_existence {
            set(match (method, answer.status) {
                ("POST", 201 | 409) => Known::There,
                ("DELETE", 204 | 404) => Known::NotThere,
                ("DELETE", _) => Known::Unknown,
                (_, 503) => Known::Unknown,
                _ => before,
            });
        }
    }
    answered
}

/// After a restart: nothing lost, nothing doubled, everything at an end.
fn check(daemon: &Daemon, known: &Knowledge, round: u64) {
    wait_for("every operation to reach its end", PATIENCE, || {
        let operations = daemon.get("/operations");
        let open = operations
            .as_array()
            .unwrap()
            .iter()
            .any(|op| op["status"] == "running");
        (!open).then_some(())
    });
    let vms = daemon.get("/vms");
    let vms = vms.as_array().unwrap();
    for (name, known) in known.lock().unwrap().iter_mut() {
        let count = vms.iter().filter(|vm| vm["id"] == **name).count();
        match known {
            Known::There => assert_eq!(count, 1, "round {round}: {name} was answered and is lost"),
            Known::NotThere => assert_eq!(count, 0, "round {round}: {name} came back"),
            Known::Unknown => {
                *known = if count == 1 {
                    Known::There
                } else {
                    Known::NotThere
                }
            }
        }
    }
    let qemus = daemon.qemus();
    for vm in vms {
        let mine: Vec<_> = qemus.iter().filter(|q| q.uuid == vm["uuid"]).collect();
        let running = vm["state"] == "running";
        assert_eq!(
            mine.len(),
            usize::from(running),
            "round {round}: {vm}\n{mine:?}"
        );
        if running {
            assert_eq!(vm["pid"], json!(mine[0].pid), "round {round}");
            assert_eq!(
                vm["incarnation"],
                json!(mine[0].incarnation),
                "round {round}"
            );
        }
    }
    let strays: Vec<_> = qemus
        .iter()
        .filter(|q| !vms.iter().any(|vm| vm["uuid"] == q.uuid.as_str()))
        .collect();
    assert!(
        strays.is_empty(),
        "round {round}: QEMUs without a record: {strays:?}"
    );
}

fn random_kills(rounds: u64, seed: u64) {
    println!("seed {seed}, {rounds} rounds");
    let mut dice = Dice(seed | 1);
    let mut daemon = Daemon::start();
    daemon.tiny_vms(&["keeper"]);
    daemon.act("keeper", "start");
    let keeper = daemon.pid_of("keeper");
    let began = host::start_time(keeper);
    let names: Vec<_> = (0..CLIENTS).map(|n| format!("vm{n}")).collect();
    let known: Knowledge = Arc::new(Mutex::new(
        names
            .iter()
            .map(|name| (name.clone(), Known::NotThere))
            .collect(),
    ));
    let mut answered = 0;
    for round in 0..rounds {
        let end = AtomicBool::new(false);
        // Anywhere from the first request to well into starts and stops.
        let pause = Duration::from_millis(dice.below(400));
        answered += std::thread::scope(|scope| {
            let clients: Vec<_> = names
                .iter()
                .map(|name| {
                    let (daemon, known, end, seed) = (&daemon, &known, &end, dice.next());
                    scope.spawn(move || client(daemon, name, seed, known, end))
                })
                .collect();
            std::thread::park_timeout(pause);
            let pid = daemon.pid();
            host::signal(pid, rustix::process::Signal::KILL);
            end.store(true, Ordering::Relaxed);
            clients
                .into_iter()
                .map(|client| client.join().unwrap())
                .sum::<u64>()
        });
        daemon.kill();
        // Every third time it is killed again in the middle of its recovery.
        if round % 3 == 0 {
            daemon.spawn();
            std::thread::park_timeout(Duration::from_millis(dice.below(120)));
            daemon.kill();
        }
        daemon.serve();
        check(&daemon, &known, round);
        assert_eq!(
            daemon.pid_of("keeper"),
            keeper,
            "round {round}: an untouched guest was touched"
        );
        assert_eq!(host::start_time(keeper), began);
    }
    println!("{rounds} kills, {answered} requests answered, nothing lost or doubled");
}

fn seed() -> u64 {
    std::env::var("VMAN_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| {
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap();
            u64::try_from(now.as_nanos() & 0xffff_ffff).unwrap()
        })
}

#[test]
fn two_hundred_random_kills_lose_and_double_nothing() {
    if can_run("two_hundred_random_kills_lose_and_double_nothing") {
        random_kills(200, seed());
    }
}

#[test]
#[ignore = "takes a quarter of an hour; part of make test-long"]
fn two_thousand_random_kills_lose_and_double_nothing() {
    if can_run("two_thousand_random_kills_lose_and_double_nothing") {
        random_kills(2_000, seed());
    }
}
