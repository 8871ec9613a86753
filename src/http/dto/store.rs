//! The store's own work in the API.

use super::Time;
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;
use vman_actors::store::{
    Backup,
    check::{Checked, Fault},
};

/// A backup of the store.
#[derive(Serialize, ToSchema)]
#[schema(as = StoreBackup)]
pub(crate) struct BackupBody<'a> {
    /// The file on the daemon's host.
    file: &'a str,
    /// Its bytes.
    size_bytes: u64,
    /// The last revision in it.
    revision: u64,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    made_at: Time,
    /// The older backups that were removed, so that at most ten are kept.
    removed: &'a [String],
}

impl<'a> BackupBody<'a> {
    pub(crate) fn of(backup: &'a Backup) -> Self {
        Self {
            file: &backup.file,
            size_bytes: backup.bytes,
            revision: backup.revision.0,
            made_at: Time(backup.at),
            removed: &backup.removed,
        }
    }
}

/// What a check of the store came to.
#[derive(Serialize, ToSchema)]
#[schema(as = StoreCheck)]
pub(crate) struct CheckBody<'a> {
    /// Whether nothing is wrong.
    ok: bool,
    /// The last revision at the moment that was looked at.
    revision: u64,
    /// Rows that were read, by table.
    rows: &'a BTreeMap<&'static str, usize>,
    /// Manifests that were compared.
    manifests: usize,
    /// What is wrong.
    faults: Vec<FaultBody<'a>>,
    /// What is worth knowing, and mends itself.
    notes: &'a [String],
}

/// What is wrong with one row.
#[derive(Serialize, ToSchema)]
#[schema(as = StoreFault)]
pub(crate) struct FaultBody<'a> {
    /// `table/key`, or the manifest.
    row: &'a str,
    /// What is wrong with it.
    detail: &'a str,
}

impl<'a> CheckBody<'a> {
    pub(crate) fn of(checked: &'a Checked) -> Self {
        let fault = |fault: &'a Fault| FaultBody {
            row: &fault.row,
            detail: &fault.detail,
        };
        Self {
            ok: checked.faults.is_empty(),
            revision: checked.revision.0,
            rows: &checked.rows,
            manifests: checked.manifests,
            faults: checked.faults.iter().map(fault).collect(),
            notes: &checked.notes,
        }
    }
}

/// What a check came to, as the API tells it.
pub fn store_check(checked: &Checked) -> serde_json::Value {
    serde_json::to_value(CheckBody::of(checked)).unwrap_or_default()
}

/// A line of an export: the first, a row, or the last.
#[derive(Serialize, ToSchema)]
#[schema(as = StoreExportLine)]
#[allow(
    dead_code,
    reason = "its fields are the document; the store writes the lines"
)]
pub(crate) struct ExportLine {
    /// The version of the lines; in the first one, with `written_by`, `made_at_ms` and `revision`.
    vman_export: Option<u32>,
    /// The table of a row.
    table: Option<String>,
    /// Its key.
    key: Option<String>,
    /// The revision of its last change, or of the moment in the first line.
    revision: Option<u64>,
    /// The record, as the store's own structures have it.
    #[schema(value_type = Option<Object>)]
    record: Option<serde_json::Value>,
    /// Why there is no record.
    error: Option<String>,
    /// In the last line: what came before is whole.
    end: Option<bool>,
    /// In the last line: how many rows there were.
    rows: Option<u64>,
}
