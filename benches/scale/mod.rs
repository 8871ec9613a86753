//! `cargo bench --bench vman -- scale`: many VMs on one daemon, and many who ask.
//!
//! On the simulated host, where nothing but VMAN itself costs anything; `starts.rs`
//! has real QEMUs too. Each HTTP figure stands beside its floor, the same web
//! framework with nothing behind it, measured in turn. A word after `scale` is the
//! part that is wanted alone.
//! Look next: `growth.rs` for what grows with the number of VMs, `plot.rs` for its
//! picture, docs/performance.md for what the figures mean.

mod events;
mod fleet;
mod growth;
mod memory;
mod plot;
mod reads;
mod report;
mod starts;
mod writes;

use report::Report;

type Part = (&'static str, fn(&mut Report));

const PARTS: [Part; 6] = [
    ("reads", reads::measure),
    ("writes", writes::measure),
    ("starts", starts::measure),
    ("memory", memory::measure),
    ("events", events::measure),
    ("growth", growth::measure),
];

pub(crate) fn measure() {
    let wanted: Vec<String> = std::env::args().collect();
    let only = |part: &&Part| wanted.iter().any(|word| word == part.0);
    let some = PARTS.iter().any(|part| only(&part));
    let mut report = Report::new();
    for (_, measure) in PARTS.iter().filter(|part| !some || only(part)) {
        measure(&mut report);
    }
    report.finish();
}
