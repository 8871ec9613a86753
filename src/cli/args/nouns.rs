//! The commands of each noun, with their flags.

use super::{ConfigFlags, pair};
use clap::{Args as ClapArgs, Subcommand, ValueEnum, ValueHint};
use std::path::PathBuf;

/// Whether to wait for long work.
#[derive(Clone, Debug, ClapArgs)]
pub struct Wait {
    /// Answer as soon as the work is recorded
    #[arg(long)]
    pub no_wait: bool,
    /// Wait at most this many seconds; the work goes on after that
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub wait: u32,
}

/// What a VM or a template may say.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct Size {
    /// Processors
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Memory in GiB
    #[arg(long, value_name = "GIB", conflicts_with = "ram_mib")]
    pub ram: Option<u64>,
    /// Memory in MiB
    #[arg(long, value_name = "MIB")]
    pub ram_mib: Option<u64>,
    /// Disk image to boot from
    #[arg(long, value_name = "NAME")]
    pub image: Option<String>,
    /// Kernel image to boot directly
    #[arg(long, value_name = "NAME")]
    pub kernel: Option<String>,
    /// Initrd image for the kernel
    #[arg(long, value_name = "NAME", requires = "kernel")]
    pub initrd: Option<String>,
    /// Command line for the kernel
    #[arg(
        long,
        value_name = "TEXT",
        requires = "kernel",
        allow_hyphen_values = true
    )]
    pub cmdline: Option<String>,
    /// bios or uefi
    #[arg(long, value_name = "WORD")]
    pub firmware: Option<String>,
    /// Size of the root disk in GiB
    #[arg(long, value_name = "GIB")]
    pub disk_gib: Option<u64>,
    /// A label; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    pub labels: Vec<(String, String)>,
}

/// What a new VM says.
#[derive(Clone, Debug, ClapArgs)]
pub struct NewVm {
    /// Its name; made up if not given
    pub name: Option<String>,
    /// Template to make it from
    #[arg(short, long, value_name = "NAME")]
    pub template: String,
    /// What it says otherwise than its template
    #[command(flatten)]
    pub size: Size,
    /// Network its first card is connected to; `default` if not given
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,
    /// When VMAN starts it again: never, on-failure or always
    #[arg(long, value_name = "WORD")]
    pub restart: Option<String>,
    /// How often it is started again within the policy's window before it is given up
    #[arg(long, value_name = "N", requires = "restart")]
    pub max_restarts: Option<u32>,
    /// Its share of the processors where they are short, 1 to 10000; 100 for each of its CPUs if not given
    #[arg(long, value_name = "N")]
    pub cpu_weight: Option<u16>,
    /// Processor time at most, in percent of one processor
    #[arg(long, value_name = "PERCENT")]
    pub cpu_quota: Option<u32>,
    /// Its share of the disks where they are short, 1 to 10000
    #[arg(long, value_name = "N")]
    pub io_weight: Option<u16>,
    /// Start it when the host was booted
    #[arg(long)]
    pub autostart: bool,
    /// How it comes up and goes down with the host
    #[command(flatten)]
    pub start: Start,
}

/// How a VM comes up and goes down with the host.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct Start {
    /// 0 to 1000; higher ones are started first and stopped last
    #[arg(long, value_name = "N")]
    pub priority: Option<u32>,
    /// A VM that has to run before it is started with the host, or with `:address`, to answer; may be repeated
    #[arg(long = "depends-on", value_name = "VM[:address]")]
    pub depends_on: Vec<String>,
}

