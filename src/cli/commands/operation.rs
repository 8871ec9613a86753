//! `vman operation …`

use crate::cli::{Session, args::OperationCommand, ask::Ask, error::CliError, view};
use std::time::Duration;

pub(in crate::cli) async fn run(
    command: OperationCommand,
    session: &mut Session<'_>,
) -> Result<(), CliError> {
    match command {
        OperationCommand::List => {
            session
                .list(&view::OPERATION, Ask::get(&["operations"]))
                .await
        }
        OperationCommand::Info { id } => {
            let ask = Ask::get(&["operations", &id]);
            session.one(&view::OPERATION, ask).await
        }
        OperationCommand::Wait { id, timeout } => {
            let operation = session
                .client
                .ask(&Ask::get(&["operations", &id]))
                .await?
                .value;
            let limit = Duration::from_secs(u64::from(timeout));
            let operation = session.wait_for(operation, limit).await?;
            view::OPERATION.one(&operation, session.format, session.terminal)
        }
        OperationCommand::Cancel { id } => {
            let answer = session
                .client
                .ask(&Ask::delete(&["operations", &id]))
                .await?;
            if answer.value.is_null() {
                return session.done(&format!("operation {id} is cancelled"), &id);
            }
            view::OPERATION.one(&answer.value, session.format, session.terminal)
        }
    }
}
