//! Named steps at which a test build of the daemon dies, as by SIGKILL.
//!
//! Without the feature `failpoints` nothing of this is compiled in but empty
//! functions. A step is named `<operation>.<what was just done>`.

/// The steps there are, in the order they are passed.
pub const STEPS: &[&str] = &[
    "create.row",
    "create.part",
    "create.file",
    "create.committed",
    "delete.row",
    "delete.file",
    "attach.intent",
    "attach.device",
    "detach.intent",
    "detach.asked",
    "detach.released",
    "detach.closed",
    "resize.row",
    "resize.done",
];

#[cfg(feature = "failpoints")]
static ARMED: std::sync::OnceLock<(String, fn() -> !)> = std::sync::OnceLock::new();

/// Says at which step this process is to die, and how. Once.
#[cfg(feature = "failpoints")]
pub fn arm(step: String, die: fn() -> !) {
    let _ = ARMED.set((step, die));
}

/// Dies here if this is the step.
#[cfg(feature = "failpoints")]
pub fn hit(step: &str) {
    debug_assert!(STEPS.contains(&step), "{step} is no step");
    if let Some((armed, die)) = ARMED.get()
        && armed == step
    {
        die();
    }
}

/// Nothing: this build has no failpoints.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn hit(_: &str) {}
