//! `kill -9` of the daemon at random moments under a stream of all operations,
//! and what must hold after each restart: the oracle, what was answered
//! (`known.rs`), and a guest that nobody touches. What is asked is in `work.rs`.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod known;
#[path = "../support/mod.rs"]
mod support;
mod work;

use known::Knowledge;
use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};
use support::{can_run, daemon::Daemon, host, sight};
use vman_actors::oracle::{Promised, Seen, untouched};
use work::{Client, Dice};

/// Who works on VMs without a guest; each on things of its own, so that what it
/// was answered last is what must hold. One more works on a guest that runs.
const CLIENTS: usize = 5;

/// A daemon with two guests: one that nobody touches, and one that takes and
/// gives devices.
fn prepared() -> Daemon {
    let daemon = Daemon::start();
    daemon.tiny_template();
    daemon.guest_template("vman.counter_ms=1000");
    for name in ["keeper", work::GUEST] {
        let body = json!({"template_name": "guest", "name": name});
        daemon.post("/vms", &body).expect(201);
        daemon.act(name, "start");
    }
    for name in ["keeper", work::GUEST] {
        daemon.wait_console(name, "VMAN-GUEST counter");
    }
    daemon
}

/// Lets the clients work for a moment and kills the daemon under them, every
/// third time once more in the middle of its recovery.
fn kill_once(
    daemon: &mut Daemon,
    known: &Knowledge,
    round: u64,
    dice: &mut Dice,
) -> BTreeMap<&'static str, u64> {
    let end = AtomicBool::new(false);
    // Anywhere from the first request to well into starts and stops.
    let pause = Duration::from_millis(dice.below(400));
    let done = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..=CLIENTS)
            .map(|number| {
                let dice = Dice::new(dice.next());
                let mut client = Client::new(daemon, known, number, number == CLIENTS, dice);
                let end = &end;
                scope.spawn(move || {
                    client.work(end);
                    client.answered
                })
            })
            .collect();
        std::thread::park_timeout(pause);
        host::signal(daemon.pid(), rustix::process::Signal::KILL);
        end.store(true, Ordering::Relaxed);
        let mut done = BTreeMap::new();
        for client in clients {
            for (name, count) in client.join().unwrap() {
                *done.entry(name).or_default() += count;
            }
        }
        done
    });
    daemon.kill();
    if round.is_multiple_of(3) {
        daemon.spawn();
        std::thread::park_timeout(Duration::from_millis(dice.below(120)));
        daemon.kill();
    }
    daemon.serve();
    done
}

/// Judges all there is, and compares it with what was seen before.
fn judge(daemon: &Daemon, known: &Knowledge, before: &Seen, when: &str) -> Seen {
    let after = sight::judge(daemon, &Promised::default(), when);
    known.hold(daemon, when);
    let broken = untouched(before, &after, &["keeper", work::GUEST]);
    assert!(broken.is_empty(), "{when}: {broken:?}");
    after
}

fn random_kills(rounds: u64, seed: u64) {
    println!("seed {seed}, {rounds} rounds");
    let (mut dice, began) = (Dice::new(seed), Instant::now());
    let mut daemon = prepared();
    let known = Knowledge::default();
    let mut seen = sight::judge(&daemon, &Promised::default(), "at first");
    let mut done: BTreeMap<&str, u64> = BTreeMap::new();
    for round in 0..rounds {
        for (name, count) in kill_once(&mut daemon, &known, round, &mut dice) {
            *done.entry(name).or_default() += count;
        }
        seen = judge(&daemon, &known, &seen, &format!("round {round}"));
        if round % 100 == 99 {
            println!("{} kills after {:?}", round + 1, began.elapsed());
        }
    }
    let (answered, counter) = (done.values().sum::<u64>(), daemon.counter("keeper"));
    println!(
        "{rounds} kills, {answered} requests answered, nothing lost or doubled; \
         the untouched guest counted to {counter:?}; done: {done:?}"
    );
    let never: Vec<_> = work::kinds()
        .filter(|kind| !done.contains_key(kind))
        .collect();
    assert!(never.is_empty(), "never done in {rounds} rounds: {never:?}");
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
#[ignore = "takes 25 to 45 minutes; part of make test-long"]
fn two_thousand_random_kills_lose_and_double_nothing() {
    if can_run("two_thousand_random_kills_lose_and_double_nothing") {
        random_kills(2_000, seed());
    }
}
