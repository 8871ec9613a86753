//! Standard error, and a log file that is rotated.

use super::{
    queue::Sink,
    record::Record,
    text::{Shape, line},
};
use crate::config::LogFile;
use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::PathBuf,
};

/// Lines on standard error.
#[derive(Debug)]
pub(super) struct StderrSink {
    pub(super) shape: Shape,
}

impl Sink for StderrSink {
    fn write(&mut self, record: &Record) {
        // Nobody is left to be told that standard error is closed.
        let _ = io::stderr().write_all(line(record, self.shape).as_bytes());
    }
}

/// A file that becomes `.1` when it is full, `.1` becoming `.2`, and so on.
#[derive(Debug)]
pub(super) struct FileSink {
    settings: LogFile,
    shape: Shape,
    file: Option<File>,
    size: u64,
    complained: bool,
}

impl FileSink {
    /// Opens the file for appending and makes its directory where that is missing.
    pub(super) fn open(settings: LogFile, shape: Shape) -> io::Result<Self> {
        if let Some(directory) = settings.path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let mut sink = Self {
            settings,
            shape,
            file: None,
            size: 0,
            complained: false,
        };
        sink.reopen()?;
        Ok(sink)
    }

    fn reopen(&mut self) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(&self.settings.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.settings.path.clone().into_os_string();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    }

    fn rotate(&mut self) -> io::Result<()> {
        let kept = self.settings.backup_count;
        if kept == 0 {
            if let Some(file) = &self.file {
                file.set_len(0)?;
            }
            self.size = 0;
            return Ok(());
        }
        for number in (1..kept).rev() {
            match std::fs::rename(self.numbered(number), self.numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.settings.path, self.numbered(1))?;
        self.reopen()
    }

    fn append(&mut self, text: &str) -> io::Result<()> {
        let length = text.len() as u64;
        if self.size > 0 && self.size + length > self.settings.max_bytes {
            self.rotate()?;
        }
        if self.file.is_none() {
            self.reopen()?;
        }
        if let Some(file) = &mut self.file {
            file.write_all(text.as_bytes())?;
            self.size += length;
        }
        Ok(())
    }
}

impl Sink for FileSink {
    fn write(&mut self, record: &Record) {
        match self.append(&line(record, self.shape)) {
            Ok(()) => self.complained = false,
            Err(error) => {
                // A full disk is told once on standard error, and tried again with each record.
                if !self.complained {
                    let path = self.settings.path.display();
                    let _ = writeln!(
                        io::stderr(),
                        "vman: cannot write the log file {path}: {error}"
                    );
                }
                self.complained = true;
                self.file = None;
            }
        }
    }
}
