//! The whole command line, as clap derives it. Only names, kinds and help: what a command does is in `commands/`.
//! Look next: `nouns.rs` and `disks.rs`, the commands of each noun.

mod disks;
mod nics;
mod nouns;

pub use disks::*;
pub use nics::*;
pub use nouns::*;

use crate::config::Overrides;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum, ValueHint};
use std::path::PathBuf;

/// Supervises QEMU virtual machines: `vman serve` is the daemon, everything else asks it.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "vman",
    version,
    about,
    propagate_version = true,
    max_term_width = 100
)]
#[command(after_help = "Exit codes: 0 done, 1 refused, 2 wrong usage, 3 daemon unreachable.")]
pub struct Args {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct Global {
    /// Daemon to ask, `http://host:port` (with VMAN_TOKEN) or `unix:/path`; VMAN_URL says the same
    #[arg(
        long,
        global = true,
        help_heading = "Common options",
        value_name = "URL"
    )]
    pub url: Option<String>,
    /// UNIX socket of the daemon
    #[arg(long, global = true, help_heading = "Common options", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<String>,
    /// Configuration file to read instead of /etc/vman
    #[arg(long, global = true, help_heading = "Common options", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// How to print what the daemon answers
    #[arg(
        short,
        long,
        global = true,
        help_heading = "Common options",
        value_enum,
        default_value_t
    )]
    pub output: Format,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// As the API answers it
    Json,
    /// The same as YAML
    Yaml,
    /// Only the ids, one a line
    Name,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run the daemon
    Serve(ConfigFlags),
    /// Virtual machines
    #[command(subcommand)]
    Vm(VmCommand),
    /// Named sizes that VMs are made from
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Disks
    #[command(subcommand)]
    Disk(DiskCommand),
    /// Network cards of VMs
    #[command(subcommand)]
    Nic(NicCommand),
    /// Disk images, kernels and initrds
    #[command(subcommand)]
    Image(ImageCommand),
    /// The VMs' network
    #[command(subcommand)]
    Network(NetworkCommand),
    /// The observer, which compares the records with the host
    #[command(subcommand)]
    Observer(ObserverCommand),
    /// What comes up and goes down with the host
    #[command(subcommand)]
    Host(HostCommand),
    /// Long work
    #[command(subcommand)]
    Operation(OperationCommand),
    /// What happened
    Events(EventsFlags),
    /// Tokens for callers over TCP
    #[command(subcommand)]
    Token(TokenCommand),
    /// What is durable
    #[command(subcommand)]
    Store(StoreCommand),
    /// The daemon's configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Replacing this program by another version
    #[command(subcommand)]
    Upgrade(UpgradeCommand),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual's pages into a folder
    #[command(hide = true)]
    Man {
        /// The folder
        #[arg(value_hint = ValueHint::DirPath)]
        folder: std::path::PathBuf,
    },
    /// Print the version of this program and of the daemon
    Version,
}

/// Flags that override the configuration.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct ConfigFlags {
    /// Where store, images, disks and logs are kept
    #[arg(long, value_name = "PATH", value_hint = ValueHint::DirPath)]
    pub storage_path: Option<String>,
    /// Where sockets are kept
    #[arg(long, value_name = "PATH", value_hint = ValueHint::DirPath)]
    pub runtime_path: Option<String>,
    /// TCP address of the API; empty for none
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// auto, kvm or tcg
    #[arg(long, value_name = "WORD")]
    pub accel: Option<String>,
    /// trace, debug, info, warn or error
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// auto, journald, text or json
    #[arg(long, value_name = "WORD")]
    pub log_format: Option<String>,
    /// Any other key of the configuration; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = pair)]
    pub set: Vec<(String, String)>,
}

impl ConfigFlags {
    /// What these flags and the global ones say about the configuration.
    pub fn overrides(&self, global: &Global) -> Overrides {
        let set = self
            .set
            .iter()
            .map(|(key, value)| (key.clone(), value.clone(), format!("--set {key}")));
        let named = [
            ("storage_path", &self.storage_path),
            ("runtime_path", &self.runtime_path),
            ("listen", &self.listen),
            ("socket", &global.socket),
            ("accel", &self.accel),
            ("log_level", &self.log_level),
            ("log_format", &self.log_format),
        ];
        let named = named.into_iter().filter_map(|(key, value)| {
            let flag = format!("--{}", key.replace('_', "-"));
            Some((key.to_owned(), value.clone()?, flag))
        });
        Overrides {
            file: global.config.clone(),
            values: set.chain(named).collect(),
        }
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE".to_owned()),
    }
}
