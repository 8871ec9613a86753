//! A panic is logged as an error and ends its task or actor, never the process.

use std::panic::PanicHookInfo;

/// Replaces the standard hook, which would write to standard error past the log.
pub(super) fn install() {
    std::panic::set_hook(Box::new(report));
}

pub(super) fn report(info: &PanicHookInfo<'_>) {
    let payload = info.payload();
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a value that is no text".to_owned());
    let location = info
        .location()
        .map_or_else(|| "unknown".to_owned(), ToString::to_string);
    let thread = std::thread::current();
    let backtrace = std::backtrace::Backtrace::capture();
    let captured = backtrace.status() == std::backtrace::BacktraceStatus::Captured;
    tracing::error!(
        panic = text,
        location,
        thread = thread.name().unwrap_or("unnamed"),
        backtrace = captured.then(|| tracing::field::display(&backtrace)),
        "a part of vman panicked",
    );
}
