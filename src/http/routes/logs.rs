//! What the daemon's log holds about a VM: the last records, or as they come.

use super::{not_found, stream};
use crate::{
    http::{
        dto::log::LogRecordBody,
        error::{ApiError, Code, ProblemBody},
        extract::{Id, Query},
        paging::json,
        state::HttpState,
    },
    telemetry::{LogQuery, LogReadError, LogRecord, MAX_RECORDS},
};
use axum::{
    body::Bytes,
    extract::State,
    http::{StatusCode, Uri},
    response::Response,
};
use futures_util::StreamExt;
use jiff::Timestamp;
use std::time::Duration;
use vman_model::VmId;

/// Records that are told when nobody says how many.
const LINES: u64 = 200;

/// What the log holds about a VM
///
/// The daemon's log records with this VM's id, oldest first, from journald or from the log file.
/// What was recorded about the VM for good is in `/events` and `/vms/{id}/explain`.
#[utoipa::path(
    get, path = "/vms/{id}/logs", tag = "vms",
    params(
        ("id" = String, Path, description = "The VM"),
        ("lines" = Option<u64>, Query, description = "The last so many records, 1 to 10000; 200 if not given"),
        ("since" = Option<String>, Query, description = "None before this: an RFC 3339 time, or how long ago (`90s`, `10m`, `2h`, `7d`)"),
        ("follow" = Option<bool>, Query, description = "Stream what comes after them, a JSON object a line"),
    ),
    responses(
        (status = 200, description = "Oldest first; with `follow=true` a stream, a record a line", content(
            (Vec<LogRecordBody<'static>> = "application/json"), (LogRecordBody<'static> = "application/x-ndjson"),
        )),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_logs(
    State(state): State<HttpState>,
    Id(id): Id<VmId>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let mut query = Query::of(&uri)?;
    let follow = query.flag("follow").unwrap_or(false);
    let lines = query.whole("lines", 1..=MAX_RECORDS as u64);
    let since = query.parsed(
        "since",
        |text| since(text, Timestamp::now()),
        "a time (2026-11-21T08:00:00Z) or how long ago (90s, 10m, 2h, 7d)",
    );
    query.finish()?;
    if !state.inventory().vms.contains_key(&id) {
        return Err(not_found("VM", &id).vm(&id));
    }
    let lines = usize::try_from(lines.unwrap_or(LINES)).unwrap_or(MAX_RECORDS);
    let wanted = LogQuery {
        vm: id.clone(),
        lines,
        since,
    };
    if follow {
        let records = state.settings.log.follow(wanted);
        let records = records.map_err(|error| ApiError::from(error).vm(&id))?;
        return stream::of_vm(
            &state,
            &id,
            stream::NDJSON,
            records.map(|record| line(&record)),
        );
    }
    let records = state.settings.log.read(&wanted).await;
    let records = records.map_err(|error| ApiError::from(error).vm(&id))?;
    let body: Vec<_> = records.iter().map(LogRecordBody::of).collect();
    Ok(json(StatusCode::OK, &body))
}

fn line(record: &LogRecord) -> Bytes {
    // A record is text in text: it has a JSON form.
    let mut line = serde_json::to_vec(&LogRecordBody::of(record)).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// A time, or a time so long ago.
fn since(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Ok(at) = text.parse() {
        return Some(at);
    }
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    let digits = number.chars().all(|c| c.is_ascii_digit());
    let number: u64 = number.parse().ok().filter(|_| digits)?;
    let ago = Duration::from_secs(number.checked_mul(seconds)?);
    now.checked_sub(ago).ok()
}

impl From<LogReadError> for ApiError {
    fn from(error: LogReadError) -> Self {
        let code = match error {
            LogReadError::NotKept => Code::LogsNotKept,
            LogReadError::Busy => Code::Overloaded,
            LogReadError::Failed(_) => Code::HostFailed,
        };
        ApiError::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::since;

    #[test]
    fn a_time_is_told_as_itself_or_as_how_long_ago() {
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        for (text, told) in [
            ("2026-11-21T08:00:00Z", "2026-11-21T08:00:00Z"),
            ("90s", "2026-11-21T11:58:30Z"),
            ("10m", "2026-11-21T11:50:00Z"),
            ("2h", "2026-11-21T10:00:00Z"),
            ("7d", "2026-11-14T12:00:00Z"),
        ] {
            assert_eq!(since(text, now), Some(told.parse().unwrap()), "{text}");
        }
        for wrong in [
            "",
            "s",
            "-5m",
            "+5m",
            "5",
            "5y",
            "99999999999999999999d",
            "184467440737095516d",
            "ä",
        ] {
            assert_eq!(since(wrong, now), None, "{wrong}");
        }
    }
}
