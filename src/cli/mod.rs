//! The client commands of the binary: each asks the daemon over its REST API and prints the answer.
//!
//! Owns the command line (`args.rs`), the way to the daemon (`target.rs`, `client.rs`), waiting for long work
//! (`wait.rs`) and how answers look (`view.rs`). Must not touch anything inside the daemon: what a command knows, it
//! knows from the API. Answers are read with tolerance, so that a newer daemon does not break an older client.
//! Look next: `commands/`, one file a noun.

pub mod args;
pub mod ask;
pub mod client;
mod commands;
pub mod error;
pub mod sanitize;
mod sse;
pub mod target;
pub mod terminal;
#[cfg(test)]
mod tests;
pub mod view;
mod wait;

pub use args::{Args, Command, ConfigFlags, Global};
pub use commands::store::tell_check as tell_store_check;
pub use error::CliError;
pub use terminal::Terminal;

use crate::config::{Environment, Overrides, client_socket};
use args::Format;
use client::Client;
use std::process::ExitCode;
use target::Target;

/// What every command works with.
#[derive(Debug)]
struct Session<'a> {
    client: Client,
    format: Format,
    terminal: &'a mut Terminal,
}

/// Runs a client command; `serve` is `main`'s own. Needs a tokio runtime.
pub async fn run(args: Args, environment: &Environment) -> ExitCode {
    ExitCode::from(run_on(args, environment, &mut Terminal::of_process()).await)
}

/// As `run`, writing to `terminal`; answers the exit code: 0 done, 1 refused, 2 usage, 3 unreachable.
pub async fn run_on(args: Args, environment: &Environment, terminal: &mut Terminal) -> u8 {
    match command(args, environment, terminal).await {
        Ok(()) => 0,
        Err(error) => {
            let code = error.exit_code();
            if code != 0 {
                terminal.note(&format!("vman: {error}"));
            }
            code
        }
    }
}

async fn command(
    args: Args,
    environment: &Environment,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    let Args { global, command } = args;
    match command {
        Command::Serve(_) | Command::Upgrade(_) => Err(CliError::Usage(
            "it works on the daemon's own files and is no client command".to_owned(),
        )),
        Command::Completion { shell } => commands::local::completion(shell, terminal),
        Command::Man { folder } => commands::local::manual(&folder),
        Command::Config(command) => {
            commands::local::config(&command, &global, environment, terminal)
        }
        command => {
            let session = Session {
                client: client(&global, environment)?,
                format: global.output,
                terminal,
            };
            ask(command, session).await
        }
    }
}

async fn ask(command: Command, mut session: Session<'_>) -> Result<(), CliError> {
    let session = &mut session;
    match command {
        Command::Vm(command) => commands::vm::run(command, session).await,
        Command::Template(command) => commands::template::run(command, session).await,
        Command::Disk(command) => commands::disk::run(command, session).await,
        Command::Nic(command) => commands::nic::run(command, session).await,
        Command::Image(command) => commands::image::run(command, session).await,
        Command::Network(command) => commands::host::network(command, session).await,
        Command::Observer(command) => commands::host::observer(command, session).await,
        Command::Operation(command) => commands::operation::run(command, session).await,
        Command::Store(command) => commands::store::run(command, session).await,
        Command::Host(command) => commands::power::run(command, session).await,
        Command::Events(flags) => commands::events::run(flags, session).await,
        Command::Token(command) => commands::token::run(command, session).await,
        Command::Version => commands::host::version(session).await,
        Command::Serve(_)
        | Command::Upgrade(_)
        | Command::Completion { .. }
        | Command::Man { .. }
        | Command::Config(_) => Ok(()),
    }
}

/// `--url`, else `--socket`, else `VMAN_URL`, else the socket of the configuration.
fn client(global: &Global, environment: &Environment) -> Result<Client, CliError> {
    let url = match (&global.url, &global.socket) {
        (Some(url), _) => Some(url.as_str()),
        (None, Some(_)) => None,
        (None, None) => environment.get("VMAN_URL"),
    };
    let Some(url) = url else {
        let socket = global.socket.clone();
        let overrides = Overrides {
            file: global.config.clone(),
            values: socket
                .map(|path| {
                    (
                        "socket".to_owned(),
                        absolute(path, environment),
                        "--socket".to_owned(),
                    )
                })
                .into_iter()
                .collect(),
        };
        return Client::new(Target::Unix(client_socket(&overrides, environment)), None);
    };
    Client::new(Target::parse(url)?, environment.get("VMAN_TOKEN"))
}

/// A client may name a socket from where it stands.
fn absolute(path: String, environment: &Environment) -> String {
    if path.starts_with('/') {
        return path;
    }
    let path = path.strip_prefix("./").unwrap_or(&path);
    let joined = environment.working_directory.join(path);
    joined.to_string_lossy().into_owned()
}
