//! Server-sent events (the HTML standard, "Server-sent events"), as much of them as VMAN sends.

/// A line longer than this is not ours.
const MAX_LINE: usize = 1024 * 1024;

/// One message of the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    /// The revision to resume after.
    pub(super) id: Option<String>,
    /// The data's lines.
    pub(super) data: String,
}

/// Puts messages together from pieces of a stream.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    id: Option<String>,
    data: Vec<String>,
}

impl Parser {
    /// The messages that are complete with this piece.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<Message> {
        let mut messages = Vec::new();
        for byte in bytes {
            match byte {
                b'\n' => {
                    let line = std::mem::take(&mut self.line);
                    let line = String::from_utf8_lossy(&line);
                    messages.extend(self.take(line.trim_end_matches('\r')));
                }
                byte if self.line.len() < MAX_LINE => self.line.push(*byte),
                _ => {}
            }
        }
        messages
    }

    fn take(&mut self, line: &str) -> Option<Message> {
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            let id = self.id.take();
            return (!data.is_empty()).then(|| Message {
                id,
                data: data.join("\n"),
            });
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "data" => self.data.push(value.to_owned()),
            "id" => self.id = Some(value.to_owned()),
            // An empty name is a comment, which keeps the connection alive.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_put_together_over_any_cutting_of_the_stream() {
        let stream = b": hello\n\nid: 7\nevent: vm\ndata: {\"a\":\r\ndata: 1}\n\ndata:x\n\nid: 9\n";
        let whole = Parser::default().feed(stream);
        let mut parser = Parser::default();
        let cut: Vec<Message> = stream
            .iter()
            .flat_map(|byte| parser.feed(&[*byte]))
            .collect();
        assert_eq!(whole, cut);
        let expected = Message {
            id: Some("7".to_owned()),
            data: "{\"a\":\n1}".to_owned(),
        };
        assert_eq!((whole.len(), &whole[0]), (2, &expected));
        assert_eq!(whole[1].data, "x");
    }
}
