//! Collects the raw values of every layer, each with its source; the last layer that names a key wins.
//!
//! Knows nothing about what a value means (see `read.rs`), only which names exist.

use super::{
    environment::Environment,
    fault::{Fault, Source},
    keys::{self, CLIENT_VARIABLES, FOREIGN_PREFIXES},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// A configuration file larger than this is a mistake (a log, an image) and not read.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// The table of the networks beside the default one.
const NETWORKS: &str = "network";

/// What the command line says about the configuration.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--config FILE`: read instead of `/etc/vman`.
    pub file: Option<PathBuf>,
    /// Key, value and the flag that said so; later ones win.
    pub values: Vec<(String, String, String)>,
}

/// A value as it was written, and where.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    pub(super) text: String,
    pub(super) source: Source,
}

/// The raw values after all layers, by key.
#[derive(Debug, Default)]
pub(super) struct Layers {
    pub(super) values: BTreeMap<String, Raw>,
    pub(super) faults: Vec<Fault>,
}

impl Layers {
    pub(super) fn collect(overrides: &Overrides, environment: &Environment) -> Self {
        let mut layers = Self::default();
        match &overrides.file {
            Some(file) => layers.file(file, true),
            None => layers.system_files(&environment.configuration_directory),
        }
        layers.dotenv(&environment.working_directory.join(".env"));
        for (name, value) in &environment.variables {
            layers.variable(name, value, |name| Source::Environment(name.to_owned()));
        }
        for (name, value, flag) in &overrides.values {
            layers.named(name, value, Source::Flag(flag.clone()));
        }
        layers
    }

