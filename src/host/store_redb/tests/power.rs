//! The power goes out: of what was written since the last sync any part may be on the disk, in any
//! order, and the rest is not. What was answered must be there.

use super::*;
use proptest::{prelude::*, test_runner::TestRunner};
use redb::BackendError;

/// What the file went through.
#[derive(Clone, Debug)]
enum Step {
    Write(usize, Vec<u8>),
    SetLen(usize),
    Sync,
    /// The commit of this number was answered.
    Answered(u32),
}

type Log = Arc<Mutex<Vec<Step>>>;

#[derive(Debug)]
struct RecordedFile(FileBackend, Log);

impl RecordedFile {
    fn note(&self, step: Step) {
        self.1.lock().unwrap().push(step);
    }
}

impl StorageBackend for RecordedFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(Step::SetLen(usize::try_from(len).unwrap()));
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.note(Step::Sync);
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.note(Step::Write(usize::try_from(offset).unwrap(), data.to_vec()));
        self.0.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }
}

fn number(n: u32) -> [Row; 2] {
    // Of a size that makes the file grow and shrink now and then.
    let value = format!("{n:08}{}", "x".repeat((n as usize * 7919) % 200_000));
    [row("a", &value), row("b", &value)]
}

/// The file as it was created, and all that became of it over three lives: one that ends as by
/// SIGKILL, so that the next one repairs, and two that end well.
fn recorded_lives() -> (Vec<u8>, Vec<Step>) {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::default();
    let path = dir.path().join("vman.redb");
    create::ensure(&path, None).unwrap();
    let created = fs::read(&path).unwrap();
    let mut killed = Vec::new();
    for life in 0..3 {
        let shared = log.clone();
        let storage = RedbStorage::with_file(
            &path,
            Box::new(move |file| Box::new(RecordedFile(file, shared.clone()))),
        );
        storage.open().unwrap();
        for n in life * 10..life * 10 + 10 {
            storage.commit(&number(n + 1)).unwrap();
            log.lock().unwrap().push(Step::Answered(n + 1));
        }
        if life == 0 {
            killed = fs::read(&path).unwrap();
            let steps = log.lock().unwrap().clone();
            drop(storage);
            fs::write(&path, &killed).unwrap();
            *log.lock().unwrap() = steps;
        }
    }
    assert!(!killed.is_empty());
    (created, Arc::try_unwrap(log).unwrap().into_inner().unwrap())
}

fn apply(bytes: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write(offset, data) => {
            let end = offset + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*offset..end].copy_from_slice(data);
        }
        Step::SetLen(len) => bytes.resize(*len, 0),
        Step::Sync | Step::Answered(_) => {}
    }
}

/// The file after a cut at `cut`: all up to the last sync, and of the rest what `kept` says.
fn after_cut(created: &[u8], steps: &[Step], cut: usize, kept: &[bool]) -> (Vec<u8>, u32) {
    let before = &steps[..cut];
    let synced = before
        .iter()
        .rposition(|step| matches!(step, Step::Sync))
        .map_or(0, |at| at + 1);
    let mut bytes = created.to_vec();
    let mut kept = kept.iter().cycle();
    for (at, step) in before.iter().enumerate() {
        if at < synced || *kept.next().unwrap() {
            apply(&mut bytes, step);
        }
    }
    let answered = before.iter().rev().find_map(|step| match step {
        Step::Answered(n) => Some(*n),
        _ => None,
    });
    (bytes, answered.unwrap_or(0))
}

#[test]
fn nothing_answered_is_lost_and_nothing_is_torn_when_the_power_goes_out() {
    let (created, steps) = recorded_lives();
    let cuts = (
        0..=steps.len(),
        proptest::collection::vec(any::<bool>(), 1..40),
    );
    let mut runner = TestRunner::new(ProptestConfig::with_cases(150));
    runner
        .run(&cuts, |(cut, kept)| {
            let (bytes, answered) = after_cut(&created, &steps, cut, &kept);
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("vman.redb"), bytes).unwrap();
            let storage = opened_in(&dir);
            let rows = storage.load(Table::Vms).unwrap();
            let seen: Vec<u32> = rows
                .iter()
                .map(|(_, value)| std::str::from_utf8(&value[..8]).unwrap().parse().unwrap())
                .collect();
            prop_assert!(
                seen.windows(2).all(|pair| pair[0] == pair[1]),
                "torn: {:?}",
                seen
            );
            let last = seen.first().copied().unwrap_or(0);
            prop_assert!(
                last == answered || last == answered + 1,
                "{} of {}",
                last,
                answered
            );
            Ok(())
        })
        .unwrap();
}
