//! The QEMU Machine Protocol, spoken by a client of our own.
//!
//! Owns: the codec, correlation of replies, deadlines, the bounded queue of events. Must not: know
//! what a VM is, reconnect (the machine task in `host::qemu` does), or trust QEMU: whatever comes
//! in is bounded and nothing of it panics. Look next: [`client`] for use, [`wire`] for the bytes.

pub mod client;
pub mod error;
pub mod events;
mod pending;
mod tasks;
pub mod wire;

pub use client::{Client, CommandTimes, Connected, Deadlines, Request};
pub use error::{Lost, QmpError};
pub use events::{Events, Incoming};
pub use tasks::Counters;
pub use wire::{Event, Greeting};

#[cfg(test)]
pub(in crate::host) mod fake;
#[cfg(test)]
mod tests;
