//! `vman network …`, `vman observer …`, `vman version`

use crate::cli::{
    Session,
    args::{Format, NetworkCommand, ObserverCommand},
    ask::Ask,
    error::CliError,
    view,
};
use serde_json::{Value, json};

pub(in crate::cli) async fn network(
    command: NetworkCommand,
    session: &mut Session<'_>,
) -> Result<(), CliError> {
    let config = Ask::get(&["network", "config"]);
    match command {
        NetworkCommand::List => {
            let answer = session.client.ask(&config).await?;
            let networks = answer.value["networks"].as_array();
            let networks = networks.map(Vec::as_slice).unwrap_or_default();
            view::NETWORK.list(networks, session.format, session.terminal)
        }
        NetworkCommand::Config => {
            let mut answer = session.client.ask(&config).await?;
            if let (Format::Table, Some(fields)) = (session.format, answer.value.as_object_mut()) {
                // `vman network list` tells of the others.
                fields.remove("networks");
            }
            let nameless = view::View {
                id: &["bridge_name", "mode", "status"],
                ..view::SETTING
            };
            nameless.one(&answer.value, session.format, session.terminal)
        }
        NetworkCommand::Leases => {
            session
                .list(&view::LEASE, Ask::get(&["network", "leases"]))
                .await
        }
        NetworkCommand::Forwards => {
            let ask = Ask::get(&["network", "forwards"]);
            session.list(&view::FORWARD, ask).await
        }
        NetworkCommand::Forward {
            vm,
            host_port,
            guest_port,
            udp,
        } => {
            let body = json!({
                "vm_id": vm,
                "host_port": host_port,
                "guest_port": guest_port.unwrap_or(host_port),
                "protocol": if udp { "udp" } else { "tcp" },
            });
            let ask = Ask::post(&["network", "forwards"]).json(body);
            session.one(&view::FORWARD, ask).await
        }
        NetworkCommand::Unforward { id } => {
            let ask = Ask::delete(&["network", "forwards", &id]);
            session.delete("forward", &id, ask).await
        }
    }
}

pub(in crate::cli) async fn observer(
    command: ObserverCommand,
    session: &mut Session<'_>,
) -> Result<(), CliError> {
    let ask = match command {
        ObserverCommand::Status => Ask::get(&["observer", "status"]),
        ObserverCommand::Check => Ask::post(&["observer", "check"]),
    };
    let mut status = session.client.ask(&ask).await?.value;
    if matches!(session.format, Format::Json | Format::Yaml) {
        return view::document(&status, session.format, session.terminal);
    }
    let issues = match status
        .as_object_mut()
        .and_then(|all| all.remove("last_issues"))
    {
        Some(Value::Array(issues)) => issues,
        _ => Vec::new(),
    };
    if session.format == Format::Table {
        view::ISSUE.one(&status, Format::Table, session.terminal)?;
    }
    view::ISSUE.list(&issues, session.format, session.terminal)
}

/// An unreachable daemon is an answer here, not a failure.
pub(in crate::cli) async fn version(session: &mut Session<'_>) -> Result<(), CliError> {
    let target = session.client.target().to_string();
    let daemon = match session.client.ask(&Ask::get(&["live"])).await {
        Ok(_) => health_version(session).await,
        Err(error) if error.exit_code() == 3 => None,
        Err(error) => return Err(error),
    };
    let client = env!("CARGO_PKG_VERSION");
    if matches!(session.format, Format::Json | Format::Yaml) {
        let value = json!({ "client": client, "daemon": daemon, "target": target });
        return view::document(&value, session.format, session.terminal);
    }
    session.terminal.line(&format!("vman {client}"))?;
    let daemon = daemon.unwrap_or_else(|| "not reachable".to_owned());
    session
        .terminal
        .line(&format!("daemon {daemon} ({target})"))
}

/// `/health` tells the version also when it answers 503, as a body that is no problem.
async fn health_version(session: &Session<'_>) -> Option<String> {
    use http_body_util::{BodyExt as _, Limited};
    const MOST: usize = 1024 * 1024;
    let response = session.client.open(&Ask::get(&["health"])).await.ok()?;
    let body = Limited::new(response.into_body(), MOST)
        .collect()
        .await
        .ok()?;
    let health: Value = serde_json::from_slice(&body.to_bytes()).ok()?;
    let version = health["version"].as_str().unwrap_or("of unknown version");
    Some(crate::cli::sanitize::one_line(version))
}
