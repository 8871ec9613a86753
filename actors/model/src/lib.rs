//! VMAN's records and decisions: pure data and pure functions.
//!
//! Owns: what a template, a VM, a disk, an image, an operation and an event
//! *are*, and every decision about them ([`vm::step`], [`restart`]).
//! Must not: read clocks, draw random numbers, touch files, sockets, threads or
//! processes (`clippy.toml` beside this crate forbids it). Time and fresh ids
//! are passed in.
//! Look next: [`vm::step`] for the life of a VM, [`change`] for what one
//! transaction of the store holds.

pub mod admission;
pub mod change;
pub mod disk;
pub mod drift;
pub mod event;
pub mod explain;
pub mod ids;
pub mod image;
pub mod manifest;
pub mod network;
pub mod operation;
pub mod power;
pub mod restart;
pub mod template;
pub mod time;
pub mod token;
pub mod vm;

pub use admission::{Allowance, Capacity, Overcommit, Promise};
pub use change::{Change, Guard, IdempotencyRecord, Write};
pub use disk::{DiskCache, DiskFile, DiskFormat, DiskLimits, DiskOptions, DiskRecord};
pub use event::{Cause, Event, EventDraft, EventKind, Origin, Subject};
pub use ids::{
    BootId, DiskId, ForwardId, IdError, IdempotencyKey, ImageName, Incarnation, LeaseId,
    NetworkName, OperationId, RequestId, Revision, TemplateName, TokenId, TokenName, VmId, VmUuid,
};
pub use image::{ImageFormat, ImageKind, ImageRecord};
pub use network::{ForwardRecord, LeaseRecord, NetworkPlan, Pool, Protocol, TapName};
pub use operation::{OperationKind, OperationRecord, OperationStatus, Problem};
pub use power::HostRecord;
pub use restart::{RestartBudget, RestartHistory, RestartMode, RestartPolicy};
pub use template::TemplateRecord;
pub use time::UnixMs;
pub use token::{TokenRecord, TokenScope};
