//! VMAN.
pub mod config;
pub mod telemetry;
