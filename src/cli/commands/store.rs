//! `vman store …`, as far as the daemon does it

use crate::cli::{
    Session, Terminal,
    args::{Format, StoreCommand},
    ask::Ask,
    client::chain,
    error::CliError,
    sanitize::one_line,
    view,
};
use http_body_util::BodyExt as _;
use serde_json::Value;
use std::fmt::Write as _;

/// The last line of an export is shorter.
const LAST_LINE: usize = 200;

pub(in crate::cli) async fn run(
    command: StoreCommand,
    session: &mut Session<'_>,
) -> Result<(), CliError> {
    match command {
        StoreCommand::Backup => {
            let ask = Ask::post(&["store", "backup"]);
            session.one(&view::BACKUP, ask).await
        }
        StoreCommand::Check { .. } => {
            let answer = session.client.ask(&Ask::post(&["store", "check"])).await?;
            tell_check(&answer.value, session.format, session.terminal)
        }
        StoreCommand::Export => export(session).await,
        StoreCommand::Rebuild { .. } => Err(CliError::Usage(
            "rebuild works on the files, it is no client command".to_owned(),
        )),
    }
}

/// Prints what a check came to; an error if something is wrong.
pub fn tell_check(
    checked: &Value,
    format: Format,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    match format {
        Format::Table | Format::Name => check_lines(checked)
            .iter()
            .try_for_each(|line| terminal.line(line))?,
        format => view::document(checked, format, terminal)?,
    }
    let faults = checked["faults"].as_array().map_or(0, Vec::len);
    if faults == 0 {
        return Ok(());
    }
    Err(CliError::Failed(format!(
        "{faults} records of the store are not as they should be; docs/recovery.md tells what to do"
    )))
}

fn check_lines(checked: &Value) -> Vec<String> {
    let text = |value: &Value| one_line(value.as_str().unwrap_or_default());
    let list = |name: &str| checked[name].as_array().cloned().unwrap_or_default();
    let mut lines: Vec<_> = list("faults")
        .iter()
        .map(|fault| format!("{}: {}", text(&fault["row"]), text(&fault["detail"])))
        .collect();
    lines.extend(
        list("notes")
            .iter()
            .map(|note| format!("note: {}", text(note))),
    );
    let mut sum = format!("revision {}:", checked["revision"]);
    for (table, rows) in checked["rows"].as_object().into_iter().flatten() {
        // Writing to a string cannot fail.
        let _ = write!(sum, " {rows} {},", one_line(table));
    }
    let end = if checked["ok"] == true {
        "all is well"
    } else {
        "not all is well"
    };
    lines.push(format!("{sum} {} manifests; {end}", checked["manifests"]));
    lines
}

async fn export(session: &mut Session<'_>) -> Result<(), CliError> {
    let ask = Ask::get(&["store", "export"]).accept("application/x-ndjson, */*;q=0.5");
    let mut body = session.client.stream(&ask).await?.into_body();
    let mut end = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| CliError::Interrupted {
            target: session.client.target().to_string(),
            cause: chain(&error),
            changing: false,
        })?;
        let Ok(bytes) = frame.into_data() else {
            continue;
        };
        session.terminal.write(&bytes)?;
        end.extend_from_slice(&bytes);
        end.drain(..end.len().saturating_sub(LAST_LINE));
    }
    let last = String::from_utf8_lossy(&end);
    let whole = last.trim_end().rsplit('\n').next();
    let whole = whole.is_some_and(|line| line.starts_with("{\"end\":true"));
    if whole {
        Ok(())
    } else {
        Err(CliError::Failed(
            "the export is not whole: ask again".to_owned(),
        ))
    }
}
