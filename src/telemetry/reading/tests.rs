//! What was written is read back, and nothing about anybody else.

use super::{
    super::{queue::Sink as _, record::Record, text},
    file, journal,
    line::parse,
    *,
};
use crate::telemetry::{file::FileSink, text::Shape};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};
use tracing::Level;

fn record(message: &str, fields: &[(&'static str, &str)]) -> Record {
    Record {
        at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000),
        level: Level::WARN,
        target: "vman::test".to_owned(),
        file: None,
        line: None,
        message: message.to_owned(),
        fields: fields.iter().map(|(k, v)| (*k, (*v).to_owned())).collect(),
    }
}

fn query(vm: &str, lines: usize) -> LogQuery {
    LogQuery {
        vm: VmId::parse(vm).unwrap(),
        lines,
        since: None,
    }
}

fn settings(folder: &std::path::Path, max_bytes: u64, backup_count: u32) -> LogFile {
    LogFile {
        path: folder.join("vman.log"),
        max_bytes,
        backup_count,
    }
}

fn numbers(records: &[LogRecord]) -> Vec<u32> {
    let number = |record: &LogRecord| record.fields["number"].parse().unwrap();
    records.iter().map(number).collect()
}

#[test]
fn a_line_in_either_shape_is_the_record_that_was_written() {
    let fields = [
        ("vm_id", "web"),
        ("detail", "a=b \"c\" \\ ü"),
        ("empty", ""),
        ("path", "/a b/c"),
    ];
    let written = record("it is so: a record", &fields);
    for shape in [Shape::Text, Shape::Json] {
        let line = text::line(&written, shape);
        let read = parse(line.trim_end()).unwrap();
        assert_eq!(read.at, "2001-09-09T01:46:40.000000Z", "{shape:?}");
        assert_eq!(read.level, "warn");
        assert_eq!(read.target, "vman::test");
        assert_eq!(read.message, "it is so: a record");
        let told: Vec<_> = read.fields.iter().map(|(k, v)| (&**k, &**v)).collect();
        let mut expected = fields.to_vec();
        expected.sort_unstable();
        assert_eq!(told, expected, "{shape:?}: {line}");
    }
}

#[test]
fn a_message_that_looks_like_a_field_takes_nothing_from_the_fields_after_it() {
    let line = text::line(
        &record("cannot set a=1 here", &[("vm_id", "web")]),
        Shape::Text,
    );
    let read = parse(line.trim_end()).unwrap();
    assert_eq!(read.message, "cannot set a=1 here");
    assert_eq!(read.fields.len(), 1);
}

#[test]
fn what_is_no_record_is_passed_over() {
    for line in [
        "",
        "{",
        "{}",
        "[1]",
        "thread panicked",
        "a b",
        "{\"level\": 1}",
    ] {
        assert_eq!(parse(line), None, "{line:?}");
    }
}

#[tokio::test]
async fn the_last_records_of_one_vm_are_found_over_rotated_files() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path(), 600, 3);
    let mut sink = FileSink::open(settings.clone(), Shape::Text).unwrap();
    for number in 0..40 {
        let vm = if number % 2 == 0 { "web" } else { "other" };
        let number = number.to_string();
        sink.write(&record("said", &[("vm_id", vm), ("number", &number)]));
    }
    assert!(folder.path().join("vman.log.3").exists(), "it was rotated");
    let found = file::read(settings.clone(), query("web", 7)).await.unwrap();
    assert_eq!(numbers(&found), [26, 28, 30, 32, 34, 36, 38]);
    let all = file::read(settings, query("web", MAX_RECORDS))
        .await
        .unwrap();
    assert!(all.len() < 20 && all.len() > 7, "{}", all.len());
    assert!(numbers(&all).is_sorted());
}

#[tokio::test]
async fn nothing_before_the_time_that_is_asked_for_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path(), 1 << 20, 1);
    let mut sink = FileSink::open(settings.clone(), Shape::Json).unwrap();
    let mut early = record("said", &[("vm_id", "web"), ("number", "1")]);
    sink.write(&early);
    early.at += Duration::from_secs(10);
    early.fields[1].1 = "2".to_owned();
    sink.write(&early);
    let since = Timestamp::from_second(1_000_000_005).ok();
    let late = LogQuery {
        since,
        ..query("web", 10)
    };
    let found = file::read(settings, late).await.unwrap();
    assert_eq!(numbers(&found), [2]);
}

#[tokio::test]
async fn a_log_file_is_followed_over_its_rotation_and_its_truncation() {
    for backup_count in [2, 0] {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path(), 500, backup_count);
        let mut sink = FileSink::open(settings.clone(), Shape::Text).unwrap();
        let mut say = move |number: u32| {
            let number = number.to_string();
            sink.write(&record("said", &[("vm_id", "web"), ("number", &number)]));
        };
        say(0);
        let reader = LogReader::of_file(settings);
        let mut followed = reader.follow(query("web", 10)).unwrap();
        let mut heard = Vec::new();
        for number in 1..20 {
            // One after the other: a file that is cut has nothing left of what nobody read.
            let next = tokio::time::timeout(Duration::from_secs(20), followed.next()).await;
            heard.push(next.unwrap().unwrap());
            say(number);
        }
        assert_eq!(numbers(&heard), (0..19).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn at_most_eight_read_at_once_and_a_stream_that_is_dropped_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path(), 500, 0);
    let _sink = FileSink::open(settings.clone(), Shape::Text).unwrap();
    let reader = LogReader::of_file(settings);
    let mut streams: Vec<_> = (0..MAX_READERS)
        .map(|_| reader.follow(query("web", 1)).unwrap())
        .collect();
    let refused = reader.read(&query("web", 1)).await;
    assert!(matches!(refused, Err(LogReadError::Busy)), "{refused:?}");
    streams.pop();
    assert_eq!(reader.read(&query("web", 1)).await.unwrap(), []);
}

#[test]
fn an_entry_of_the_journal_is_a_record_whatever_its_values_are() {
    let entry = json!({
        "__REALTIME_TIMESTAMP": "1000000000000001",
        "PRIORITY": "4",
        "MESSAGE": [118, 109, 255],
        "VMAN_TARGET": "vman::test",
        "VMAN_VM_ID": "web",
        "VMAN_PHASE": ["old", "new"],
        "VMAN_DETAIL": null,
        "_PID": "1",
    });
    let Value::Object(entry) = entry else {
        unreachable!("an object was made")
    };
    let read = journal::record(&entry);
    assert_eq!(read.at, "2001-09-09T01:46:40.000001Z");
    assert_eq!((&*read.level, &*read.target), ("warn", "vman::test"));
    assert_eq!(read.message, "vm\u{fffd}");
    let fields: Vec<_> = read.fields.iter().map(|(k, v)| (&**k, &**v)).collect();
    assert_eq!(fields, [("detail", ""), ("phase", "new"), ("vm_id", "web")]);
}
