//! The commands that need no daemon: `vman config …`, `vman completion`, `vman man`

use crate::{
    cli::{
        args::{Args, ConfigCommand, Global},
        error::CliError,
        terminal::Terminal,
        view,
    },
    config::{Config, Environment},
};
use clap::CommandFactory as _;
use serde_json::{Value, json};
use std::path::Path;

pub(in crate::cli) fn completion(
    shell: clap_complete::Shell,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "vman", &mut script);
    terminal.write(&script)
}

/// The pages `vman.1`, `vman-vm.1` and so on, made from the commands.
pub(in crate::cli) fn manual(folder: &Path) -> Result<(), CliError> {
    let failed = |cause| CliError::File {
        path: folder.to_owned(),
        cause,
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(Args::command(), folder).map_err(failed)
}

pub(in crate::cli) fn config(
    command: &ConfigCommand,
    global: &Global,
    environment: &Environment,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    let (ConfigCommand::Show(flags) | ConfigCommand::Check(flags)) = command;
    // The same exit code as that of `vman serve` with this configuration.
    let config = Config::load(&flags.overrides(global), environment)
        .map_err(|error| CliError::Usage(error.to_string()))?;
    if matches!(command, ConfigCommand::Check(_)) {
        return terminal.line("the configuration is valid");
    }
    let settings = config.settings.iter().map(|setting| {
        json!({
            "name": setting.name,
            "value": setting.value,
            "from": setting.source.to_string(),
        })
    });
    let settings: Vec<Value> = settings.collect();
    view::SETTING.list(&settings, global.output, terminal)
}
