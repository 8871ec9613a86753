//! `vman events`

use crate::cli::{
    Session,
    args::{EventsFlags, Format},
    ask::Ask,
    error::CliError,
    sse::{Message, Parser},
    view,
};
use http_body_util::BodyExt as _;
use serde_json::Value;
use std::time::{Duration, Instant};

/// A daemon that restarts is back within this; the stream then goes on where it ended.
const ABSENCE: Duration = Duration::from_secs(30);

pub(in crate::cli) async fn run(
    flags: EventsFlags,
    session: &mut Session<'_>,
) -> Result<(), CliError> {
    if flags.follow {
        return follow(flags.since, session).await;
    }
    let mut ask = Ask::get(&["events"]);
    if let Some(since) = flags.since {
        ask = ask.query("since", since);
    }
    session.list(&view::EVENT, ask).await
}

async fn follow(since: Option<u64>, session: &mut Session<'_>) -> Result<(), CliError> {
    let mut last: Option<String> = since.map(|since| since.to_string());
    let mut connected_once = false;
    let mut absent_since: Option<Instant> = None;
    loop {
        let mut ask = Ask::get(&["events"]).accept("text/event-stream");
        if let Some(last) = &last {
            ask = ask
                .query("since", last)
                .header("last-event-id", last.clone());
        }
        match session.client.stream(&ask).await {
            Ok(response) => {
                connected_once = true;
                absent_since = None;
                let mut parser = Parser::default();
                let mut body = response.into_body();
                while let Some(Ok(frame)) = body.frame().await {
                    let Ok(bytes) = frame.into_data() else {
                        continue;
                    };
                    for message in parser.feed(&bytes) {
                        print(&message, session)?;
                        last = message.id.or(last);
                    }
                }
            }
            Err(error) if connected_once && error.is_absence() => {
                let since = *absent_since.get_or_insert_with(Instant::now);
                if since.elapsed() > ABSENCE {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn print(message: &Message, session: &mut Session<'_>) -> Result<(), CliError> {
    let event: Value = serde_json::from_str(&message.data).map_err(|error| {
        session
            .client
            .garbled(&format!("an event is no JSON: {error}"))
    })?;
    match session.format {
        // A table cannot be laid out before its end is known.
        Format::Table => {
            let cells = view::EVENT.row(&event);
            let cells: Vec<String> = cells.into_iter().filter(|cell| !cell.is_empty()).collect();
            session.terminal.line(&cells.join("  "))
        }
        Format::Json => session.terminal.line(&event.to_string()),
        Format::Yaml => {
            session.terminal.line("---")?;
            view::document(&event, Format::Yaml, session.terminal)
        }
        Format::Name => session.terminal.line(&view::EVENT.id_of(&event)),
    }
}
