//! The real daemon on real QEMU: what a user would see.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod bad_hosts;
mod disks;
mod drifted;
mod evil_images;
mod explained;
mod full_disk;
mod guests;
mod jail;
mod limits;
mod lost_store;
mod observed;
mod paused;
mod read_only;
mod recovery;
mod storage_full;
mod workflows;
