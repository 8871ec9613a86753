//! Records of the daemon's log in the API.

use crate::telemetry::LogRecord;
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A record of the daemon's log.
#[derive(Serialize, ToSchema)]
#[schema(as = LogRecord)]
pub(crate) struct LogRecordBody<'a> {
    /// When.
    #[schema(format = DateTime)]
    at: &'a str,
    /// How much it matters: error, warn, info, debug or trace.
    level: &'a str,
    /// Which part of the code said it.
    target: &'a str,
    /// What it says.
    message: &'a str,
    /// Its fields (`event`, `phase`, `operation_id`, ...), as in the journal without `VMAN_`.
    fields: &'a BTreeMap<String, String>,
}

impl<'a> LogRecordBody<'a> {
    pub(crate) fn of(record: &'a LogRecord) -> Self {
        Self {
            at: &record.at,
            level: &record.level,
            target: &record.target,
            message: &record.message,
            fields: &record.fields,
        }
    }
}