    fn system_files(&mut self, directory: &Path) {
        self.file(&directory.join("vman.toml"), false);
        let conf_d = directory.join("conf.d");
        let entries = match std::fs::read_dir(&conf_d) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => return self.unreadable(&conf_d, &error),
        };
        let mut files: Vec<PathBuf> = entries
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|ending| ending == "toml"))
            .collect();
        files.sort();
        for file in files {
            self.file(&file, false);
        }
    }

    fn unreadable(&mut self, path: &Path, error: &std::io::Error) {
        self.faults.push(Fault::new(
            Source::File(path.to_owned(), None),
            format!("cannot be read: {error}"),
        ));
    }

    fn text_of(&mut self, path: &Path, required: bool) -> Option<String> {
        let read = || {
            let meta = std::fs::metadata(path)?;
            if !meta.is_file() || meta.len() > MAX_FILE_BYTES {
                return Err(std::io::Error::other("not a regular file of at most 1 MiB"));
            }
            std::fs::read_to_string(path)
        };
        match read() {
            Ok(text) => Some(text),
            Err(error) if !required && error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                self.unreadable(path, &error);
                None
            }
        }
    }

    fn file(&mut self, path: &Path, required: bool) {
        let Some(text) = self.text_of(path, required) else {
            return;
        };
        let (table, errors) = DeTable::parse_recoverable(&text);
        if !errors.is_empty() {
            for error in errors {
                let line = error.span().map(|span| line_of(&text, span.start));
                let what = format!("not valid TOML: {}", error.message());
                self.faults
                    .push(Fault::new(Source::File(path.to_owned(), line), what));
            }
            return;
        }
        for (name, value) in table.into_inner() {
            let at = |offset| Source::File(path.to_owned(), Some(line_of(&text, offset)));
            match (name.get_ref().as_ref(), value.get_ref()) {
                (NETWORKS, DeValue::Table(networks)) => self.networks(networks, &at),
                (name_of, _) => self.entry(name_of, &value, at(name.span().start)),
            }
        }
    }

    fn entry(&mut self, name: &str, value: &Spanned<DeValue<'_>>, source: Source) {
        match scalar(value) {
            Ok(text) => self.named(name, &text, source),
            Err(what) => {
                let what = format!("{name} {what}");
                self.faults.push(Fault::new(source, what));
            }
        }
    }

    /// The tables `[network.NAME]`.
    fn networks(&mut self, networks: &DeTable<'_>, at: &impl Fn(usize) -> Source) {
        for (name, network) in networks {
            let named = format!("{NETWORKS}.{}", name.get_ref());
            let what = match network.get_ref() {
                DeValue::Table(keys) if !keys.is_empty() => {
                    for (key, value) in keys {
                        let key_of = format!("{named}.{}", key.get_ref());
                        self.entry(&key_of, value, at(key.span().start));
                    }
                    continue;
                }
                DeValue::Table(_) => "is empty: say at least its bridge and its subnet",
                _ => "must be a table with the settings of the network of that name",
            };
            let source = at(name.span().start);
            self.faults
                .push(Fault::new(source, format!("{named} {what}")));
        }
    }

    fn dotenv(&mut self, path: &Path) {
        let Some(text) = self.text_of(path, false) else {
            return;
        };
        for item in dotenvy::from_read_iter(text.as_bytes()) {
            match item {
                Ok((name, value)) => {
                    let line = assignment_line(&text, &name);
                    self.variable(&name, &value, |_| Source::File(path.to_owned(), line));
                }
                Err(dotenvy::Error::LineParse(content, _)) => {
                    let line = text.lines().position(|line| line.trim() == content.trim());
                    self.faults.push(Fault::new(
                        Source::File(path.to_owned(), line.map(|line| line + 1)),
                        "not of the form NAME=value",
                    ));
                }
                Err(error) => self.faults.push(Fault::new(
                    Source::File(path.to_owned(), None),
                    error.to_string(),
                )),
            }
        }
    }

    fn variable(&mut self, name: &str, value: &str, source: impl Fn(&str) -> Source) {
        let foreign = !name.starts_with("VMAN_")
            || FOREIGN_PREFIXES
                .iter()
                .any(|prefix| name.starts_with(prefix))
            || CLIENT_VARIABLES.contains(&name);
        if foreign {
            return;
        }
        let lower = name["VMAN_".len()..].to_ascii_lowercase();
        let source = source(name);
        if let Some(key) = keys::find(&lower).filter(|key| key.variable() == name) {
            self.put(key.name, value, source);
        } else {
            let hint = keys::nearest(&lower).map(keys::Key::variable);
            self.unknown(name, hint, source);
        }
    }

    fn named(&mut self, name: &str, value: &str, source: Source) {
        if keys::find(name).is_some() {
            self.put(name, value, source);
        } else {
            let plain = name.strip_prefix("VMAN_").unwrap_or(name);
            self.unknown(name, keys::hint(plain), source);
        }
    }

    fn put(&mut self, name: &str, text: &str, source: Source) {
        if text.contains(char::REPLACEMENT_CHARACTER) {
            let what = format!("{name} is not valid UTF-8");
            return self.faults.push(Fault::new(source, what));
        }
        let text = text.trim().to_owned();
        self.values.insert(name.to_owned(), Raw { text, source });
    }

    fn unknown(&mut self, name: &str, hint: Option<String>, source: Source) {
        let shown: String = name
            .chars()
            .take(64)
            .flat_map(char::escape_default)
            .collect();
        let what = match hint {
            Some(hint) => format!("{shown} is not a known key; did you mean {hint}?"),
            None => format!("{shown} is not a known key; `vman config show` lists them all"),
        };
        self.faults.push(Fault::new(source, what));
    }
}

/// A TOML value in the notation of the environment: lists become comma-separated.
fn scalar(value: &Spanned<DeValue<'_>>) -> Result<String, &'static str> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Boolean(flag) => Ok(flag.to_string()),
        DeValue::Float(number) => Ok(number.as_str().to_owned()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map(|number| number.to_string())
            .map_err(|_| "is a number beyond all limits"),
        DeValue::Array(items) => {
            let items: Result<Vec<_>, _> = items.iter().map(scalar).collect();
            Ok(items?.join(","))
        }
        DeValue::Datetime(_) => Err("must not be a date"),
        DeValue::Table(_) => Err("must not be a table: only [network.NAME] is one"),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.get(..offset).unwrap_or(text).matches('\n').count() + 1
}

/// The last line that assigns `name`, which is the one that wins.
fn assignment_line(text: &str, name: &str) -> Option<usize> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| {
            let line = line.trim_start();
            let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
            line.strip_prefix(name)
                .is_some_and(|rest| rest.trim_start().starts_with('='))
        })
        .last()
        .map(|(index, _)| index + 1)
}
