//! A client of the monitor that VMAN keeps for people.

use super::daemon::PATIENCE;
use serde_json::{Value, json};
use std::{
    io::{self, BufRead, BufReader, Write},
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
        Self::try_open(socket).unwrap()
    }

    /// The same, with an error where QEMU is not there, or does not answer.
    pub fn try_open(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let lines = BufReader::new(stream);
        let mut monitor = Self { lines, next: 0 };
        monitor.try_run("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// The next line: an answer or an event.
    pub fn line(&mut self) -> Value {
        self.try_line().unwrap()
    }

    fn try_line(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_str(&line).map_err(io::Error::from)
    }

    /// What QEMU returns.
    pub fn run(&mut self, command: &str, arguments: &Value) -> Value {
        self.try_run(command, arguments).unwrap()
    }

    /// The same, with an error where it returns nothing.
    pub fn try_run(&mut self, command: &str, arguments: &Value) -> io::Result<Value> {
        self.next += 1;
        let id = self.next;
        let line = json!({"execute": command, "arguments": arguments, "id": id});
        let stream = self.lines.get_mut();
        stream.write_all(format!("{line}\n").as_bytes())?;
        loop {
            let answer = self.try_line()?;
            if answer["id"] == id {
                let returned = answer.get("return").cloned();
                return returned.ok_or_else(|| io::Error::other(answer.to_string()));
            }
        }
    }
}
