//! The contract of the REST API: the whole router over the whole tree, on a
//! simulated host.
#![allow(clippy::unwrap_used, missing_docs)]

mod access;
mod bad_input;
mod connections;
mod disks;
mod faults;
mod flood;
mod idempotency;
mod lists;
mod logs;
mod matrix;
mod nics;
mod power;
mod store;
mod streams;
mod support;
mod workflows;
