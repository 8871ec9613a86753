//! Work of milliseconds, done beside the threads that answer requests and run actors.
//!
//! Such work would make whoever is next on its thread wait; readers feel it first. Where nothing blocks because a life
//! is simulated step by step, it is done at once, so that the life is the same each time.
//! Must not: be used for what waits, or for microseconds: handing over costs some fifty of them.

use std::{future::pending, panic::resume_unwind};

/// Where such work is done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Aside {
    /// On a thread of its own.
    Thread,
    /// At once.
    InStep,
}

impl Aside {
    /// Does it and answers what it came to. A panic of it is its caller's.
    pub(crate) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        match self {
            Aside::InStep => work(),
            Aside::Thread => match tokio::task::spawn_blocking(work).await {
                Ok(done) => done,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => resume_unwind(panic),
                    // The runtime ends, and with it whoever waits here.
                    Err(_) => pending().await,
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::{ThreadId, current};

    async fn thread_of(aside: Aside) -> ThreadId {
        aside.run(|| current().id()).await
    }

    #[tokio::test]
    async fn it_has_a_thread_of_its_own_unless_all_is_done_in_step() {
        assert_ne!(thread_of(Aside::Thread).await, current().id());
        assert_eq!(thread_of(Aside::InStep).await, current().id());
    }

    #[tokio::test]
    #[should_panic(expected = "in vain")]
    async fn a_panic_of_it_is_its_callers() {
        Aside::Thread.run(|| panic!("in vain")).await;
    }
}
