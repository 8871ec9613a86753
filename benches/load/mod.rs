//! A load generator for HTTP/1.1 with keep-alive over TCP and UNIX sockets.
//!
//! One thread a connection, so that what is measured is the server and not an event
//! loop of ours. *Closed* loop: each connection asks as soon as it was answered (how
//! much can be done). *Open* loop: requests are due at a fixed pace whatever the
//! server does, and each latency counts from when it was due, so that a stall is
//! told by all who would have come meanwhile (how long one waits).

mod connection;
pub(crate) mod floor;

pub(crate) use connection::{Connection, Target, request};

use hdrhistogram::Histogram;
use std::{
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

/// The latencies that are told apart: 1 µs to 60 s, to three digits.
const LONGEST_US: u64 = 60_000_000;

/// How requests follow each other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// Each connection asks when it was answered.
    Closed,
    /// All connections together, in requests a second.
    Open(f64),
}

/// A load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub connections: usize,
    pub length: Duration,
    pub pace: Pace,
    /// The status every answer must have.
    pub status: u16,
}

impl Load {
    /// A closed loop of requests that are answered 200.
    pub(crate) fn closed(connections: usize, length: Duration) -> Self {
        Self {
            connections,
            length,
            pace: Pace::Closed,
            status: 200,
        }
    }

    /// The same at a fixed pace.
    pub(crate) fn open(connections: usize, length: Duration, per_second: f64) -> Self {
        Self {
            pace: Pace::Open(per_second),
            ..Self::closed(connections, length)
        }
    }

    /// With another status than 200.
    pub(crate) fn answered(self, status: u16) -> Self {
        Self { status, ..self }
    }
}

/// What came of a load.
pub(crate) struct Outcome {
    /// Answers with the right status.
    pub answers: u64,
    /// Others, and connections that broke.
    pub failures: u64,
    /// The first of these.
    pub first_failure: Option<String>,
    /// From the first request to the last answer.
    pub took: Duration,
    /// In microseconds.
    pub latency: Histogram<u64>,
    /// Of the last answer's body.
    pub body_bytes: usize,
}

impl Outcome {
    fn new() -> Self {
        Self {
            answers: 0,
            failures: 0,
            first_failure: None,
            took: Duration::ZERO,
            latency: Histogram::new_with_bounds(1, LONGEST_US, 3).unwrap(),
            body_bytes: 0,
        }
    }

    fn failed(&mut self, why: impl Into<String>) {
        self.failures += 1;
        self.first_failure.get_or_insert_with(|| why.into());
    }

    pub(crate) fn join(&mut self, other: Self) {
        self.answers += other.answers;
        self.failures += other.failures;
        self.took = self.took.max(other.took);
        self.body_bytes = self.body_bytes.max(other.body_bytes);
        self.first_failure = self.first_failure.take().or(other.first_failure);
        self.latency.add(&other.latency).unwrap();
    }

    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        #[allow(clippy::cast_precision_loss)]
        let answers = self.answers as f64;
        answers / self.took.as_secs_f64()
    }

    /// A quantile of the latencies, in milliseconds.
    pub(crate) fn ms(&self, quantile: f64) -> f64 {
        #[allow(clippy::cast_precision_loss)]
        let us = self.latency.value_at_quantile(quantile) as f64;
        us / 1_000.0
    }
}

/// Puts a load on a server. `ask` writes the n-th request of a connection.
pub(crate) fn run(
    target: &Target,
    load: Load,
    ask: impl Fn(&mut Vec<u8>, usize, u64) + Sync,
) -> Outcome {
    let begin = Barrier::new(load.connections);
    let mut outcome = Outcome::new();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..load.connections)
            .map(|worker| {
                let (ask, begin) = (&ask, &begin);
                scope.spawn(move || {
                    let connected = Connection::open(target);
                    begin.wait();
                    let mut outcome = Outcome::new();
                    match connected {
                        Ok(mut connection) => {
                            drive(&mut connection, worker, load, ask, &mut outcome);
                        }
                        Err(error) => outcome.failed(format!("cannot connect: {error}")),
                    }
                    outcome
                })
            })
            .collect();
        for worker in workers {
            outcome.join(worker.join().unwrap());
        }
    });
    outcome
}

fn drive(
    connection: &mut Connection,
    worker: usize,
    load: Load,
    ask: impl Fn(&mut Vec<u8>, usize, u64),
    outcome: &mut Outcome,
) {
    let began = Instant::now();
    let mut request = Vec::new();
    for n in 0.. {
        let due = match load.pace {
            Pace::Closed => Instant::now(),
            Pace::Open(per_second) => {
                let due = began + due_after(per_second, load.connections, worker, n);
                thread::sleep(due.saturating_duration_since(Instant::now()));
                due
            }
        };
        if due.duration_since(began) >= load.length {
            break;
        }
        request.clear();
        ask(&mut request, worker, n);
        match connection.exchange(&request) {
            Ok(status) if status == load.status => outcome.answers += 1,
            Ok(status) => {
                let body = String::from_utf8_lossy(connection.body()).into_owned();
                outcome.failed(format!("status {status}: {body}"));
            }
            Err(error) => {
                outcome.failed(error.to_string());
                break;
            }
        }
        let us = u64::try_from(due.elapsed().as_micros()).unwrap_or(LONGEST_US);
        outcome.latency.saturating_record(us.max(1));
    }
    outcome.body_bytes = connection.body().len();
    outcome.took = began.elapsed();
}

/// When the n-th request of a connection is due: the connections take turns.
fn due_after(per_second: f64, connections: usize, worker: usize, n: u64) -> Duration {
    #[allow(clippy::cast_precision_loss)]
    let place = n as f64 * connections as f64 + worker as f64;
    Duration::from_secs_f64(place / per_second)
}
