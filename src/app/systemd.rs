//! What systemd is told, where it is there: ready, reloading, stopping, and that
//! the tree is well. Everywhere else this does nothing.

use sd_notify::NotifyState;
use std::time::Duration;
use tokio::runtime::Handle;
use vman_actors::Pulse;

/// Recovery is done.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The daemon ends; guests run on.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// One sentence, shown by `systemctl status`.
pub(super) fn status(sentence: &str) {
    tell(&[NotifyState::Status(sentence)]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot tell systemd");
    }
}

/// Feeds systemd's watchdog as long as the root of the tree and the threads of HTTP answer. One
/// that hangs is thus found by systemd, which starts VMAN again; guests run on.
pub(super) async fn feed_watchdog(pulse: Pulse, front: Handle) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    // Twice in the time that systemd waits, as sd_watchdog_enabled(3) advises.
    let interval = (limit / 2).max(Duration::from_millis(1));
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if !pulse.beat().await || !answers(&front).await {
            return;
        }
        tell(&[NotifyState::Watchdog]);
    }
}

/// Whether the threads of HTTP do what they are given; never answered while they hang.
async fn answers(front: &Handle) -> bool {
    front.spawn(async {}).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::front;
    use tokio::{runtime::Builder, time::timeout};

    #[tokio::test]
    async fn threads_of_http_that_hang_do_not_answer() {
        let live = front::runtime(1).unwrap();
        assert!(answers(live.handle()).await);
        live.shutdown_background();
        // Nobody runs what is spawned on this one.
        let hung = Builder::new_current_thread().build().unwrap();
        let asked = timeout(Duration::from_millis(50), answers(hung.handle())).await;
        assert!(asked.is_err());
        hung.shutdown_background();
    }
}
