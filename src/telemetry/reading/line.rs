//! A line of a log file back into a record: the inverse of `text.rs`.
//!
//! A line of text does not say where the message ends and the fields begin. Messages are constant sentences without
//! `name=value` in them, so the fields are the longest end of the line that is nothing but fields.

use super::LogRecord;
use serde_json::Value;
use std::collections::BTreeMap;

/// The record of a line in either shape; none where it is no record's.
pub(super) fn parse(line: &str) -> Option<LogRecord> {
    if line.starts_with('{') {
        return json(line);
    }
    text(line)
}

fn json(line: &str) -> Option<LogRecord> {
    let Ok(Value::Object(mut object)) = serde_json::from_str(line) else {
        return None;
    };
    let mut take = |name| match object.remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    let (at, level) = (take("timestamp")?, take("level")?);
    let (target, message) = (take("target")?, take("message")?);
    let fields = object.into_iter().filter_map(|(name, value)| match value {
        Value::String(value) => Some((name, value)),
        _ => None,
    });
    Some(LogRecord {
        at,
        level,
        target,
        message,
        fields: fields.collect(),
    })
}

fn text(line: &str) -> Option<LogRecord> {
    let (at, rest) = line.split_once(' ')?;
    let (level, rest) = rest.trim_start().split_once(' ')?;
    let (target, rest) = rest.split_once(": ")?;
    let starts = rest.match_indices(' ').map(|(at, _)| at);
    let split = std::iter::once(None)
        .chain(starts.map(Some))
        .find_map(|start| {
            let (message, tail) = match start {
                None => ("", rest),
                Some(start) => (&rest[..start], &rest[start + 1..]),
            };
            fields(tail).map(|fields| (message, fields))
        });
    let (message, fields) = split.unwrap_or((rest, BTreeMap::new()));
    Some(LogRecord {
        at: at.to_owned(),
        level: level.to_ascii_lowercase(),
        target: target.to_owned(),
        message: message.to_owned(),
        fields,
    })
}

/// `name=value name="quoted value"` and nothing else.
fn fields(mut rest: &str) -> Option<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    loop {
        let (name, value) = rest.split_once('=')?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
        if name.is_empty() || !name.chars().all(is_name) {
            return None;
        }
        let (value, after) = if value.starts_with('"') {
            quoted(value)?
        } else {
            let end = value.find(' ').unwrap_or(value.len());
            (value[..end].to_owned(), &value[end..])
        };
        out.insert(name.to_owned(), value);
        if after.is_empty() {
            return Some(out);
        }
        rest = after.strip_prefix(' ')?;
    }
}

/// A value in quotes as `{:?}` writes it, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut letters = text.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((out, &text[at + 1..])),
            '\\' => match letters.next()?.1 {
                'n' => out.push('\n'),
                't' => out.push('\t'),
                'r' => out.push('\r'),
                'u' => {
                    let code: String = letters
                        .by_ref()
                        .map(|(_, letter)| letter)
                        .skip_while(|letter| *letter == '{')
                        .take_while(|letter| *letter != '}')
                        .collect();
                    let code = u32::from_str_radix(&code, 16).ok()?;
                    out.push(char::from_u32(code)?);
                }
                other => out.push(other),
            },
            letter => out.push(letter),
        }
    }
    None
}
