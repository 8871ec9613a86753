//! Goes through many cases, a few at once. Each case has a thread with its name,
//! so that what breaks in one is told under it and hides no other.

use std::{
    collections::BTreeMap,
    fmt::Display,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// How many cases are gone through at once where nobody says: most of a case is
/// waiting for disks and for processes to begin, and two cores bear two.
const JOBS: usize = 2;

/// `VMAN_TEST_JOBS=6` goes through six cases at once.
fn jobs() -> usize {
    std::env::var("VMAN_TEST_JOBS").map_or(JOBS, |text| {
        let jobs = text.parse().ok().filter(|jobs| *jobs > 0);
        jobs.expect("VMAN_TEST_JOBS is a number above 0")
    })
}

/// Does `work` for each case, and answers what came of it in their order, or what
/// it panicked with. `ended` is told so at once, by whichever thread.
pub(crate) fn each<T: Display + Sync, R: Send>(
    cases: &[T],
    work: impl Fn(&T) -> R + Sync,
    ended: impl Fn(&T, &thread::Result<R>) + Sync,
) -> Vec<thread::Result<R>> {
    let next = AtomicUsize::new(0);
    let all = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        let one_after_the_other = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(case) = cases.get(number) else {
                    break;
                };
                let thread = thread::Builder::new().name(case.to_string());
                let thread = thread.spawn_scoped(scope, || work(case)).unwrap();
                let result = thread.join();
                ended(case, &result);
                all.lock().unwrap().insert(number, result);
            }
        };
        for _ in 0..jobs().min(cases.len()) {
            scope.spawn(one_after_the_other);
        }
    });
    all.into_inner().unwrap().into_values().collect()
}
