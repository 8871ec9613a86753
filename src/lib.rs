//! VMAN.
pub mod host;
