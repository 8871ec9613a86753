//! The commands about network cards, with their flags.

use super::Wait;
use clap::Subcommand;

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
}
