//! `vman host …`

use crate::cli::{
    Session,
    args::{Format, HostCommand, Wait},
    ask::Ask,
    error::CliError,
    view,
};

/// A drain is waited for as long as its guests have, and a while for those that are killed.
const DRAIN_PATIENCE_S: u32 = 60;

pub(in crate::cli) async fn run(
    command: HostCommand,
    session: &mut Session<'_>,
) -> Result<(), CliError> {
    match command {
        HostCommand::Info => show(Ask::get(&["host"]), session).await,
        HostCommand::Resume => show(Ask::post(&["host", "actions", "resume"]), session).await,
        HostCommand::Drain { timeout, no_wait } => {
            let ask = Ask::post(&["host", "actions", "drain"]).query("timeout_s", timeout);
            let wait = Wait {
                no_wait,
                wait: timeout.saturating_add(DRAIN_PATIENCE_S),
            };
            session.work(&view::OPERATION, ask, &wait).await
        }
    }
}

async fn show(ask: Ask, session: &mut Session<'_>) -> Result<(), CliError> {
    let host = session.client.ask(&ask).await?.value;
    if matches!(session.format, Format::Json | Format::Yaml) {
        return view::document(&host, session.format, session.terminal);
    }
    view::HOST.one(&host, session.format, session.terminal)
}
