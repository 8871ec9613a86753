//! What the store promises, on a storage that fails as it is told.
//!
//! `given.rs` has the store under test and one record of each kind; then
//! `commits`, `loading`, `codec` (golden bytes), `log` (events, retention).

mod codec;
mod commits;
pub(super) mod given;
mod loading;
mod log;
mod migrating;
