//! VMs on a bridge, in network namespaces of the tests' own, with guests that really boot, ask by
//! DHCP and send packets. Nothing outside these namespaces is touched.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

mod console;
mod damage;
mod drift;
mod forgery;
mod forgery6;
mod ipv6;
mod leases;
mod limits;
mod networks;
mod nics;
mod tools;
mod traffic;
mod user;
mod vhost;
mod vlan;
mod world;
