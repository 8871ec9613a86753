//! The log file and those it was rotated into.

use super::{LogQuery, LogReadError, LogRecord, MAX_LINE, MAX_RECORDS, line};
use crate::config::LogFile;
use jiff::Timestamp;
use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::mpsc;

/// How often a file that is followed is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// The last records, from the newest file backwards until there are enough.
pub(super) async fn read(
    settings: LogFile,
    query: LogQuery,
) -> Result<Vec<LogRecord>, LogReadError> {
    let found = tokio::task::spawn_blocking(move || last(&settings, &query)).await;
    found
        .map_err(|error| LogReadError::Failed(error.to_string()))?
        .map_err(|error| LogReadError::Failed(error.to_string()))
}

fn last(settings: &LogFile, query: &LogQuery) -> io::Result<Vec<LogRecord>> {
    let mut current = open(&settings.path)?;
    Wanted::new(query).last(settings, current.as_mut())
}

fn open(path: &Path) -> io::Result<Option<BufReader<File>>> {
    match File::open(path) {
        Ok(file) => Ok(Some(BufReader::new(file))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// `vman.log`, `vman.log.1` and so on.
fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Hands on the last records, then what comes, over rotations, until nobody takes them.
pub(super) fn follow(settings: &LogFile, query: &LogQuery, records: &mpsc::Sender<LogRecord>) {
    if let Err(error) = followed(settings, query, records) {
        tracing::warn!(%error, "cannot follow the log file");
    }
}

fn followed(
    settings: &LogFile,
    query: &LogQuery,
    records: &mpsc::Sender<LogRecord>,
) -> io::Result<()> {
    let mut file = BufReader::new(File::open(&settings.path)?);
    let mut reader = Wanted::new(query);
    for record in reader.last(settings, Some(&mut file))? {
        if records.blocking_send(record).is_err() {
            return Ok(());
        }
    }
    while !records.is_closed() {
        std::thread::sleep(LOOK);
        file = reader.successor(file, &settings.path)?;
        reader.each(&mut file, |record| records.blocking_send(record).is_ok())?;
    }
    Ok(())
}

/// Picks out the records that are asked for.
struct Wanted<'a> {
    query: &'a LogQuery,
    lines: usize,
    /// The beginning of a line whose end was not there yet.
    begun: Vec<u8>,
}

impl<'a> Wanted<'a> {
    fn new(query: &'a LogQuery) -> Self {
        Self {
            query,
            lines: query.lines.min(MAX_RECORDS),
            begun: Vec::new(),
        }
    }

    /// The last records; `current` is read to its end.
    fn last(
        &mut self,
        settings: &LogFile,
        mut current: Option<&mut BufReader<File>>,
    ) -> io::Result<Vec<LogRecord>> {
        let mut found = VecDeque::new();
        let mut own = None;
        if let Some(file) = &mut current {
            own = Some(file.get_ref().metadata()?.ino());
            found = self.newest(file, self.lines)?;
        }
        // A line that is still being written goes on in the current file, not in an older one.
        let begun = std::mem::take(&mut self.begun);
        for number in 1..=settings.backup_count {
            let missing = self.lines.saturating_sub(found.len());
            if missing == 0 {
                break;
            }
            let Some(mut file) = open(&numbered(&settings.path, number))? else {
                continue;
            };
            // It was rotated a moment ago, and has been read.
            if Some(file.get_ref().metadata()?.ino()) == own {
                continue;
            }
            let mut older = self.newest(&mut file, missing)?;
            older.append(&mut found);
            found = older;
        }
        self.begun = begun;
        Ok(found.into())
    }

    fn newest(
        &mut self,
        file: &mut BufReader<File>,
        most: usize,
    ) -> io::Result<VecDeque<LogRecord>> {
        let mut newest = VecDeque::new();
        self.begun.clear();
        self.each(file, |record| {
            newest.push_back(record);
            if newest.len() > most {
                newest.pop_front();
            }
            true
        })?;
        Ok(newest)
    }

    /// The same file, or the one that has taken its place; from its start where it was cut.
    fn successor(&mut self, mut file: BufReader<File>, path: &Path) -> io::Result<BufReader<File>> {
        let own = file.get_ref().metadata()?;
        let replaced = std::fs::metadata(path).is_ok_and(|there| there.ino() != own.ino());
        // What was written to the old one after the last look comes first.
        if replaced && file.fill_buf()?.is_empty() {
            self.begun.clear();
            return Ok(BufReader::new(File::open(path)?));
        }
        if own.len() < file.stream_position()? {
            self.begun.clear();
            file.seek(SeekFrom::Start(0))?;
        }
        Ok(file)
    }

    /// Calls `take` with each record up to the file's present end, until it says false.
    fn each(
        &mut self,
        file: &mut BufReader<File>,
        mut take: impl FnMut(LogRecord) -> bool,
    ) -> io::Result<()> {
        loop {
            let room = (MAX_LINE - self.begun.len()) as u64;
            file.by_ref()
                .take(room)
                .read_until(b'\n', &mut self.begun)?;
            let whole = self.begun.ends_with(b"\n");
            if !whole && self.begun.len() < MAX_LINE {
                // The end of the file: the rest of the line is still to come.
                return Ok(());
            }
            let text = String::from_utf8_lossy(&self.begun);
            let record = line::parse(text.trim_end_matches('\n'));
            let record = record.filter(|record| self.wants(record));
            self.begun.clear();
            if record.is_some_and(|record| !take(record)) {
                return Ok(());
            }
        }
    }

    fn wants(&self, record: &LogRecord) -> bool {
        let about = record.fields.get("vm_id");
        let late = |since: &Timestamp| {
            let at: Option<Timestamp> = record.at.parse().ok();
            at.is_some_and(|at| at >= *since)
        };
        about.is_some_and(|vm| vm == self.query.vm.as_str())
            && self.query.since.as_ref().is_none_or(late)
    }
}
