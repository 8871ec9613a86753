//! What the API says and is told, apart from the records: a record may change
//! without the API changing, and the other way round.
//!
//! Answers borrow from the records and are written straight to JSON.

pub(crate) mod disk;
pub(crate) mod event;
pub(crate) mod host;
pub(crate) mod image;
pub(crate) mod limits;
pub(crate) mod log;
pub(crate) mod network;
pub(crate) mod nic;
pub(crate) mod operation;
pub(crate) mod power;
pub(crate) mod size;
pub(crate) mod store;
pub(crate) mod template;
pub(crate) mod token;
pub(crate) mod vm;

use serde::{Serialize, Serializer};
use std::fmt;
use vman_model::UnixMs;

/// A time, as RFC 3339 in UTC.
pub(crate) struct Time(pub(crate) UnixMs);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = i64::try_from(self.0.0).unwrap_or(i64::MAX);
        match jiff::Timestamp::from_millisecond(millis) {
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => f.write_str("9999-12-31T23:59:59Z"),
        }
    }
}

/// Writes a value as the string it displays.
pub(crate) struct Shown<T>(pub(crate) T);

impl<T: fmt::Display> Serialize for Shown<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A MAC address in its usual form.
pub(crate) struct Mac(pub(crate) [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let colon = if i == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}
