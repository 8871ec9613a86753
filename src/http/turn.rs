//! Changes take turns on the threads of HTTP: whoever only reads finds one that is free, also
//! when a hundred clients ask for changes at once.
//!
//! Must not: hold a turn while anything is waited for.

use std::{future::poll_fn, pin::pin, sync::Arc, task::ready};
use tokio::sync::Semaphore;
use tokio_util::sync::PollSemaphore;

/// Does the work, with a turn for each piece of it between two waits.
pub(crate) async fn in_turn<T>(turns: &Arc<Semaphore>, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let mut turns = PollSemaphore::new(Arc::clone(turns));
    poll_fn(|context| {
        let turn = ready!(turns.poll_acquire(context));
        let polled = work.as_mut().poll(context);
        drop(turn);
        polled
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
        time::Duration,
    };
    use tokio::{sync::oneshot, task::JoinSet};

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_more_work_at_once_than_there_are_turns() {
        let turns = Arc::new(Semaphore::new(2));
        let [at_work, most] = [0, 0].map(|none| Arc::new(AtomicUsize::new(none)));
        let mut all = JoinSet::new();
        for _ in 0..20 {
            let (turns, at_work, most) = (turns.clone(), at_work.clone(), most.clone());
            all.spawn(async move {
                in_turn(&turns, async {
                    for _ in 0..2 {
                        let now = at_work.fetch_add(1, Ordering::SeqCst) + 1;
                        most.fetch_max(now, Ordering::SeqCst);
                        thread::sleep(Duration::from_millis(2));
                        at_work.fetch_sub(1, Ordering::SeqCst);
                        tokio::task::yield_now().await;
                    }
                })
                .await;
            });
        }
        all.join_all().await;
        assert_eq!(most.load(Ordering::SeqCst), 2);
        assert_eq!(turns.available_permits(), 2);
    }

    #[tokio::test]
    async fn who_waits_holds_up_nobody() {
        let turns = Arc::new(Semaphore::new(1));
        let (tell, told) = oneshot::channel();
        let waits = in_turn(&turns, async { told.await.unwrap() });
        let tells = in_turn(&turns, async { tell.send(7).unwrap() });
        assert_eq!(tokio::join!(waits, tells).0, 7);
    }
}
