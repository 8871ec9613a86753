//! QMP's bytes: newline-delimited JSON in, [`Message`] values out.
//!
//! Owns: framing, limits, classification. Must not: do I/O or keep state beyond the line at hand.
//! Tolerant by design: unknown fields and events are kept as they are, and what is not QMP becomes
//! [`Message::Garbage`] and nothing worse. Look next: `client.rs`, which gives the messages meaning.

use std::mem;

use serde_json::{Map, Value};

/// The longest line accepted, in bytes. QEMU's longest answer, `query-qmp-schema`, is about 200 KiB;
/// anything much longer is a QEMU gone wrong and must not cost the daemon its memory.
pub const MAX_LINE: usize = 1024 * 1024;

/// What a line buffer may keep between lines, in bytes: one long answer is no reason to hold its
/// memory for the rest of a VM's life.
const KEEP_CAPACITY: usize = 16 * 1024;

/// The first line of a QMP server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Greeting {
    /// QEMU's version, `major.minor.micro`, as far as it said.
    pub version: String,
    /// The packager's version string.
    pub package: String,
    /// Whether out-of-band commands are offered.
    pub oob: bool,
}

/// An event as QEMU sent it.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name, `SHUTDOWN`; not necessarily one that we know.
    pub name: String,
    /// Its data; an empty object if there was none.
    pub data: Map<String, Value>,
    /// QEMU's wall clock: seconds since the epoch and microseconds.
    pub timestamp: Option<(i64, i64)>,
    /// How many earlier events of the same kind this one stands for, beside itself.
    pub coalesced: u64,
}

/// Why a line is not QMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Garbage {
    /// Longer than the limit; it was skipped to its end and never held.
    TooLong,
    /// Not JSON, not UTF-8, or nested too deep.
    NotJson,
    /// JSON, but neither greeting, reply nor event.
    NotQmp,
}

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The greeting.
    Greeting(Greeting),
    /// A command's success.
    Return {
        /// The command's id, if QEMU told one.
        id: Option<Value>,
        /// What it returned.
        value: Value,
    },
    /// A command's failure.
    Error {
        /// The command's id; QEMU leaves it out where it could not parse the command.
        id: Option<Value>,
        /// The error class, `GenericError`.
        class: String,
        /// The sentence for people.
        desc: String,
    },
    /// An event.
    Event(Event),
    /// Something else.
    Garbage(Garbage),
}

/// Cuts bytes into lines and lines into messages. How the bytes were split makes no difference.
#[derive(Debug)]
pub struct Decoder {
    line: Vec<u8>,
    skipping: bool,
    max_line: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::with_max_line(MAX_LINE)
    }
}

impl Decoder {
    /// A decoder with a limit of its own, in bytes.
    pub fn with_max_line(max_line: usize) -> Self {
        Self {
            line: Vec::new(),
            skipping: false,
            max_line,
        }
    }

    /// Takes the next bytes and hands every message completed by them to `sink`, in order.
    pub fn feed(&mut self, mut bytes: &[u8], sink: &mut impl FnMut(Message)) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.take(&bytes[..end]);
            bytes = &bytes[end + 1..];
            if let Some(message) = self.end_of_line() {
                sink(message);
            }
        }
        self.take(bytes);
    }

    fn take(&mut self, part: &[u8]) {
        if self.skipping {
            return;
        }
        if self.line.len() + part.len() > self.max_line {
            self.line = Vec::new();
            self.skipping = true;
        } else {
            self.line.extend_from_slice(part);
        }
    }

    fn end_of_line(&mut self) -> Option<Message> {
        if mem::take(&mut self.skipping) {
            return Some(Message::Garbage(Garbage::TooLong));
        }
        let message = parse_line(&self.line);
        self.line.clear();
        self.line.shrink_to(KEEP_CAPACITY);
        message
    }
}

/// One line without its newline; `None` for a blank one.
fn parse_line(line: &[u8]) -> Option<Message> {
    if line.iter().all(u8::is_ascii_whitespace) {
        return None;
    }
    // serde_json refuses more than 128 levels, so neither parsing nor dropping can overflow the stack.
    Some(match serde_json::from_slice::<Value>(line) {
        Ok(Value::Object(fields)) => classify(fields),
        Ok(_) => Message::Garbage(Garbage::NotQmp),
        Err(_) => Message::Garbage(Garbage::NotJson),
    })
}

fn classify(mut fields: Map<String, Value>) -> Message {
    let id = fields.remove("id");
    if let Some(value) = fields.remove("return") {
        return Message::Return { id, value };
    }
    if let Some(error) = fields.remove("error") {
        return Message::Error {
            id,
            class: text(&error, "class"),
            desc: text(&error, "desc"),
        };
    }
    if let Some(Value::String(name)) = fields.remove("event") {
        let timestamp = fields.get("timestamp").and_then(timestamp);
        let data = match fields.remove("data") {
            Some(Value::Object(data)) => data,
            _ => Map::new(),
        };
        return Message::Event(Event {
            name,
            data,
            timestamp,
            coalesced: 0,
        });
    }
    match fields.get("QMP") {
        Some(greeting) => Message::Greeting(read_greeting(greeting)),
        None => Message::Garbage(Garbage::NotQmp),
    }
}

