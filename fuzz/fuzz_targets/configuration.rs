//! Configuration files and variables: see `entries::configuration`.
#![no_main]
#![allow(dead_code)]

#[path = "../entries.rs"]
mod entries;

use std::sync::LazyLock;

/// Written anew for each input.
static FOLDER: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a folder"));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entries::configuration(bytes, FOLDER.path()));
