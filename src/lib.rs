//! VMAN, a supervisor daemon for QEMU virtual machines.
//!
//! This crate holds what touches the world: the adapters of the ports
//! ([`host`]), the REST front end, the client commands, configuration and logs.
//! The decisions are in `vman-model`, the supervision tree in `vman-actors`.
//! Look next: `docs/architecture.md`.

pub mod app;
pub mod cli;
pub mod config;
pub mod host;
pub mod http;
pub mod telemetry;
