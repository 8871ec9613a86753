//! Turns raw values into typed ones, remembering what was wrong and where each value came from.

use super::{
    Setting,
    fault::{Fault, Source},
    keys,
    layers::Layers,
};
use std::{
    collections::BTreeSet, fmt::Display, net::Ipv4Addr, path::PathBuf, str::FromStr, time::Duration,
};

/// Reads one key after the other; every wrong one becomes a fault and answers its default.
#[derive(Debug)]
pub(super) struct Reader {
    layers: Layers,
    pub(super) settings: Vec<Setting>,
    pub(super) faults: Vec<Fault>,
}

impl Reader {
    pub(super) fn new(mut layers: Layers) -> Self {
        let faults = std::mem::take(&mut layers.faults);
        Self {
            layers,
            settings: Vec::new(),
            faults,
        }
    }

    /// Where the value of `name` came from.
    pub(super) fn source(&self, name: &str) -> Source {
        self.layers
            .values
            .get(name)
            .map_or(Source::Default, |raw| raw.source.clone())
    }

    /// Whether anybody said anything about `name`.
    pub(super) fn said(&self, name: &str) -> bool {
        self.layers.values.contains_key(name)
    }

    /// The networks beside the default one that somebody said anything about, by name.
    pub(super) fn named_networks(&self) -> BTreeSet<String> {
        let names = self.layers.values.keys();
        let named = names.filter_map(|name| keys::split_network(name));
        named.map(|(network, _)| network.to_owned()).collect()
    }

    /// Records a fault about `name`, at the place that named it.
    pub(super) fn fault(&mut self, name: &str, what: impl Display) {
        let source = self.source(name);
        self.faults
            .push(Fault::new(source, format!("{name} {what}")));
    }

    /// The value of `name` read by `parse`, or `default` where nothing was said or what was said is wrong.
    pub(super) fn value<T>(
        &mut self,
        name: &str,
        default: impl FnOnce(&mut Self) -> T,
        parse: impl FnOnce(&str) -> Result<T, String>,
        show: impl FnOnce(&T) -> String,
    ) -> T {
        debug_assert!(keys::find(name).is_some(), "{name} is not in the table");
        let parsed = self.layers.values.get(name).map(|raw| parse(&raw.text));
        let value = match parsed {
            Some(Ok(value)) => value,
            Some(Err(what)) => {
                self.fault(name, what);
                default(self)
            }
            None => default(self),
        };
        let source = self.source(name);
        self.settings.push(Setting {
            name: name.to_owned(),
            value: show(&value),
            source,
        });
        value
    }

    /// One of a set of words.
    pub(super) fn word<T: Copy + PartialEq>(
        &mut self,
        name: &str,
        default: T,
        words: &[(&'static str, T)],
    ) -> T {
        self.value(
            name,
            |_| default,
            |text| {
                let text = text.to_ascii_lowercase();
                let found = words.iter().find(|(word, _)| *word == text);
                found.map(|(_, value)| *value).ok_or_else(|| {
                    let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                    format!("must be one of {}; it is {}", all.join(", "), quoted(&text))
                })
            },
            |value| {
                let found = words.iter().find(|(_, known)| known == value);
                found.map_or_else(String::new, |(word, _)| (*word).to_owned())
            },
        )
    }

    /// A whole number within limits, both included.
    pub(super) fn number<T>(&mut self, name: &str, default: T, least: T, most: T) -> T
    where
        T: FromStr + PartialOrd + Display + Copy,
    {
        self.value(
            name,
            |_| default,
            |text| within(text, least, most),
            ToString::to_string,
        )
    }

    /// Seconds within limits, both included, as a duration.
    pub(super) fn seconds(&mut self, name: &str, default: f64, least: f64, most: f64) -> Duration {
        self.value(
            name,
            |_| Duration::from_secs_f64(default),
            |text| within(text, least, most).map(Duration::from_secs_f64),
            |value| format!("{:?}", value.as_secs_f64()),
        )
    }

    /// A number with a fraction within limits, both included.
    pub(super) fn decimal(&mut self, name: &str, default: f64, least: f64, most: f64) -> f64 {
        self.value(
            name,
            |_| default,
            |text| within(text, least, most),
            |value| format!("{value:?}"),
        )
    }

    /// An absolute path.
    pub(super) fn path(
        &mut self,
        name: &str,
        default: impl FnOnce(&mut Self) -> PathBuf,
    ) -> PathBuf {
        self.value(name, default, absolute, |path| path.display().to_string())
    }

    /// An absolute path, or none if nothing or nothing but blanks was said.
    pub(super) fn optional_path(&mut self, name: &str) -> Option<PathBuf> {
        self.value(
            name,
            |_| None,
            |text| match text {
                "" => Ok(None),
                text => absolute(text).map(Some),
            },
            |path| {
                path.as_ref()
                    .map_or_else(String::new, |path| path.display().to_string())
            },
        )
    }

    /// An IPv4 address.
    pub(super) fn address(&mut self, name: &str, default: Ipv4Addr) -> Ipv4Addr {
        self.value(
            name,
            |_| default,
            |text| {
                text.parse()
                    .map_err(|_| format!("must be an IPv4 address; it is {}", quoted(text)))
            },
            ToString::to_string,
        )
    }
}

pub(super) fn within<T: FromStr + PartialOrd + Display>(
    text: &str,
    least: T,
    most: T,
) -> Result<T, String> {
    text.parse()
        .ok()
        // This also refuses NaN, which is in no range.
        .filter(|number| *number >= least && *number <= most)
        .ok_or_else(|| {
            format!(
                "must be a number from {least} to {most}; it is {}",
                quoted(text)
            )
        })
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let parent = path
        .components()
        .any(|part| part == std::path::Component::ParentDir);
    if !path.is_absolute() || parent || text.contains(char::is_control) {
        return Err(format!(
            "must be an absolute path without `..`; it is {}",
            quoted(text)
        ));
    }
    Ok(path)
}

/// The value for a message: escaped, and cut where it is long.
pub(super) fn quoted(text: &str) -> String {
    const MOST: usize = 80;
    if text.is_empty() {
        return "empty".to_owned();
    }
    let shown: String = text
        .chars()
        .take(MOST)
        .flat_map(char::escape_debug)
        .collect();
    let more = if text.chars().count() > MOST {
        "…"
    } else {
        ""
    };
    format!("`{shown}{more}`")
}