fn text(value: &Value, field: &str) -> String {
    value
        .get(field)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn timestamp(value: &Value) -> Option<(i64, i64)> {
    Some((
        value.get("seconds")?.as_i64()?,
        value.get("microseconds")?.as_i64()?,
    ))
}

fn read_greeting(value: &Value) -> Greeting {
    let number = |field: &str| {
        let part = value
            .pointer("/version/qemu")
            .and_then(|version| version.get(field));
        part.and_then(Value::as_u64)
            .map_or_else(|| "?".to_owned(), |part| part.to_string())
    };
    let capabilities = value.get("capabilities").and_then(Value::as_array);
    Greeting {
        version: format!(
            "{}.{}.{}",
            number("major"),
            number("minor"),
            number("micro")
        ),
        package: value
            .get("version")
            .map(|version| text(version, "package"))
            .unwrap_or_default(),
        oob: capabilities.is_some_and(|known| known.iter().any(|name| name == "oob")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINES: &[&str] = &[
        r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}"#,
        r#"{"return": {}, "id": 12345}"#,
        r#"{"return": [{"name": "a\u00e9\n"}], "id": "x"}"#,
        r#"{"error": {"class": "GenericError", "desc": "no"}}"#,
        r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#,
        r#"{"event": "NEVER_HEARD_OF", "data": {"new": [1, 2, {"deep": null}]}, "extra": 1}"#,
        "not json",
        "",
        "   ",
        "[1, 2]",
        r#"{"some": "thing"}"#,
    ];

    fn decode(bytes: &[u8], cuts: &[usize], max_line: usize) -> Vec<Message> {
        let mut decoder = Decoder::with_max_line(max_line);
        let mut messages = Vec::new();
        let mut start = 0;
        for cut in cuts {
            let end = (start + cut).min(bytes.len());
            decoder.feed(&bytes[start..end], &mut |message| messages.push(message));
            start = end;
        }
        decoder.feed(&bytes[start..], &mut |message| messages.push(message));
        messages
    }

    #[test]
    fn each_kind_of_line_is_told_apart() {
        let text = LINES.join("\r\n") + "\r\n";
        let messages = decode(text.as_bytes(), &[], MAX_LINE);
        assert_eq!(messages.len(), 9);
        let greeting = Greeting {
            version: "7.2.22".into(),
            package: "Debian".into(),
            oob: true,
        };
        assert_eq!(messages[0], Message::Greeting(greeting));
        assert_eq!(
            messages[1],
            Message::Return {
                id: Some(12345.into()),
                value: Value::Object(Map::new())
            }
        );
        assert_eq!(
            messages[3],
            Message::Error {
                id: None,
                class: "GenericError".into(),
                desc: "no".into()
            }
        );
        let Message::Event(stop) = &messages[4] else {
            panic!("{:?}", messages[4])
        };
        assert_eq!((stop.name.as_str(), stop.timestamp), ("STOP", Some((1, 2))));
        let Message::Event(unknown) = &messages[5] else {
            panic!("{:?}", messages[5])
        };
        assert_eq!(unknown.data["new"][2]["deep"], Value::Null);
        assert_eq!(messages[6], Message::Garbage(Garbage::NotJson));
        assert_eq!(messages[7], Message::Garbage(Garbage::NotQmp));
        assert_eq!(messages[8], Message::Garbage(Garbage::NotQmp));
    }

    #[test]
    fn a_line_over_the_limit_is_skipped_and_the_next_one_read() {
        let mut bytes = vec![b'x'; 3 * MAX_LINE];
        bytes.extend_from_slice(b"\n{\"return\": 1}\n");
        let mut decoder = Decoder::default();
        let mut messages = Vec::new();
        for chunk in bytes.chunks(4096) {
            decoder.feed(chunk, &mut |message| messages.push(message));
            assert!(decoder.line.capacity() <= 2 * MAX_LINE);
        }
        let expected = [
            Message::Garbage(Garbage::TooLong),
            Message::Return {
                id: None,
                value: 1.into(),
            },
        ];
        assert_eq!(messages, expected);
    }

    #[test]
    fn a_line_nested_too_deep_is_garbage_and_not_a_stack_overflow() {
        let bytes = format!("{}\n", "[".repeat(500_000));
        assert_eq!(
            decode(bytes.as_bytes(), &[], MAX_LINE),
            [Message::Garbage(Garbage::NotJson)]
        );
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_split_makes_no_difference(
            picked in prop::collection::vec(0..LINES.len(), 0..20),
            cuts in prop::collection::vec(0usize..60, 0..60),
            max_line in 1usize..150,
        ) {
            let text: String = picked.iter().flat_map(|index| [LINES[*index], "\n"]).collect();
            let whole = decode(text.as_bytes(), &[], max_line);
            prop_assert_eq!(decode(text.as_bytes(), &cuts, max_line), whole);
        }

        #[test]
        fn mutated_lines_never_panic(
            picked in prop::collection::vec(0..LINES.len(), 1..6),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        ) {
            let text: String = picked.iter().flat_map(|index| [LINES[*index], "\n"]).collect();
            let mut bytes = text.into_bytes();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let lines = bytes.split(|byte| *byte == b'\n').count();
            prop_assert!(decode(&bytes, &[], MAX_LINE).len() <= lines);
        }
    }
}
