//! All records as JSON, a line each, for programs that are not VMAN: as of one moment between two
//! commits, and the event log up to it.
//!
//! A first line says what follows, a last one that it is whole. What a token's holder must show is
//! in no record; the hash of it is left out here.
//! Must not: delay a commit, or hold more than the records in memory: the event log is read as it
//! is written out.

use super::{
    handle::StoreHandle,
    inventory::event_key,
    row::{ReadRow, Record, read, row_name},
};
use crate::ports::{LoadError, Storage, Table, storage::KeyValue};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;
use vman_model::{Revision, UnixMs};

/// The version of the lines. A change of their shape makes another.
pub const EXPORT_VERSION: u32 = 1;
/// Events that are read at once.
const PAGE: usize = 1_000;
/// Records that are written at once.
const CHUNK: usize = 256;

/// One line of a row.
#[derive(Serialize)]
struct Line<'a> {
    table: &'static str,
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<Revision>,
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<Value>,
    /// Why there is no record.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// Where an export is.
enum At {
    Head,
    Rows(usize),
    Events(Vec<u8>),
    End,
}

/// An export under way.
pub struct Export {
    storage: Arc<dyn Storage>,
    rows: Arc<Vec<(Table, KeyValue)>>,
    revision: Revision,
    made_at: UnixMs,
    written: usize,
    at: At,
}

impl StoreHandle {
    /// Begins an export that is dated `at`.
    pub async fn export(&self, at: UnixMs) -> Result<Export, LoadError> {
        let storage = self.storage.clone();
        blocking(move || {
            let tables: Vec<_> = Table::ALL
                .into_iter()
                .filter(|table| *table != Table::Events)
                .collect();
            let rows = storage.moment(&tables)?;
            Ok(Export {
                revision: last(&rows),
                storage,
                rows: Arc::new(rows),
                made_at: at,
                written: 0,
                at: At::Head,
            })
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
) -> Result<T, LoadError> {
    let read = tokio::task::spawn_blocking(read).await;
    read.unwrap_or_else(|error| {
        Err(LoadError::Io {
            path: "the store".to_owned(),
            error: error.to_string(),
        })
    })
}

/// The last revision; the store has none where nothing was committed yet.
fn last(rows: &[(Table, KeyValue)]) -> Revision {
    let meta = rows.iter().filter(|(table, _)| *table == Table::Meta);
    let read = meta.filter_map(|(table, (_, bytes))| read(*table, bytes).ok());
    let last = read.filter_map(|row| match row.record {
        Record::Last(revision) => Some(revision),
        _ => None,
    });
    last.max().unwrap_or_default()
}

impl Export {
    /// The next lines; none after the last.
    pub async fn next(mut self) -> Result<Option<(String, Self)>, LoadError> {
        blocking(move || {
            let lines = match std::mem::replace(&mut self.at, At::End) {
                At::Head => self.head(),
                At::Rows(from) => self.records(from),
                At::Events(from) => self.events(&from)?,
                At::End => return Ok(None),
            };
            Ok(Some((lines, self)))
        })
        .await
    }

    fn head(&mut self) -> String {
        self.at = At::Rows(0);
        let head = json!({
            "vman_export": EXPORT_VERSION,
            "written_by": env!("CARGO_PKG_VERSION"),
            "made_at_ms": self.made_at.0,
            "revision": self.revision,
        });
        format!("{head}\n")
    }

    fn records(&mut self, from: usize) -> String {
        let rows = self.rows.clone();
        let to = rows.len().min(from + CHUNK);
        self.at = if to == rows.len() {
            At::Events(event_key(Revision(0)))
        } else {
            At::Rows(to)
        };
        let lines = rows[from..to]
            .iter()
            .filter(|(table, _)| *table != Table::Meta);
        let lines: Vec<_> = lines.map(|(table, row)| line(*table, row)).collect();
        self.written += lines.len();
        lines.concat()
    }

    /// A page of the log and, at its end, the last line.
    fn events(&mut self, from: &[u8]) -> Result<String, LoadError> {
        let mut page = self.storage.range(Table::Events, from, PAGE)?;
        let more = page.len() == PAGE;
        let next = page.last().map(|(key, _)| [key.as_slice(), &[0]].concat());
        let end = event_key(self.revision);
        page.retain(|(key, _)| *key <= end);
        let mut lines: Vec<_> = page.iter().map(|row| line(Table::Events, row)).collect();
        self.written += lines.len();
        match next.filter(|next| more && *next <= end) {
            Some(next) => self.at = At::Events(next),
            None => lines.push(format!("{}\n", json!({"end": true, "rows": self.written}))),
        }
        Ok(lines.concat())
    }
}

fn line(table: Table, (key, bytes): &KeyValue) -> String {
    let name = row_name(table, key);
    let key = name
        .split_once('/')
        .map_or(name.as_str(), |(_, key)| key)
        .to_owned();
    let read = read(table, bytes).map_err(|error| error.to_string());
    let (revision, record) = match &read {
        Ok(ReadRow { revision, record }) => (*revision, Some(open(record))),
        Err(_) => (None, None),
    };
    let line = Line {
        table: table.as_str(),
        key,
        revision,
        record,
        error: read.as_ref().err().map(String::as_str),
    };
    let text = serde_json::to_string(&line);
    format!(
        "{}\n",
        text.expect("a record has no map with keys that are no text")
    )
}

/// A record without what only VMAN may know.
fn open(record: &Record) -> Value {
    let mut value =
        serde_json::to_value(record).expect("a record has no map with keys that are no text");
    if let (Record::Token(_), Some(fields)) = (record, value.as_object_mut()) {
        fields.remove("hash");
    }
    value
}
