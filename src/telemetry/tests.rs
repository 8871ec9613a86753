//! What the log promises: fields arrive, nobody waits, files stay bounded, and real journald understands it.

use super::{queue::Queue, record::Record, *};
use crate::config::LogFile;
use std::{
    os::unix::net::UnixDatagram,
    sync::{Arc, Mutex},
};
use tracing::Level;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Collects lines.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>, Option<Shape>);

impl Sink for Lines {
    fn write(&mut self, record: &Record) {
        let line = text::line(record, self.1.unwrap_or(Shape::Text));
        self.0.lock().unwrap().push(line);
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// What `say` logs, as lines.
fn logged(level: LogLevel, shape: Shape, say: impl FnOnce()) -> Vec<String> {
    let lines = Lines(Arc::default(), Some(shape));
    let queue = Queue::start("test", CAPACITY, Box::new(lines.clone())).unwrap();
    let layer = RecordLayer {
        queues: vec![queue.clone()],
    };
    let subscriber = tracing_subscriber::registry()
        .with(filter(level))
        .with(layer);
    let default = subscriber.set_default();
    say();
    drop(default);
    assert!(queue.flush(soon()));
    let lines = lines.0.lock().unwrap();
    lines.clone()
}

#[test]
fn fields_of_spans_and_events_arrive_and_the_events_win() {
    let lines = logged(LogLevel::Info, Shape::Text, || {
        let span = tracing::info_span!("request", request_id = "r1", phase = "Stopped");
        let _inside = span.enter();
        tracing::info!(vm_id = "hello", phase = "Running", "vm changed phase");
    });
    assert_eq!(lines.len(), 1);
    let expected =
        " INFO vman::telemetry::tests: vm changed phase request_id=r1 phase=Running vm_id=hello\n";
    assert!(lines[0].ends_with(expected), "{lines:?}");
}

#[test]
fn json_lines_are_json_whatever_a_value_holds() {
    let lines = logged(LogLevel::Info, Shape::Json, || {
        tracing::warn!(vm_id = "a\"\n\u{1b}[2J", "said");
    });
    let value: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(value["vm_id"], "a\"\n\u{1b}[2J");
    assert_eq!(
        (&value["level"], &value["message"]),
        (&"warn".into(), &"said".into())
    );
}

#[test]
fn a_line_for_people_stays_one_line_without_control_characters() {
    let lines = logged(LogLevel::Info, Shape::Text, || {
        tracing::warn!(stderr = "one\ntwo\u{1b}[2J", "said");
    });
    let body = lines[0].trim_end_matches('\n');
    assert!(!body.contains(char::is_control), "{body:?}");
}

#[test]
fn the_level_is_vmans_own_and_libraries_speak_from_warn_on() {
    let say = || {
        tracing::debug!("ours, debug");
        tracing::info!("ours, info");
        tracing::info!(target: "hyper", "theirs, info");
        tracing::warn!(target: "hyper", "theirs, warn");
    };
    assert_eq!(logged(LogLevel::Info, Shape::Text, say).len(), 2);
    assert_eq!(logged(LogLevel::Debug, Shape::Text, say).len(), 3);
    assert_eq!(logged(LogLevel::Trace, Shape::Text, say).len(), 4);
}

#[test]
fn a_panic_is_logged_with_place_and_thread() {
    let lines = logged(LogLevel::Info, Shape::Text, || {
        // The hook is the process's: tests run in processes of their own, or put it back.
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(panic::report));
        let caught = std::panic::catch_unwind(|| panic!("the {} is broken", "pump"));
        std::panic::set_hook(before);
        assert!(caught.is_err());
    });
    let line = lines
        .iter()
        .find(|line| line.contains("the pump is broken"));
    let line = line.expect("the panic's record");
    assert!(line.contains("ERROR") && line.contains("tests.rs:") && line.contains("thread="));
}

#[test]
fn a_journald_that_never_reads_makes_nobody_wait_and_drops_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let deaf = UnixDatagram::bind(&path).unwrap();
    // Nothing more fits into the kernel's queue: opening must not wait, the thread waits in its first send, and our
    // queue fills. A logger that waited too would never get out of the loop below.
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send_to(b"MESSAGE=filler\n", &path).is_ok() {}
    let sink = JournalSink::open(&path, Box::new(Lines::default())).unwrap();
    let queue = Queue::start("journald", 8, Box::new(sink)).unwrap();
    let record = Arc::new(Record::own(Level::INFO, "hello", Vec::new()));
    let deadline = soon();
    while queue.dropped() < 100 {
        queue.offer(&record);
        assert!(Instant::now() < deadline, "nothing was dropped");
    }
    assert!(!queue.flush(Instant::now() + Duration::from_millis(50)));
    // journald comes back: what was queued arrives, and so does the number of what was not.
    deaf.set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut buffer = vec![0; 65_536];
    let told = std::iter::repeat_with(|| {
        let length = deaf
            .recv(&mut buffer)
            .expect("a record before the deadline");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    })
    .find(|text| text.contains("VMAN_DROPPED="))
    .unwrap();
    assert!(told.contains("PRIORITY=4\n") && told.contains("VMAN_DESTINATION=journald\n"));
}

