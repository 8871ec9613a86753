//! `vman token …`

use super::object;
use crate::cli::{
    Session,
    args::{Format, Scope, TokenCommand},
    ask::Ask,
    error::CliError,
    view,
};
use serde_json::Value;

pub(in crate::cli) async fn run(
    command: TokenCommand,
    session: &mut Session<'_>,
) -> Result<(), CliError> {
    match command {
        TokenCommand::List => session.list(&view::TOKEN, Ask::get(&["tokens"])).await,
        TokenCommand::Revoke { name } => {
            session.client.ask(&Ask::delete(&["tokens", &name])).await?;
            session.done(&format!("token {name} is revoked"), &name)
        }
        TokenCommand::Create {
            name,
            scope,
            expires_days,
        } => {
            let scope = match scope {
                Scope::Read => "read",
                Scope::Admin => "admin",
            };
            let body = object([
                ("name", Some(name.into())),
                ("scope", Some(scope.into())),
                (
                    "expires_in_s",
                    expires_days.map(|days| (u64::from(days) * 86_400).into()),
                ),
            ]);
            let ask = Ask::post(&["tokens"]).json(Value::Object(body));
            let answer = session.client.ask(&ask).await?.value;
            match answer["token"].as_str() {
                // Alone on standard output, so that it can be put into a variable or a file.
                Some(token) if session.format == Format::Table => {
                    session
                        .terminal
                        .note("this token is shown only now; set VMAN_TOKEN to it:");
                    let token = crate::cli::sanitize::one_line(token);
                    session.terminal.line(&token)
                }
                _ => view::TOKEN.one(&answer, session.format, session.terminal),
            }
        }
    }
}
