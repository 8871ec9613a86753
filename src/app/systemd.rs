//! What systemd is told, where it is there: ready, reloading, stopping, and that
//! the tree is well. Everywhere else this does nothing.

use sd_notify::NotifyState;
use std::time::Duration;
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

/// Feeds systemd's watchdog as long as the root of the tree answers. A root that
/// hangs is thus found by systemd, which starts VMAN again; guests run on.
pub(super) async fn feed_watchdog(pulse: Pulse) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    // Twice in the time that systemd waits, as sd_watchdog_enabled(3) advises.
    let interval = (limit / 2).max(Duration::from_millis(1));
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if !pulse.beat().await {
            return;
        }
        tell(&[NotifyState::Watchdog]);
    }
}
