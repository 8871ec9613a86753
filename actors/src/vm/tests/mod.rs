//! Flows of the whole tree on a simulated host.
//!
//! `daemon.rs` is the daemon under test, `sight.rs` what the oracle sees of it; the tests are
//! grouped by what they try: `attach` (disks opened early), `commands`, `faults` (hangs, failures), `network` (addresses, the
//! bridge), `networks` (several of them), `deaths` (of actors, of the daemon, of the host), `images` (uploads), `doc` (the page),
//! `observed` (the observer), `matrix` (each of the `operations` cut at each step), `simulation` (random deeds,
//! faults and deaths by seed).

mod attach;
mod commands;
mod daemon;
mod deaths;
mod doc;
mod faults;
mod images;
mod matrix;
mod network;
mod networks;
mod nics;
mod observed;
mod operations;
mod power;
mod rebuilt;
mod sight;
mod simulation;
mod trial;
