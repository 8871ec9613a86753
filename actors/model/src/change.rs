//! What one transaction of the store holds: guards that must hold, rows to
//! write, the event that tells it. What belongs together is one [`Change`].

use crate::{
    admission::{Allowance, Promise},
    disk::DiskRecord,
    event::EventDraft,
    ids::{
        DiskId, ForwardId, IdempotencyKey, ImageName, LeaseId, OperationId, Revision, TemplateName,
        TokenId, TokenName, VmId,
    },
    image::ImageRecord,
    network::{ForwardRecord, LeaseRecord},
    operation::OperationRecord,
    power::HostRecord,
    template::TemplateRecord,
    time::UnixMs,
    token::TokenRecord,
    vm::record::VmRecord,
};
use serde::{Deserialize, Serialize};

/// A condition on the state right before the change. If one fails the whole
/// change is refused and nothing is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// No template of that name.
    TemplateAbsent(TemplateName),
    /// The template is there.
    TemplatePresent(TemplateName),
    /// No VM was made from the template.
    TemplateUnused(TemplateName),
    /// No VM of that id.
    VmAbsent(VmId),
    /// Fewer VMs than this.
    VmsBelow(usize),
    /// So much more may be promised to a VM.
    Room(Promise, Allowance),
    /// The VM is there and still has this revision (`If-Match`).
    VmRevision(VmId, Revision),
    /// No disk of that id.
    DiskAbsent(DiskId),
    /// The disk is there, whole, and belongs to no VM.
    DiskFree(DiskId),
    /// The disk still has this revision.
    DiskRevision(DiskId, Revision),
    /// No image of that name.
    ImageAbsent(ImageName),
    /// The image is there.
    ImagePresent(ImageName),
    /// No disk is based on the image and no VM or template boots it.
    ImageUnused(ImageName),
    /// The VM is there.
    VmPresent(VmId),
    /// Nobody holds the address.
    AddressFree(LeaseId),
    /// This card of the VM still holds the address.
    AddressHeld(LeaseId, VmId, u8),
    /// No network card has the MAC address.
    MacFree([u8; 6]),
    /// The port of the host is not forwarded.
    ForwardAbsent(ForwardId),
    /// The port of the host is forwarded.
    ForwardPresent(ForwardId),
    /// The idempotency key has not been used.
    KeyUnused(IdempotencyKey),
    /// No token of that name.
    TokenAbsent(TokenName),
    /// The token is there.
    TokenPresent(TokenId),
    /// Fewer tokens than this.
    TokensBelow(usize),
}

/// One row written or erased.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Put a template.
    PutTemplate(TemplateRecord),
    /// Erase a template.
    EraseTemplate(TemplateName),
    /// Put a VM.
    PutVm(Box<VmRecord>),
    /// Erase a VM's record.
    EraseVm(VmId),
    /// Put a disk.
    PutDisk(DiskRecord),
    /// Erase a disk's record.
    EraseDisk(DiskId),
    /// Give a disk to a VM, or take it from its VM. The rest of its row stays as
    /// it is in the moment of the commit.
    AssignDisk(DiskId, Option<VmId>),
    /// Note a disk's size in MiB; the rest stays likewise.
    SizeDisk(DiskId, u64),
    /// Leave a disk without a VM, as no VM's root disk; the rest stays likewise.
    FreeDisk(DiskId),
    /// Put an image.
    PutImage(ImageRecord),
    /// Erase an image's record.
    EraseImage(ImageName),
    /// Put a lease.
    PutLease(LeaseRecord),
    /// Give an address back.
    EraseLease(LeaseId),
    /// Give back whatever addresses a VM has in the moment of the commit, and erase
    /// the forwarded ports that lead into it then.
    DisconnectVm(VmId),
    /// Put a forwarded port.
    PutForward(ForwardRecord),
    /// Erase a forwarded port.
    EraseForward(ForwardId),
    /// Put an operation.
    PutOperation(OperationRecord),
    /// Remember an idempotency key.
    PutIdempotency(IdempotencyRecord),
    /// Put a token.
    PutToken(TokenRecord),
    /// Erase a token.
    EraseToken(TokenId),
    /// Put what is durable about the host.
    PutHost(Box<HostRecord>),
}

/// One transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// What must hold.
    pub guards: Vec<Guard>,
    /// What is written.
    pub writes: Vec<Write>,
    /// The event that tells it.
    pub event: Option<EventDraft>,
}

/// What a repeated POST answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdempotentAnswer {
    /// The template that was made.
    Template(TemplateName),
    /// The VM that was made.
    Vm(VmId),
    /// The operation that was accepted.
    Operation(OperationId),
    /// The disk that was made.
    Disk(DiskId),
    /// The port that was forwarded.
    Forward(ForwardId),
}

/// A remembered idempotency key, stored in the same commit as its effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyRecord {
    /// The client's key.
    pub key: IdempotencyKey,
    /// SHA-256 over method, path, query and body: another request under the
    /// same key is refused.
    pub fingerprint: [u8; 32],
    /// What it answers.
    pub answer: IdempotentAnswer,
    /// When it was first answered; forgotten a day later.
    pub created_at: UnixMs,
}
