//! A record as a line, for people or for programs.

use super::record::Record;
use jiff::Timestamp;
use serde_json::{Map, Value};
use std::fmt::Write as _;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// `2026-11-21T00:39:21.123456Z INFO vman::app: message vm_id=hello`
    Text,
    /// One JSON object.
    Json,
}

/// The record as one line with its end.
pub(super) fn line(record: &Record, shape: Shape) -> String {
    match shape {
        Shape::Text => text(record),
        Shape::Json => json(record),
    }
}

fn time(record: &Record) -> String {
    Timestamp::try_from(record.at).map_or_else(|_| "-".to_owned(), |at| format!("{at:.6}"))
}

fn text(record: &Record) -> String {
    let mut line = format!(
        "{} {:>5} {}: {}",
        time(record),
        record.level.as_str(),
        record.target,
        clean(&record.message)
    );
    for (name, value) in &record.fields {
        // Writing to a string cannot fail.
        let _ = if value.is_empty() || value.contains([' ', '"', '=']) {
            write!(line, " {name}={:?}", clean(value))
        } else {
            write!(line, " {name}={}", clean(value))
        };
    }
    line.push('\n');
    line
}

/// One line stays one line, and no guest's or client's escape sequence reaches the terminal.
fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    clean
}

fn json(record: &Record) -> String {
    let mut object = Map::new();
    let mut put = |name: &str, value: String| object.insert(name.to_owned(), Value::String(value));
    for (name, value) in &record.fields {
        put(name, value.clone());
    }
    put("timestamp", time(record));
    put("level", record.level.as_str().to_ascii_lowercase());
    put("target", record.target.clone());
    put("message", record.message.clone());
    let mut line = Value::Object(object).to_string();
    line.push('\n');
    line
}
