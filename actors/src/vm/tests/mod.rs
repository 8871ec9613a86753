//! Flows of the whole tree on a simulated host.
//!
//! `daemon.rs` is the daemon under test and its oracle; the tests are grouped
//! by what they try: `commands`, `faults` (hangs, failures), `network` (addresses, the bridge),
//! `deaths` (of actors, of the daemon, of the host), `doc` (the page), `observed` (the observer),
//! `chaos` (random commands and deaths).

mod chaos;
mod commands;
mod daemon;
mod deaths;
mod doc;
mod faults;
mod network;
mod nics;
mod observed;
mod power;
mod rebuilt;
