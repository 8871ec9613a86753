//! What an operator relies on: figures, logs, the unit, wrong configurations.
#![allow(clippy::unwrap_used, clippy::float_cmp, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod configuration;
mod docs;
mod journald;
mod metrics;
mod package;
mod store;
mod systemd;
mod upgrade;
