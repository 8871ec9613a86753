//! Where a command writes: standard output and error, or a test's buffers.

use super::error::CliError;
use std::io::{self, IsTerminal as _, Write};

/// Where a command writes.
pub struct Terminal {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    /// Standard output is a terminal: tables fit its width, guests' text is made harmless.
    pub out_is_terminal: bool,
    /// Standard error is a terminal: progress is shown.
    pub err_is_terminal: bool,
    /// Columns of the output's terminal.
    pub width: Option<u16>,
}

impl std::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terminal").finish_non_exhaustive()
    }
}

impl Terminal {
    /// The process's own.
    pub fn of_process() -> Self {
        let out = io::stdout();
        let out_is_terminal = out.is_terminal();
        let width = out_is_terminal
            .then(|| rustix::termios::tcgetwinsize(&out).ok())
            .flatten()
            .map(|size| size.ws_col)
            .filter(|columns| *columns > 0);
        Self {
            out: Box::new(out),
            err: Box::new(io::stderr()),
            out_is_terminal,
            err_is_terminal: io::stderr().is_terminal(),
            width,
        }
    }

    /// Buffers, which count as pipes.
    pub fn buffers(out: Box<dyn Write + Send>, err: Box<dyn Write + Send>) -> Self {
        Self {
            out,
            err,
            out_is_terminal: false,
            err_is_terminal: false,
            width: None,
        }
    }

    /// Writes to standard output at once.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.out.write_all(bytes)?;
        Ok(self.out.flush()?)
    }

    /// A line on standard output.
    pub fn line(&mut self, line: &str) -> Result<(), CliError> {
        self.write(format!("{line}\n").as_bytes())
    }

    /// A line on standard error, for people.
    pub fn note(&mut self, line: &str) {
        // Who closes standard error does not want to be told.
        let _ = writeln!(self.err, "{line}");
    }
}
