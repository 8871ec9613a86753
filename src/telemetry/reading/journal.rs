//! journald's records, read by journalctl: its files' format is journald's own, and journald itself need not answer.

use super::{LogQuery, LogReadError, LogRecord, MAX_LINE, MAX_RECORDS};
use jiff::Timestamp;
use serde_json::{Map, Value};
use std::{path::Path, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, Command},
    sync::mpsc,
    time::timeout,
};

/// journalctl goes through every journal file of the host; one on a slow disk takes seconds.
const DEADLINE: Duration = Duration::from_secs(20);
/// Of what journalctl says on standard error: enough for its sentence.
const STDERR_LIMIT: u64 = 4096;

/// Starts journalctl. Its words are ours, but for the VM's id, which holds neither `=` nor blanks.
pub(super) fn start(
    journalctl: &Path,
    query: &LogQuery,
    follow: bool,
) -> Result<Child, LogReadError> {
    let mut command = Command::new(journalctl);
    command.args(["--quiet", "--all", "--no-pager", "--output=json"]);
    command.arg(format!("--lines={}", query.lines.min(MAX_RECORDS)));
    if let Some(since) = query.since {
        // journalctl knows no time before 1970.
        command.arg(format!("--since=@{}", since.as_second().max(0)));
    }
    if follow {
        command.arg("--follow");
    }
    // Anybody may write a VMAN_VM_ID into the journal; the uid is journald's own word.
    let own = rustix::process::geteuid().as_raw();
    command.arg(format!("_UID={own}"));
    command.arg(format!("VMAN_VM_ID={}", query.vm));
    command
        .env_clear()
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        // Nobody else would end one that follows.
        .kill_on_drop(true);
    command
        .spawn()
        .map_err(|error| LogReadError::Failed(format!("journalctl: {error}")))
}

/// The last records.
pub(super) async fn read(
    journalctl: &Path,
    query: &LogQuery,
) -> Result<Vec<LogRecord>, LogReadError> {
    let mut child = start(journalctl, query, false)?;
    let (records, mut waiting) = mpsc::channel(MAX_RECORDS);
    let ended = async {
        pump(&mut child, &records).await;
        let mut said = String::new();
        if let Some(stderr) = child.stderr.take() {
            let _ = stderr.take(STDERR_LIMIT).read_to_string(&mut said).await;
        }
        child.wait().await.map(|status| (status, said))
    };
    match timeout(DEADLINE, ended).await {
        // No record is an exit code of 1 without a word in some versions.
        Ok(Ok((status, said))) if !status.success() && !said.trim().is_empty() => {
            return Err(LogReadError::Failed(format!("journalctl: {}", said.trim())));
        }
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(LogReadError::Failed(format!("journalctl: {error}"))),
        Err(_) => {
            let seconds = DEADLINE.as_secs();
            return Err(LogReadError::Failed(format!(
                "journalctl was not done after {seconds} s"
            )));
        }
    }
    let mut out = Vec::new();
    while let Ok(record) = waiting.try_recv() {
        out.push(record);
    }
    Ok(out)
}

/// Hands on what journalctl prints until it ends or nobody takes it.
pub(super) async fn pump(child: &mut Child, records: &mpsc::Sender<LogRecord>) {
    let Some(stdout) = child.stdout.take() else {
        return;
    };
    let mut lines = BufReader::new(stdout);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = (&mut lines).take(MAX_LINE as u64);
        let more = tokio::select! {
            read = limited.read_until(b'\n', &mut line) => read.is_ok_and(|length| length > 0),
            () = records.closed() => false,
        };
        if !more {
            return;
        }
        // What is cut at the limit is no JSON, and neither is its rest: both are passed over.
        let Ok(Value::Object(entry)) = serde_json::from_slice(&line) else {
            continue;
        };
        if records.send(record(&entry)).await.is_err() {
            return;
        }
    }
}

/// The record of a journal entry.
pub(super) fn record(entry: &Map<String, Value>) -> LogRecord {
    let text = |name: &str| entry.get(name).map(value).unwrap_or_default();
    let fields = entry.iter().filter_map(|(name, field)| {
        let name = name.strip_prefix("VMAN_")?.to_ascii_lowercase();
        (name != "target").then(|| (name, value(field)))
    });
    LogRecord {
        at: time(&text("__REALTIME_TIMESTAMP")),
        level: level(&text("PRIORITY")).to_owned(),
        target: text("VMAN_TARGET"),
        message: text("MESSAGE"),
        fields: fields.collect(),
    }
}

/// journald tells microseconds since 1970.
fn time(micros: &str) -> String {
    let micros = micros.parse().ok();
    let at = micros.and_then(|micros| Timestamp::from_microsecond(micros).ok());
    at.map_or_else(|| "-".to_owned(), |at| format!("{at:.6}"))
}

fn level(priority: &str) -> &'static str {
    match priority {
        "0" | "1" | "2" | "3" => "error",
        "4" => "warn",
        "7" => "debug",
        _ => "info",
    }
}

/// A field is a string, an array of bytes where it is not printable, an array of values where it was given twice.
fn value(field: &Value) -> String {
    match field {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let byte = |part: &Value| part.as_u64().and_then(|byte| u8::try_from(byte).ok());
            match parts.iter().map(byte).collect::<Option<Vec<u8>>>() {
                Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                None => parts.last().map(value).unwrap_or_default(),
            }
        }
        _ => String::new(),
    }
}
