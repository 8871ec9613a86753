//! SIGHUP: reads the configuration again, applies what can change under a
//! running daemon (the log level), and says what waits for a restart.
//!
//! Must not: apply half of a wrong configuration.

use crate::{
    config::{Config, ConfigError, Setting},
    telemetry::LogControl,
};

/// Reads the configuration again from where it was read at the start.
pub type Reread = Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// What of the configuration is applied at once.
const LIVE: &[&str] = &["log_level"];

/// Applies what differs from `running` and can be applied.
pub(super) fn reload(running: &mut Config, reread: &Reread, log: &LogControl) {
    let wanted = match reread() {
        Ok(wanted) => wanted,
        Err(error) => {
            tracing::error!(event = "config.refused", %error, "the new configuration is wrong, nothing of it is applied");
            return;
        }
    };
    let changed = differences(running, &wanted);
    let (live, waiting): (Vec<_>, Vec<_>) = changed
        .into_iter()
        .partition(|name| LIVE.contains(&&**name));
    if live.iter().any(|name| name == "log_level") {
        if let Err(error) = log.set_level(wanted.log.level) {
            tracing::error!(%error, "cannot change the log's level");
            return;
        }
        running.log.level = wanted.log.level;
        for setting in &mut running.settings {
            let new = wanted.settings.iter().find(|new| new.name == setting.name);
            if let Some(new) = new.filter(|new| LIVE.contains(&new.name.as_str())) {
                setting.clone_from(new);
            }
        }
    }
    if waiting.is_empty() {
        let applied = live.join(", ");
        tracing::info!(
            event = "config.reloaded",
            applied,
            "the configuration was read again"
        );
    } else {
        let (applied, waiting) = (live.join(", "), waiting.join(", "));
        tracing::warn!(
            event = "config.reloaded",
            applied,
            waiting,
            "the configuration was read again; some of it is applied by a restart only, which guests do not notice"
        );
    }
}

/// The names of the settings whose values differ, and of those that only one of the two has.
fn differences(running: &Config, wanted: &Config) -> Vec<String> {
    fn value<'a>(config: &'a Config, name: &str) -> Option<&'a String> {
        let found = config.settings.iter().find(|setting| setting.name == name);
        found.map(|setting| &setting.value)
    }
    let differs = |new: &&Setting| value(running, &new.name) != Some(&new.value);
    let changed = wanted.settings.iter().filter(differs);
    let gone = |old: &&Setting| value(wanted, &old.name).is_none();
    let gone = running.settings.iter().filter(gone);
    changed
        .chain(gone)
        .map(|setting| setting.name.clone())
        .collect()
}
