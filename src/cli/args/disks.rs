//! The commands about disks, with their flags.

use super::Wait;
use clap::{Args as ClapArgs, Subcommand};

/// A size in GiB or in MiB.
#[derive(Clone, Debug, ClapArgs)]
#[group(required = true, multiple = false)]
pub struct DiskSize {
    /// Size in GiB
    #[arg(long, value_name = "GIB")]
    pub size: Option<u64>,
    /// Size in MiB
    #[arg(long, value_name = "MIB")]
    pub size_mib: Option<u64>,
}

/// How a disk behaves. The limits take effect at once, the rest when it is attached next.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct DiskOptions {
    /// How the host caches it: writeback, none, writethrough or unsafe
    #[arg(long, value_name = "WORD")]
    pub cache: Option<String>,
    /// What becomes of space that the guest gives back: unmap or ignore
    #[arg(long, value_name = "WORD")]
    pub discard: Option<String>,
    /// Whether the guest may only read it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub read_only: Option<bool>,
    /// Serial number that the guest reads
    #[arg(long, value_name = "WORD")]
    pub serial: Option<String>,
    /// Requests a second at most; 0 is without a limit
    #[arg(long, value_name = "N")]
    pub iops: Option<u64>,
    /// Requests a second in a burst
    #[arg(long, value_name = "N")]
    pub iops_burst: Option<u64>,
    /// Bytes a second at most; 0 is without a limit
    #[arg(long, value_name = "BYTES")]
    pub bps: Option<u64>,
    /// Bytes a second in a burst
    #[arg(long, value_name = "BYTES")]
    pub bps_burst: Option<u64>,
}

/// What a new disk says.
#[derive(Clone, Debug, ClapArgs)]
pub struct NewDisk {
    /// Its name; made up if not given
    pub name: Option<String>,
    /// Size in GiB; its image's if not given
    #[arg(long, value_name = "GIB", conflicts_with = "size_mib", required_unless_present_any = ["size_mib", "image"])]
    pub size: Option<u64>,
    /// Size in MiB
    #[arg(long, value_name = "MIB")]
    pub size_mib: Option<u64>,
    /// Image it is a linked clone of
    #[arg(long, value_name = "NAME")]
    pub image: Option<String>,
    /// Device name the guest sees it under
    #[arg(long, value_name = "PATH")]
    pub mount_point: Option<String>,
    /// qcow2 or raw
    #[arg(long, value_name = "WORD")]
    pub format: Option<String>,
    /// How it behaves
    #[command(flatten)]
    pub options: DiskOptions,
}

/// Commands about disks.
#[derive(Clone, Debug, Subcommand)]
pub enum DiskCommand {
    /// List disks
    #[command(visible_alias = "ls")]
    List,
    /// Make a disk
    Create(Box<NewDisk>),
    /// Show a disk
    Info {
        /// The disk
        id: String,
    },
    /// Change how a disk behaves
    Set {
        /// The disk
        id: String,
        /// What is to be changed
        #[command(flatten)]
        options: DiskOptions,
    },
    /// Delete a disk that is attached nowhere
    #[command(visible_alias = "rm")]
    Delete {
        /// The disk
        id: String,
    },
    /// Attach a disk to a VM
    Attach {
        /// The disk
        id: String,
        /// The VM
        vm: String,
        /// Waiting
        #[command(flatten)]
        wait: Wait,
    },
    /// Detach a disk from its VM
    Detach {
        /// The disk
        id: String,
        /// Waiting
        #[command(flatten)]
        wait: Wait,
    },
    /// Make a disk larger
    Resize {
        /// The disk
        id: String,
        /// How large
        #[command(flatten)]
        size: DiskSize,
        /// Waiting
        #[command(flatten)]
        wait: Wait,
    },
}
