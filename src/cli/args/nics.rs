//! The commands about network cards, with their flags.

use super::Wait;
use clap::{Args, Subcommand};

/// Commands about the network cards of VMs.
#[derive(Clone, Debug, Subcommand)]
pub enum NicCommand {
    /// List a VM's network cards with what went through them
    #[command(visible_alias = "ls")]
    List {
        /// The VM
        vm: String,
    },
    /// Give a VM another network card
    Attach {
        /// The VM
        vm: String,
        /// Network it is connected to; `default` if not given
        #[arg(long, value_name = "NAME")]
        network: Option<String>,
        /// Address it shall have; one is chosen if not given
        #[arg(long, value_name = "IPV4")]
        address: Option<String>,
        /// With its cable pulled
        #[arg(long)]
        down: bool,
        /// Waiting
        #[command(flatten)]
        wait: Wait,
    },
    /// Take a network card from a VM
    Detach {
        /// The VM
        vm: String,
        /// The card (nic1)
        nic: String,
        /// Waiting
        #[command(flatten)]
        wait: Wait,
    },
    /// Plug a network card's cable in (up) or pull it (down)
    Link {
        /// The VM
        vm: String,
        /// The card (nic0)
        nic: String,
        /// up or down
        link: String,
        /// Waiting
        #[command(flatten)]
        wait: Wait,
    },
    /// Limit how fast a network card may be, as its guest sees it; a direction that is not given has
    /// no limit any more
    Limit {
        /// The VM
        vm: String,
        /// The card (nic0)
        nic: String,
        /// The limits
        #[command(flatten)]
        limits: Limits,
        /// Waiting
        #[command(flatten)]
        wait: Wait,
    },
}

/// The limits of a network card.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Limits {
    /// What the guest receives on average
    #[arg(long, value_name = "KIB_PER_S")]
    pub inbound: Option<u32>,
    /// What it receives at most within a burst
    #[arg(long, value_name = "KIB_PER_S", requires = "inbound")]
    pub inbound_peak: Option<u32>,
    /// What it receives at once after a pause
    #[arg(long, value_name = "KIB", requires = "inbound")]
    pub inbound_burst: Option<u32>,
    /// What the guest sends on average
    #[arg(long, value_name = "KIB_PER_S")]
    pub outbound: Option<u32>,
    /// What it sends at once after a pause
    #[arg(long, value_name = "KIB", requires = "outbound")]
    pub outbound_burst: Option<u32>,
    /// No limits
    #[arg(long, conflicts_with_all = ["inbound", "outbound"])]
    pub none: bool,
}
