//! What a guest or a peer wrote, made harmless for a terminal.
//!
//! A guest's console can hold escape sequences that retitle the window, answer back as if typed, or overwrite what
//! was printed before. On a terminal they are left out; `--raw` and pipes get the bytes as they are.

/// A sequence that has not ended after so many characters is text that pretends: printing goes on.
const MAX_SEQUENCE: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Text,
    /// After ESC.
    Escape,
    /// After `ESC [`: ends at @ to ~.
    Control(usize),
    /// After `ESC ]`, `ESC P` and the like: ends at BEL or `ESC \`.
    String(usize),
    /// After CR: a line feed belongs to it.
    Return,
}

/// Leaves out control characters and escape sequences, over any cutting of the stream into pieces.
#[derive(Debug)]
pub struct Sanitizer {
    state: State,
    /// The beginning of a character whose end has not come yet, at most 3 bytes.
    pending: Vec<u8>,
}

impl Default for Sanitizer {
    fn default() -> Self {
        Self {
            state: State::Text,
            pending: Vec::new(),
        }
    }
}

impl Sanitizer {
    /// What may be printed of the next piece.
    pub fn feed(&mut self, bytes: &[u8]) -> String {
        let mut input = std::mem::take(&mut self.pending);
        input.extend_from_slice(bytes);
        let mut out = String::with_capacity(input.len());
        let mut chunks = input.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            for c in chunk.valid().chars() {
                self.character(c, &mut out);
            }
            let invalid = chunk.invalid();
            let may_go_on = chunks.peek().is_none() && is_beginning(invalid);
            if may_go_on {
                invalid.clone_into(&mut self.pending);
            } else if !invalid.is_empty() {
                self.character(char::REPLACEMENT_CHARACTER, &mut out);
            }
        }
        out
    }

    fn character(&mut self, c: char, out: &mut String) {
        self.state = match (self.state, c) {
            (State::Escape, '[') => State::Control(0),
            (State::Escape, ']' | 'P' | 'X' | '^' | '_') => State::String(0),
            // Between ESC and the last character of a sequence such as `ESC ( B`.
            (State::Escape, ' '..='/') => State::Escape,
            (State::Escape, '0'..='~') => State::Text,
            (State::Control(_), '@'..='~') => State::Text,
            (State::Control(n), ' '..='?') if n < MAX_SEQUENCE => State::Control(n + 1),
            (State::String(_), '\u{7}' | '\u{9c}') => State::Text,
            // A line's end ends it too, or a guest could silence its console for ever.
            (State::String(n), c) if n < MAX_SEQUENCE && !matches!(c, '\n' | '\u{1b}') => {
                State::String(n + 1)
            }
            (State::Return, '\n') => {
                out.push('\n');
                State::Text
            }
            (State::Return, '\r') => State::Return,
            (before, c) => {
                // A carriage return alone would let what follows overwrite the line.
                if before == State::Return {
                    out.push('\n');
                }
                plain(c, out)
            }
        };
    }
}

fn plain(c: char, out: &mut String) -> State {
    match c {
        '\u{1b}' => return State::Escape,
        '\u{9b}' => return State::Control(0),
        '\u{90}' | '\u{98}' | '\u{9d}'..='\u{9f}' => return State::String(0),
        '\r' => return State::Return,
        '\n' | '\t' => out.push(c),
        c if c.is_control() || is_direction(c) => {}
        c => out.push(c),
    }
    State::Text
}

/// Characters that make later text appear before earlier text.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether these bytes may be the beginning of a UTF-8 character.
fn is_beginning(bytes: &[u8]) -> bool {
    let needed = match bytes.first() {
        Some(0xc2..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf4) => 4,
        _ => return false,
    };
    bytes.len() < needed
}

/// Text of a peer as one harmless line.
pub fn one_line(text: &str) -> String {
    let clean = Sanitizer::default().feed(text.as_bytes());
    clean.replace(['\n', '\t'], " ").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn clean(bytes: &[u8]) -> String {
        Sanitizer::default().feed(bytes)
    }

    #[test]
    fn escape_sequences_are_left_out_and_text_stays() {
        let cases: [(&[u8], &str); 11] = [
            (b"plain \xc3\xa4 text\n", "plain ä text\n"),
            (b"a\x1b[31;1mgreen\x1b[0mb", "agreenb"),
            (b"a\x1b]0;new title\x07b", "ab"),
            (b"a\x1b]52;c;ZXZpbA==\x1b\\b", "ab"),
            (b"a\x1bP$q\x1b\\b", "ab"),
            (b"a\x1b(Bb\x1bcc", "abc"),
            (b"~ # \x1b[6n", "~ # "),
            (b"one\r\ntwo\r\r\nthree", "one\ntwo\nthree"),
            (b"good\rEVIL", "good\nEVIL"),
            (b"\x08\x08\x00\x7fx\xc2\x9b31mred", "xred"),
            (b"bad \xff byte", "bad \u{fffd} byte"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(clean(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn an_unended_sequence_does_not_silence_the_console() {
        assert_eq!(clean(b"\x1b]0;never ended\nnext line"), "\nnext line");
        let endless = format!("\x1b]{}END", "x".repeat(2 * MAX_SEQUENCE));
        assert!(clean(endless.as_bytes()).ends_with("END"));
    }

    proptest! {
        #[test]
        fn nothing_dangerous_comes_out_however_the_stream_is_cut(
            bytes in proptest::collection::vec(
                prop_oneof![Just(0x1b), Just(b'['), Just(b']'), Just(0x9b), Just(0xc2), Just(b'\r'), any::<u8>()],
                0..200,
            ),
            cut in 0_usize..200,
        ) {
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let mut sanitizer = Sanitizer::default();
            let pieces = sanitizer.feed(first) + &sanitizer.feed(second);
            prop_assert!(!pieces.contains(|c: char| c.is_control() && c != '\n' && c != '\t'));
            prop_assert_eq!(pieces, clean(&bytes));
        }
    }
}
