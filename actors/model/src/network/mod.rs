//! Networks as data: addresses and who holds them, forwarded ports, and what
//! the host has to look like for them.
//!
//! Owns: which address a VM is given ([`lease`]), the names that follow from a
//! VM's id, IPv6 beside them ([`ipv6`]), and the desired state of a network ([`plan`]).
//! Must not: know how a bridge or a rule is made (`src/host/net` does).

pub mod forward;
pub mod ipv6;
pub mod lease;
pub mod limits;
pub mod nic;
pub mod plan;

pub use forward::{ForwardRecord, Protocol};
pub use ipv6::{Prefix6, Prefix6Error, link_local};
pub use lease::{LeaseRecord, Pool, PoolError, allocate, lease_id, mac_address, misplaced};
pub use limits::{Limit, NicLimits};
pub use nic::{LinkState, MAX_NICS, NewNic, Nic, NicState};
pub use plan::{ForwardPlan, NetworkPlan, PortPlan, TapName, host_name};
