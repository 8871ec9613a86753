//! VMAN.

pub mod http;
