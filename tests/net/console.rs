//! A shell in a guest, over its serial console.

use crate::support::{
    daemon::{Daemon, PATIENCE},
    slowness,
};
use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

pub struct Shell {
    stream: UnixStream,
    commands: u32,
}

impl Shell {
    /// Logs in; the guest's counter is silenced.
    pub fn open(daemon: &Daemon, vm: &str) -> Self {
        daemon.wait_console(vm, "VMAN-GUEST userland up");
        let path = daemon.folder().join(format!("run/vms/{vm}/console.sock"));
        let stream = UnixStream::connect(path).unwrap();
        let timeout = Some(Duration::from_millis(100));
        stream.set_read_timeout(timeout).unwrap();
        let mut shell = Self {
            stream,
            commands: 0,
        };
        shell.run("stty -echo; : >/run/counter-off; dmesg -n 1");
        shell
    }

    /// Runs a command; answers its exit code and what it said.
    pub fn run(&mut self, command: &str) -> (i32, String) {
        self.commands += 1;
        let number = self.commands;
        // The marks are broken up, so that the terminal's echo of the line is not taken for them.
        let line = format!("echo BE''GIN{number}; {command}; echo E''ND{number} $?\n");
        // The guest's UART holds few bytes: a long line at once would lose some.
        for part in line.as_bytes().chunks(16) {
            self.stream.write_all(part).unwrap();
            self.stream.flush().unwrap();
            std::thread::park_timeout(Duration::from_millis(4));
        }
        let (begin, end) = (format!("BEGIN{number}"), format!("END{number} "));
        let deadline = Instant::now() + PATIENCE * 2 * slowness();
        let mut said = String::new();
        loop {
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) => panic!("the console of the guest was closed: {said}"),
                Ok(n) => said.push_str(&String::from_utf8_lossy(&piece[..n])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
            let after = said.split_once(&begin).map(|(_, after)| after);
            let found = after.and_then(|after| after.split_once(&end));
            if let Some((out, rest)) = found
                && let Some((code, _)) = rest.split_once('\n')
            {
                let code = code.trim().parse().unwrap();
                return (code, said_by_command(out));
            }
            assert!(Instant::now() < deadline, "{command}: no end of it: {said}");
        }
    }

    /// Runs a command that has to succeed.
    pub fn ok(&mut self, command: &str) -> String {
        let (code, out) = self.run(command);
        assert_eq!(code, 0, "{command}: {out}");
        out
    }

    /// Runs a command until it succeeds.
    pub fn soon(&mut self, command: &str) -> String {
        let deadline = Instant::now() + PATIENCE * slowness();
        loop {
            let (code, out) = self.run(command);
            if code == 0 {
                return out;
            }
            assert!(Instant::now() < deadline, "{command}: {out}");
        }
    }
}

/// The guest reports devices on the same console whenever they come and go.
fn said_by_command(out: &str) -> String {
    let lines = out.trim().lines();
    let own: Vec<&str> = lines
        .filter(|line| !line.starts_with("VMAN-GUEST "))
        .collect();
    own.join("\n").trim().replace('\r', "")
}
