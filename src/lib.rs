//! VMAN.
pub mod config;
