//! Logs that QEMU appends to for years: their ends, their growth, their bounds.
//!
//! Owns: reading and bounding. Must not: rename or rewrite a file that QEMU has open. A log is
//! bounded by punching a hole over everything but its end: offsets stay, appends go on untouched,
//! no byte written meanwhile is lost, and the file's length still says how much was ever written.
//! Where the file system cannot punch holes, the end is copied aside and the file emptied; QEMU goes
//! on at its start because it appends. All of it blocks, shortly: call it from a blocking thread.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use vman_actors::ports::ConsoleTail;

/// How much of a log's end is always kept, in bytes: twenty times what the API shows.
pub(super) const KEEP: u64 = 1024 * 1024;

/// How much a log may take on disk before it is cut back to [`KEEP`], in bytes. Twice, so that a
/// guest that writes without end costs one cut a MiB and not one a line.
pub(super) const CAP: u64 = 2 * KEEP;

/// Holes begin and end at multiples of it: the largest block size in common use.
const BLOCK: u64 = 64 * 1024;

/// How often a followed console is looked at. Serial consoles are for people.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);

/// How much of a followed console is handed over at once, in bytes.
const FOLLOW_CHUNK: u64 = 64 * 1024;

/// The last `max` bytes of a log, no more than [`KEEP`]; nothing if there is no log.
pub(super) fn tail(path: &Path, max: usize) -> io::Result<ConsoleTail> {
    let Some(mut file) = open(path)? else {
        return Ok(ConsoleTail {
            bytes: Vec::new(),
            file_size: 0,
        });
    };
    let file_size = file.metadata()?.len();
    let wanted = u64::try_from(max).unwrap_or(KEEP).min(KEEP).min(file_size);
    file.seek(SeekFrom::Start(file_size - wanted))?;
    let mut bytes = Vec::new();
    file.take(wanted).read_to_end(&mut bytes)?;
    Ok(ConsoleTail { bytes, file_size })
}

/// Cuts a log back if it has grown beyond its bounds.
pub(super) fn trim(path: &Path) -> io::Result<()> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let known = file.metadata()?;
    if known.blocks() * 512 <= CAP {
        return Ok(());
    }
    let end = known.len().saturating_sub(KEEP) / BLOCK * BLOCK;
    if end == 0 {
        return Ok(());
    }
    match fallocate(
        &file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        0,
        end,
    ) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => empty(path, &file),
        Err(error) => Err(error.into()),
    }
}

/// For file systems without holes. What is written between the copy and the cut is lost.
fn empty(path: &Path, file: &File) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".1");
    let mut options = OpenOptions::new();
    let mut copy = options
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(aside)?;
    copy.write_all(&tail(path, usize::MAX)?.bytes)?;
    file.set_len(0)
}

/// The log from its last `backlog` bytes on, and then as it grows.
pub(super) fn follow(path: PathBuf, backlog: usize) -> impl Stream<Item = Bytes> + Send {
    let start = Follower {
        path,
        at: None,
        file: None,
        backlog,
    };
    stream::unfold(start, |mut follower| async {
        loop {
            let looked = tokio::task::spawn_blocking(move || {
                let more = follower.more();
                (follower, more)
            });
            // The blocking pool is gone: the daemon is ending.
            let Ok((returned, more)) = looked.await else {
                return None;
            };
            follower = returned;
            match more {
                Some(bytes) => return Some((bytes, follower)),
                None => tokio::time::sleep(FOLLOW_EVERY).await,
            }
        }
    })
}

struct Follower {
    path: PathBuf,
    at: Option<u64>,
    file: Option<File>,
    backlog: usize,
}

impl Follower {
    /// What is there beyond what was read. An unreadable log is as good as one that does not grow.
    fn more(&mut self) -> Option<Bytes> {
        if self.file.is_none() {
            self.file = open(&self.path).ok().flatten();
        }
        let length = self.file.as_ref()?.metadata().ok()?.len();
        let backlog = u64::try_from(self.backlog).unwrap_or(KEEP).min(KEEP);
        let at = *self.at.get_or_insert(length.saturating_sub(backlog));
        if at >= length {
            if at > length || self.was_replaced() {
                // Emptied, or erased and made anew: go on with its start.
                (self.at, self.file) = (Some(0), None);
            }
            return None;
        }
        // Whoever reads slower than the guest writes has lost what was cut off.
        let from = at.max(length.saturating_sub(KEEP));
        let mut bytes = vec![0; usize::try_from((length - from).min(FOLLOW_CHUNK)).ok()?];
        let count = self.file.as_ref()?.read_at(&mut bytes, from).ok()?;
        bytes.truncate(count);
        self.at = Some(from + u64::try_from(count).ok()?);
        (count > 0).then(|| bytes.into())
    }