/// Commands about VMs.
#[derive(Clone, Debug, Subcommand)]
pub enum VmCommand {
    /// List VMs
    #[command(visible_alias = "ls")]
    List {
        /// Only those in this state
        #[arg(long)]
        state: Option<String>,
        /// Only those with this label; may be repeated
        #[arg(long = "label", value_name = "KEY=VALUE")]
        labels: Vec<String>,
    },
    /// Record a VM without starting it
    Create(NewVm),
    /// Record a VM and start it
    Launch {
        /// The VM
        #[command(flatten)]
        vm: NewVm,
        /// Waiting
        #[command(flatten)]
        wait: Wait,
    },
    /// Show a VM
    Info {
        /// The VM
        id: String,
    },
    /// Change how a VM comes up and goes down with the host
    Set {
        /// The VM
        id: String,
        /// Whether it is started when the host was booted
        #[arg(long, value_name = "BOOL")]
        autostart: Option<bool>,
        /// The rest
        #[command(flatten)]
        start: Start,
        /// It waits for nobody any more
        #[arg(long, conflicts_with = "depends_on")]
        independent: bool,
    },
    /// Start VMs
    Start(Targets),
    /// Stop VMs politely, by force after a while
    Stop {
        /// Which
        #[command(flatten)]
        targets: Targets,
        /// By force at once
        #[arg(short, long)]
        force: bool,
        /// Seconds until force is used
        #[arg(long, value_name = "SECONDS", conflicts_with = "force")]
        timeout: Option<u32>,
    },
    /// Stop and start VMs
    Restart(Targets),
    /// Halt the processors of VMs
    Pause(Targets),
    /// Let paused VMs go on
    Resume(Targets),
    /// Press the reset button of VMs
    Reset(Targets),
    /// Delete VMs with their root disks; what runs is stopped by force
    #[command(visible_alias = "rm")]
    Delete {
        /// Which
        #[command(flatten)]
        targets: Targets,
        /// Keep the root disks
        #[arg(long)]
        keep_root_disk: bool,
    },
    /// Print the last 50 kB of a VM's serial console
    Console {
        /// The VM
        id: String,
        /// Go on printing what comes
        #[arg(short, long)]
        follow: bool,
        /// Print control characters and escape sequences as the guest sent them
        #[arg(long)]
        raw: bool,
    },
    /// Print what the daemon's log holds about a VM
    Logs {
        /// The VM
        id: String,
        /// Go on printing what comes
        #[arg(short, long)]
        follow: bool,
        /// The last so many records
        #[arg(short = 'n', long, value_name = "N", default_value_t = 200)]
        lines: u32,
        /// None before this: a time (2026-11-21T08:00:00Z) or how long ago (90s, 10m, 2h, 7d)
        #[arg(long, value_name = "WHEN")]
        since: Option<String>,
    },
    /// Tell why a VM is in the state it is in
    Explain {
        /// The VM
        id: String,
    },
}

/// VMs that something is done to.
#[derive(Clone, Debug, ClapArgs)]
pub struct Targets {
    /// The VMs
    #[arg(required = true)]
    pub ids: Vec<String>,
    /// Waiting
    #[command(flatten)]
    pub wait: Wait,
}

/// Commands about templates.
#[derive(Clone, Debug, Subcommand)]
pub enum TemplateCommand {
    /// List templates
    #[command(visible_alias = "ls")]
    List,
    /// Make a template
    Create {
        /// Its name
        name: String,
        /// What it says
        #[command(flatten)]
        size: Size,
    },
    /// Show a template
    Info {
        /// The template
        name: String,
    },
    /// Delete a template that no VM uses
    #[command(visible_alias = "rm")]
    Delete {
        /// The template
        name: String,
    },
}

/// What an image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ImageKind {
    /// VMs boot from it
    Disk,
    /// A kernel
    Kernel,
    /// An initial RAM disk
    Initrd,
}

/// Commands about images.
#[derive(Clone, Debug, Subcommand)]
pub enum ImageCommand {
    /// List images
    #[command(visible_alias = "ls")]
    List,
    /// Upload a file as an image
    Put {
        /// Its name
        name: String,
        /// The file
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// What it is for
        #[arg(short, long, value_enum, default_value = "disk")]
        kind: ImageKind,
        /// SHA-256 in hexadecimal that the daemon shall verify
        #[arg(long, value_name = "HEX")]
        sha256: Option<String>,
    },
    /// Show an image
    Info {
        /// The image
        name: String,
    },
    /// Delete an image that no disk is based on
    #[command(visible_alias = "rm")]
    Delete {
        /// The image
        name: String,
    },
}

