//! Request bodies: see `bodies.rs`.
#![no_main]
#![allow(dead_code)]

#[path = "../bodies.rs"]
mod bodies;
#[path = "../../tests/api/support.rs"]
mod support;

use std::sync::LazyLock;

static BODIES: LazyLock<bodies::Bodies> = LazyLock::new(bodies::Bodies::new);

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| BODIES.send(bytes));
