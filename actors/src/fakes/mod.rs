//! Scripted fakes of the ports: they fail, hang, answer late and twice, as a
//! test asks. They pass the same contract suites as the real adapters
//! ([`crate::ports::contract`]).

pub mod storage;

pub use storage::{MemoryStorage, NextCommit};
