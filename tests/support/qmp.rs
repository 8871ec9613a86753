//! A client of the monitor that VMAN keeps for people.

use super::daemon::PATIENCE;
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
};

/// The monitor that VMAN keeps for people.
pub struct Monitor {
    lines: BufReader<UnixStream>,
    next: u64,
}

impl Monitor {
    /// Connects and says what every client has to.
    pub fn open(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let lines = BufReader::new(stream);
        let mut monitor = Self { lines, next: 0 };
        monitor.run("qmp_capabilities", &json!({}));
        monitor
    }

    /// The next line: an answer or an event.
    pub fn line(&mut self) -> Value {
        let mut line = String::new();
        assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "QEMU ended");
        serde_json::from_str(&line).unwrap()
    }

    /// What QEMU returns.
    pub fn run(&mut self, command: &str, arguments: &Value) -> Value {
        self.next += 1;
        let id = self.next;
        let line = json!({"execute": command, "arguments": arguments, "id": id});
        let stream = self.lines.get_mut();
        stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        loop {
            let answer = self.line();
            if answer["id"] == id {
                assert!(answer.get("return").is_some(), "{answer}");
                return answer["return"].clone();
            }
        }
    }
}
