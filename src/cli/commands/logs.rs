//! `vman vm logs`

use crate::cli::{
    Session, args::Format, ask::Ask, client::chain, error::CliError, sanitize::one_line, view,
};
use http_body_util::BodyExt as _;
use serde_json::Value;
use std::fmt::Write as _;

/// A record's line longer than this is not ours.
const MAX_LINE: usize = 2 << 20;

pub(in crate::cli) async fn run(
    id: &str,
    follow: bool,
    lines: u32,
    since: Option<&str>,
    session: &mut Session<'_>,
) -> Result<(), CliError> {
    let mut ask = Ask::get(&["vms", id, "logs"]).query("lines", lines);
    if let Some(since) = since {
        ask = ask.query("since", since);
    }
    if follow {
        return followed(&ask.query("follow", "true"), session).await;
    }
    let answer = session.client.ask(&ask).await?.value;
    if matches!(session.format, Format::Json | Format::Yaml) {
        return view::document(&answer, session.format, session.terminal);
    }
    let records = answer
        .as_array()
        .ok_or_else(|| session.client.garbled("a list of records was expected"))?;
    if records.is_empty() {
        session
            .terminal
            .note("no records; `vman vm explain` tells what is recorded for good");
    }
    records
        .iter()
        .try_for_each(|record| session.terminal.line(&line(record)))
}

async fn followed(ask: &Ask, session: &mut Session<'_>) -> Result<(), CliError> {
    let ask = ask.clone().accept("application/x-ndjson, */*;q=0.5");
    let mut body = session.client.stream(&ask).await?.into_body();
    let mut begun = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| CliError::Interrupted {
            target: session.client.target().to_string(),
            cause: chain(&error),
            changing: false,
        })?;
        let Ok(bytes) = frame.into_data() else {
            continue;
        };
        begun.extend_from_slice(&bytes);
        while let Some(end) = begun.iter().position(|byte| *byte == b'\n') {
            let text: Vec<u8> = begun.drain(..=end).collect();
            print(&text, session)?;
        }
        if begun.len() > MAX_LINE {
            return Err(session.client.garbled("a record does not end"));
        }
    }
    Ok(())
}

fn print(text: &[u8], session: &mut Session<'_>) -> Result<(), CliError> {
    let record: Value = serde_json::from_slice(text).map_err(|error| {
        session
            .client
            .garbled(&format!("a record is no JSON: {error}"))
    })?;
    match session.format {
        Format::Table | Format::Name => session.terminal.line(&line(&record)),
        Format::Json => session.terminal.line(&record.to_string()),
        Format::Yaml => {
            session.terminal.line("---")?;
            view::document(&record, Format::Yaml, session.terminal)
        }
    }
}

/// The record for people: who asked for one VM need not be told which.
fn line(record: &Value) -> String {
    let text = |name: &str| one_line(record[name].as_str().unwrap_or_default());
    let mut line = format!("{} {:>5} {}", text("at"), text("level"), text("message"));
    for (name, value) in record["fields"].as_object().into_iter().flatten() {
        if matches!(name.as_str(), "vm_id" | "component") {
            continue;
        }
        let value = one_line(value.as_str().unwrap_or_default());
        // Writing to a string cannot fail.
        let _ = if value.is_empty() || value.contains(' ') {
            write!(line, " {}={value:?}", one_line(name))
        } else {
            write!(line, " {}={value}", one_line(name))
        };
    }
    line
}
