//! What one transaction of the store holds: guards that must hold, rows to
//! write, the event that tells it. What belongs together is one [`Change`].

use crate::{
    disk::DiskRecord,
    event::EventDraft,
    ids::{
        DiskId, IdempotencyKey, ImageName, OperationId, Revision, TemplateName, TokenId, TokenName,
        VmId,
    },
    image::ImageRecord,
    operation::OperationRecord,
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
    /// The VM is there and still has this revision (`If-Match`).
    VmRevision(VmId, Revision),
    /// No disk of that id.
    DiskAbsent(DiskId),
    /// No image of that name.
    ImageAbsent(ImageName),
    /// The image is there.
    ImagePresent(ImageName),
    /// No disk is based on the image and no VM or template boots it.
    ImageUnused(ImageName),
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
    /// Put an image.
    PutImage(ImageRecord),
    /// Erase an image's record.
    EraseImage(ImageName),
    /// Put an operation.
    PutOperation(OperationRecord),
    /// Remember an idempotency key.
    PutIdempotency(IdempotencyRecord),
    /// Put a token.
    PutToken(TokenRecord),
    /// Erase a token.
    EraseToken(TokenId),
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
