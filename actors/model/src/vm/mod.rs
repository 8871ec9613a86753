//! A VM: its spec, its record, its phases, and the function that decides what
//! happens to it.
//!
//! Look next: [`step`] (the decisions and their table), [`phase`], [`record`].

pub mod messages;
pub mod phase;
pub mod record;
pub mod spec;
pub mod step;

pub use messages::{
    Command, CommandContext, DiskOutcome, Effect, ExitStatus, Fact, Input, Moment, NicWork,
    QmpAction, Refusal, Reply, RunState, SeenDisk, Timer,
};
pub use phase::{ApiState, Desired, Phase};
pub use record::{
    AttachState, Attachment, Claim, Confinement, Ending, Measure, NicClaim, OpenOperation,
    ProcessIdentity, Reason, StopIntent, VmRecord,
};
pub use spec::{BootSpec, Firmware, IoErrorPolicy, NetworkKind, Resources, VmSize, VmSpec};
pub use step::{Decision, DiskChange, Erasure, NicChange, step};