#[test]
fn while_journald_is_away_records_go_to_the_fallback() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let journald = UnixDatagram::bind(&path).unwrap();
    let lines = Lines::default();
    let mut sink = JournalSink::open(&path, Box::new(lines.clone())).unwrap();
    sink.write(&Record::own(Level::INFO, "first", Vec::new()));
    drop(journald);
    sink.write(&Record::own(Level::INFO, "second", Vec::new()));
    sink.write(&Record::own(Level::INFO, "third", Vec::new()));
    std::fs::remove_file(&path).unwrap();
    let journald = UnixDatagram::bind(&path).unwrap();
    sink.write(&Record::own(Level::INFO, "fourth", Vec::new()));
    let seen = lines.0.lock().unwrap().join("");
    let warnings = seen.matches("journald does not take records").count();
    assert!(
        seen.contains("second") && seen.contains("third") && warnings == 1,
        "{seen}"
    );
    let mut buffer = [0; 4096];
    let length = journald.recv(&mut buffer).unwrap();
    assert!(buffer[..length].starts_with(b"MESSAGE=fourth\n"));
}

#[test]
fn a_value_with_line_ends_cannot_forge_a_journal_field() {
    let fields = vec![("vm-id", "x\nPRIORITY=0".to_owned())];
    let bytes = journal::encode(&Record::own(Level::INFO, "m", fields));
    let value = b"VMAN_VM_ID\n\x0c\0\0\0\0\0\0\0x\nPRIORITY=0\n";
    assert!(bytes.ends_with(value), "{}", bytes.escape_ascii());
}

#[test]
fn a_log_file_is_rotated_and_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("logs/vman.log");
    let settings = LogFile {
        path: path.clone(),
        max_bytes: 4096,
        backup_count: 2,
    };
    let mut sink = FileSink::open(settings.clone(), Shape::Text).unwrap();
    for number in 0..400 {
        let fields = vec![("number", number.to_string())];
        sink.write(&Record::own(Level::INFO, "a record of some length", fields));
    }
    // A restart goes on in the same file.
    drop(sink);
    let mut sink = FileSink::open(settings, Shape::Text).unwrap();
    sink.write(&Record::own(Level::INFO, "after a restart", Vec::new()));
    let mut files: Vec<_> = std::fs::read_dir(path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                entry.metadata().unwrap().len(),
            )
        })
        .collect();
    files.sort();
    let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["vman.log", "vman.log.1", "vman.log.2"]);
    assert!(files.iter().all(|(_, size)| *size <= 4096), "{files:?}");
    let current = std::fs::read_to_string(&path).unwrap();
    assert!(current.contains("number=399\n") && current.contains("after a restart"));
}

