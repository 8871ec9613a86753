//! The real daemon on real QEMU: what a user would see.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod bad_hosts;
mod guests;
mod jail;
mod recovery;
mod workflows;