    fn was_replaced(&self) -> bool {
        let held = self
            .file
            .as_ref()
            .and_then(|file| file.metadata().ok())
            .map(|it| it.ino());
        held != std::fs::metadata(&self.path).ok().map(|it| it.ino())
    }
}

/// The end of what QEMU said since `banner`, at most `lines` lines of at most 400 bytes.
pub(super) fn last_words(path: &Path, banner: &str, lines: usize) -> String {
    let Ok(end) = tail(path, 16 * 1024) else {
        return String::new();
    };
    let text = String::from_utf8_lossy(&end.bytes);
    let life = text
        .rfind(banner)
        .map_or("", |at| &text[at + banner.len()..]);
    let said: Vec<_> = life
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let last = &said[said.len().saturating_sub(lines)..];
    let short = |line: &&str| line.chars().take(400).collect::<String>();
    last.iter().map(short).collect::<Vec<_>>().join("\n")
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::StreamExt;
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn appending(path: &Path) -> File {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .expect("a log")
    }

    #[test]
    fn a_log_that_is_not_there_is_empty_and_needs_no_cut() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("console.log");
        let nothing = ConsoleTail {
            bytes: Vec::new(),
            file_size: 0,
        };
        assert_eq!(tail(&path, 100).expect("no error"), nothing);
        trim(&path).expect("no error");
        assert!(!path.exists());
    }

    #[test]
    fn a_log_is_cut_while_it_is_written_and_no_byte_of_its_end_is_lost() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("console.log");
        let mut log = appending(&path);
        let done = AtomicBool::new(false);
        let written = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut written = 0;
                for number in 0..400_000 {
                    let line = format!("line {number:010}\n");
                    log.write_all(line.as_bytes()).expect("written");
                    written += line.len() as u64;
                }
                done.store(true, Ordering::Release);
                written
            });
            while !done.load(Ordering::Acquire) {
                trim(&path).expect("cut");
            }
            writer.join().expect("no panic")
        });
        trim(&path).expect("cut");
        let end = tail(&path, usize::MAX).expect("an end");
        assert_eq!(end.file_size, written);
        assert_eq!(end.bytes.len() as u64, KEEP);
        assert!(fs::metadata(&path).expect("there").blocks() * 512 <= CAP);
        let text = String::from_utf8(end.bytes).expect("text, no holes");
        let numbers: Vec<u32> = text
            .lines()
            .skip(1)
            .map(|line| line[5..].parse().expect("whole"))
            .collect();
        assert_eq!(numbers.last(), Some(&399_999));
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
    }

    #[tokio::test]
    async fn a_follower_hears_the_backlog_then_what_comes_also_after_a_new_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("console.log");
        let mut log = appending(&path);
        log.write_all(b"old and recent").expect("written");
        let mut stream = Box::pin(follow(path.clone(), 6));
        let mut next = async || timeout(PATIENCE, stream.next()).await.expect("in time");
        assert_eq!(next().await.expect("some"), "recent");
        log.write_all(b", new").expect("written");
        assert_eq!(next().await.expect("some"), ", new");
        log.set_len(0).expect("emptied");
        log.write_all(b"again").expect("written");
        assert_eq!(next().await.expect("some"), "again");
        fs::remove_file(&path).expect("erased");
        appending(&path).write_all(b"another").expect("written");
        assert_eq!(next().await.expect("some"), "another");
    }

    #[test]
    fn the_last_words_are_those_of_the_last_life() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("qemu.log");
        let text = "== 1 ==\nold\n== 2 ==\none\n\ntwo\nthree\n";
        fs::write(&path, text).expect("written");
        assert_eq!(last_words(&path, "== 2 ==", 2), "two\nthree");
        assert_eq!(last_words(&path, "== 3 ==", 2), "", "not another life's");
    }
}