/// Runs `script` in a mount namespace of its own where a real journald may be started; none where this host cannot.
fn in_a_journal_namespace(script: &str) -> Option<String> {
    let setup = "mount --make-rprivate / && mkdir -p /run/systemd /run/log \
        && mount -t tmpfs tmpfs /run/systemd && mount -t tmpfs tmpfs /run/log \
        && mkdir -p /run/systemd/journal && printf '[Journal]\\nStorage=volatile\\n' > /run/systemd/j.conf \
        && mount --bind /run/systemd/j.conf /etc/systemd/journald.conf || exit 77\n\
        test -x /lib/systemd/systemd-journald || exit 77\n\
        /lib/systemd/systemd-journald & daemon=$!; trap 'kill $daemon' EXIT\n\
        n=0; until [ -S /run/systemd/journal/socket ]; do n=$((n+1)); [ $n -gt 100 ] && exit 77; sleep 0.1; done\n";
    let output = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c", &format!("{setup}{script}")])
        .env("VMAN_TEST_JOURNALD", "1")
        .output()
        .ok()?;
    if output.status.code() == Some(0) {
        return Some(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let known = matches!(output.status.code(), Some(1 | 77)) && output.stdout.is_empty();
    assert!(known, "{output:?}");
    eprintln!("SKIPPED: no real journald can be started here: {output:?}");
    None
}

#[test]
fn real_journald_stores_small_and_large_records() {
    // The test runs itself again inside the namespace, as the part that writes.
    if std::env::var_os("VMAN_TEST_JOURNALD").is_some() {
        let mut sink = JournalSink::open(Path::new(journal::SOCKET), journal::stderr()).unwrap();
        let fields = vec![
            ("vm_id", "hello".to_owned()),
            ("phase", "Running".to_owned()),
        ];
        sink.write(&Record::own(Level::INFO, "vm changed phase", fields));
        let fields = vec![("large", "x".repeat(1_000_000))];
        sink.write(&Record::own(Level::ERROR, "a large one", fields));
        return;
    }
    let program = std::env::current_exe().unwrap();
    let script = format!(
        "{} --exact telemetry::tests::real_journald_stores_small_and_large_records >/dev/null || exit 3\n\
         n=0; until journalctl -q -o json SYSLOG_IDENTIFIER=vman | grep -q 'a large one'; do n=$((n+1)); [ $n -gt 100 ] && exit 4; sleep 0.1; done\n\
         journalctl -q --all -o json SYSLOG_IDENTIFIER=vman\n",
        program.display()
    );
    let Some(output) = in_a_journal_namespace(&script) else {
        return;
    };
    let records: Vec<serde_json::Value> = output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let small = &records[0];
    assert_eq!(small["MESSAGE"], "vm changed phase");
    assert_eq!(
        (&small["VMAN_VM_ID"], &small["PRIORITY"]),
        (&"hello".into(), &"6".into())
    );
    let large = records[1]["VMAN_LARGE"].as_str().unwrap();
    assert_eq!(
        (large.len(), &records[1]["PRIORITY"]),
        (1_000_000, &"3".into())
    );
}

#[test]
fn every_class_of_events_has_an_id_of_its_own_a_row_in_the_docs_and_a_place_in_the_catalogue() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = root.join("contrib/vman.catalog");
    if std::env::var_os("UPDATE_CATALOG").is_some() {
        std::fs::write(&file, catalogue()).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap();
    assert_eq!(written, catalogue(), "UPDATE_CATALOG=1 writes it anew");
    let docs = std::fs::read_to_string(root.join("docs/operations.md")).unwrap();
    let mut ids = std::collections::BTreeSet::new();
    for EventClass {
        event, id, subject, ..
    } in EVENT_CLASSES
    {
        assert!(id.len() == 32 && id.chars().all(|c| c.is_ascii_hexdigit()));
        assert!(ids.insert(id), "{id} stands for two classes");
        let row = format!("| `{event}` | `{id}` | {subject} |");
        assert!(docs.contains(&row), "docs/operations.md lacks: {row}");
    }
}

/// Every `event = "…"` in the code, and every word of the model's events, is a class.
#[test]
fn every_event_that_is_logged_is_a_class() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut words = Vec::new();
    let mut folders = vec![root.join("src"), root.join("actors/src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|of| of == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let literal = text.split("event = \"").skip(1);
                words.extend(literal.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
            }
        }
    }
    let model = std::fs::read_to_string(root.join("actors/model/src/event.rs")).unwrap();
    let kinds = model.split("EventKind::").skip(1);
    let kinds = kinds.filter_map(|rest| rest.split_once("=> \"")?.1.split_once('"'));
    words.extend(kinds.map(|(word, _)| word.to_owned()));
    words.retain(|word| word != "…");
    assert!(words.len() > 15, "{words:?}");
    for word in words {
        let known = EVENT_CLASSES.iter().any(|class| class.event == word);
        let hint = "add it to src/telemetry/classes.rs with an id from systemd-id128 new";
        assert!(known, "{word} is logged and is no class: {hint}");
    }
}
