//! `vman store …`, as far as the daemon does it

use crate::cli::{Session, args::StoreCommand, ask::Ask, error::CliError, view};

pub(in crate::cli) async fn run(
    command: StoreCommand,
    session: &mut Session<'_>,
) -> Result<(), CliError> {
    match command {
        StoreCommand::Backup => {
            let ask = Ask::post(&["store", "backup"]);
            session.one(&view::BACKUP, ask).await
        }
        StoreCommand::Rebuild { .. } => Err(CliError::Usage(
            "rebuild works on the files, it is no client command".to_owned(),
        )),
    }
}