/// Commands about the network.
#[derive(Clone, Debug, Subcommand)]
pub enum NetworkCommand {
    /// List the networks that VMs can be connected to
    #[command(visible_alias = "ls")]
    List,
    /// Show the default network
    #[command(visible_alias = "info")]
    Config,
    /// List the addresses given to VMs
    Leases,
    /// List the ports of the host that lead into VMs
    Forwards,
    /// Let a port of the host lead into a VM
    Forward {
        /// The VM
        vm: String,
        /// The port on the host
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        host_port: u16,
        /// The port in the guest; the same as on the host by default
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        guest_port: Option<u16>,
        /// UDP instead of TCP
        #[arg(long)]
        udp: bool,
    },
    /// End the forwarding of a port
    Unforward {
        /// The forward, `tcp-8080`
        id: String,
    },
}

/// Commands about the observer.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum ObserverCommand {
    /// Show what it found last
    Status,
    /// Let it look now
    Check,
}

/// Commands about the host.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum HostCommand {
    /// Show its boot, what is still to be started in it, and its drain
    Info,
    /// Stop all VMs, because it is to go down; its next boot starts them again
    Drain {
        /// Seconds that guests have in all until force is used
        #[arg(long, value_name = "SECONDS", default_value_t = 120)]
        timeout: u32,
        /// Answer as soon as the drain is recorded
        #[arg(long)]
        no_wait: bool,
    },
    /// It stays up: start again what was drained
    Resume,
}

/// Commands about operations.
#[derive(Clone, Debug, Subcommand)]
pub enum OperationCommand {
    /// List operations
    #[command(visible_alias = "ls")]
    List,
    /// Show an operation
    Info {
        /// The operation
        id: String,
    },
    /// Wait until an operation has ended
    Wait {
        /// The operation
        id: String,
        /// Wait at most this many seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 300)]
        timeout: u32,
    },
    /// Cancel an operation, where that makes sense
    Cancel {
        /// The operation
        id: String,
    },
}

/// Which events.
#[derive(Clone, Copy, Debug, ClapArgs)]
pub struct EventsFlags {
    /// Go on printing what comes
    #[arg(short, long)]
    pub follow: bool,
    /// Only what came after this revision
    #[arg(long, value_name = "REVISION")]
    pub since: Option<u64>,
}

/// What a token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scope {
    /// Look, but change nothing
    Read,
    /// Everything
    Admin,
}

/// Commands about tokens.
#[derive(Clone, Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it, this once
    Create {
        /// Its name
        name: String,
        /// What it allows
        #[arg(long, value_enum, default_value = "read")]
        scope: Scope,
        /// Days until it expires; never if not given
        #[arg(long, value_name = "DAYS")]
        expires_days: Option<u32>,
    },
    /// List tokens
    #[command(visible_alias = "ls")]
    List,
    /// Make a token useless
    Revoke {
        /// The token's name
        name: String,
    },
}

/// Commands about the store.
#[derive(Clone, Debug, Subcommand)]
pub enum StoreCommand {
    /// Let the daemon make a backup of its store now
    Backup,
    /// Check that every record can be read, that they hold together, and their manifests
    Check {
        /// Look at the files themselves, while no daemon runs
        #[arg(long)]
        offline: bool,
        /// The daemon's configuration, for --offline
        #[command(flatten)]
        config: ConfigFlags,
    },
    /// Write out all records as JSON, a line each
    Export,
    /// Make a lost or corrupt store again of manifests and running QEMUs, while no daemon runs
    Rebuild {
        /// Also where the store can be read: it is put aside
        #[arg(long)]
        force: bool,
        /// The daemon's configuration
        #[command(flatten)]
        config: ConfigFlags,
    },
}

/// Commands about the configuration.
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show each effective value and where it came from
    Show(ConfigFlags),
    /// Say what is wrong with the configuration
    Check(ConfigFlags),
}

/// Commands about upgrades.
#[derive(Clone, Debug, Subcommand)]
pub enum UpgradeCommand {
    /// Say what this binary would do with the store, before it is started on it
    Check(ConfigFlags),
}
