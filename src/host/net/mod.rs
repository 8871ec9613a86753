//! Networks on this host: the bridge with its TAPs, its firewall and its DHCP; or QEMU's user-mode
//! network where there can be no bridge.
//!
//! Owns: the [`Network`] port. Must not: decide who gets which address, or touch links, tables and
//! processes that are not ours.
//!
//! | file | what |
//! |---|---|
//! | `set.rs` | all networks |
//! | `bridge.rs` | one network with its bridge |
//! | `settle.rs` | making the host look as it shall |
//! | `survey.rs` | what is there, ours or not |
//! | `user.rs` | QEMU's user-mode network, or none |
//! | `links.rs`, `tap.rs` | the bridge and its ports; TAPs |
//! | `ruleset.rs`, `ruleset6.rs`, `firewall.rs` | rules as text, those for IPv6; running `nft` |
//! | `ipv6.rs` | IPv6 of a bridge |
//! | `shaping.rs` | what guests receive, held to their limits |
//! | `vlan.rs`, `uplink.rs` | the bridge's VLAN; the uplink that carries it |
//! | `dnsmasq.rs` | DHCP and names |
//! | `watch.rs` | hearing of changes |

mod bridge;
mod dnsmasq;
mod firewall;
mod ipv6;
mod links;
mod ruleset;
mod ruleset6;
mod set;
mod settle;
mod shaping;
mod survey;
pub mod tap;
mod uplink;
mod user;
mod vlan;
mod watch;

pub use bridge::BridgeSettings;
pub use set::BridgeNetworks;
pub use user::UserNetwork;
