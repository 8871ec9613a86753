//! VMAN's supervision tree, one folder an actor, and the ports it acts through.
//!
//! Must not: touch processes, files, sockets or the database; the ports do.
//! Look next: [`ports`].

#[cfg(any(test, feature = "fakes"))]
pub mod fakes;
pub mod ports;
