//! What the tests on the real daemon share: a daemon of their own on a private
//! storage path, a plain HTTP client over its socket, and a clean end.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, missing_docs)]

pub mod daemon;
pub mod host;
pub mod http;
pub mod qmp;
pub mod sight;

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

/// The accelerator tests ask for: KVM may be there and broken.
pub fn accel() -> String {
    std::env::var("VMAN_ACCEL").unwrap_or_else(|_| "tcg".to_owned())
}

/// How many times as slow as a common one this host is (`VMAN_TEST_SLOWNESS`): an emulated machine
/// whose guests are emulated once more needs its time, and to be asked less often.
pub fn slowness() -> u32 {
    let said = std::env::var("VMAN_TEST_SLOWNESS").ok();
    said.and_then(|said| said.parse().ok()).unwrap_or(1)
}

/// Waits for a condition; panics with `what` when `limit` has passed.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let limit = limit * slowness();
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "waited {limit:?} in vain for {what}"
        );
        // The interval of a poll with a deadline, not a wait for something to happen.
        std::thread::park_timeout(Duration::from_millis(5) * slowness());
    }
}

/// Whether this host has QEMU; a test that cannot run says so and is counted.
pub fn can_run(test: &str) -> bool {
    let there = Command::new("qemu-system-x86_64")
        .arg("-version")
        .output()
        .is_ok();
    if !there {
        skip(test, "qemu-system-x86_64 is not installed");
    }
    there
}

/// Tells that a test cannot run on this host, and why.
pub fn skip(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
    if let Ok(list) = std::env::var("VMAN_TEST_SKIPS") {
        use std::io::Write;
        let file = std::fs::OpenOptions::new().append(true).open(list);
        if let Ok(mut file) = file {
            let _ = writeln!(file, "{test}: {why}");
        }
    }
}

/// The folder with the test guest, built by `contrib/guest/build.sh` if need be.
pub fn guest() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let out = std::env::var_os("VMAN_GUEST_CACHE")
        .map_or_else(|| root.join("contrib/guest/out"), PathBuf::from);
    if !out.join("initrd").exists() || !out.join("vmlinuz").exists() {
        let built = Command::new(root.join("contrib/guest/build.sh"))
            .output()
            .unwrap();
        assert!(
            built.status.success(),
            "{}",
            String::from_utf8_lossy(&built.stderr)
        );
    }
    out
}
