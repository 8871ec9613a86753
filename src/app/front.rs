//! The threads that HTTP is served on, apart from those that run the actors: a request waits
//! neither behind the tasks of a thousand starts nor for a long turn of somebody else's thread
//! on every processor ([decision](../../docs/decisions/0042-threads-of-their-own-for-http.md)).
//!
//! Must not: run an actor.

use crate::host::turns;
use std::io;
use tokio::runtime::{Builder, Runtime};

/// More answer no faster, and each takes memory.
const MOST_THREADS: usize = 8;

/// So many of them, within bounds.
pub fn runtime(threads: usize) -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(threads.min(MOST_THREADS))
        .thread_name("vman-http")
        .on_thread_start(|| {
            if let Err(error) = turns::shorten() {
                tracing::debug!(%error, "cannot ask for short turns on a processor");
            }
        })
        .enable_all()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use turns::{SHORT_NS, shorten};

    fn own() -> (u32, i32, u64) {
        let told = turns::schedule().unwrap();
        (told.sched_policy, told.sched_nice, told.sched_runtime)
    }

    #[test]
    fn its_threads_take_short_turns_and_what_they_start_does_not() {
        let asked = || shorten().map(|()| own());
        let possible = thread::spawn(asked).join().unwrap();
        if possible.is_ok_and(|(_, _, turn)| turn != SHORT_NS) {
            println!(
                "skipped: this kernel knows no turns of a thread's own, it is older than 6.12"
            );
            return;
        }
        let (policy, nice, usual) = own();
        let front = runtime(2).unwrap();
        let on_it = |work: fn() -> (u32, i32, u64)| {
            let done = front.block_on(async move { tokio::spawn(async move { work() }).await });
            done.unwrap()
        };
        assert_eq!(on_it(own), (policy, nice, SHORT_NS));
        let started = on_it(|| thread::spawn(own).join().unwrap());
        assert_eq!(started, (policy, nice, usual));
    }
}
