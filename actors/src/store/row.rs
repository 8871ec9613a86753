//! One row, read: whatever table it is from. For those who go through all there is (`check`,
//! `export.rs`); the daemon's own start reads table by table (`load.rs`).

use super::codec::{self, DecodeError, Kind};
use crate::ports::Table;
use serde::{Serialize, de::DeserializeOwned};
use vman_model::{
    DiskRecord, Event, ForwardRecord, HostRecord, IdempotencyRecord, ImageRecord, LeaseRecord,
    OperationRecord, Revision, TemplateRecord, TokenRecord, vm::VmRecord,
};

/// What a row holds.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Record {
    Template(TemplateRecord),
    Vm(Box<VmRecord>),
    Disk(DiskRecord),
    Image(ImageRecord),
    Operation(OperationRecord),
    Event(Box<Event>),
    Idempotency(IdempotencyRecord),
    Lease(LeaseRecord),
    Forward(ForwardRecord),
    Token(TokenRecord),
    Host(Box<HostRecord>),
    /// The last revision.
    Last(Revision),
    /// Bytes that could not be read when a daemon started, and why.
    SetAside {
        why: String,
    },
}

/// A row that could be read.
#[derive(Clone, Debug)]
pub(crate) struct ReadRow {
    /// The change that wrote it, where the row says so.
    pub(crate) revision: Option<Revision>,
    pub(crate) record: Record,
}

/// Reads a row of `table`.
pub(crate) fn read(table: Table, bytes: &[u8]) -> Result<ReadRow, DecodeError> {
    match table {
        Table::Templates => versioned(Kind::Template, bytes, Record::Template),
        Table::Vms => versioned(Kind::Vm, bytes, |vm| Record::Vm(Box::new(vm))),
        Table::Disks => versioned(Kind::Disk, bytes, Record::Disk),
        Table::Images => versioned(Kind::Image, bytes, Record::Image),
        Table::Operations => versioned(Kind::Operation, bytes, Record::Operation),
        Table::Leases => versioned(Kind::Lease, bytes, Record::Lease),
        Table::Forwards => versioned(Kind::Forward, bytes, Record::Forward),
        Table::Tokens => versioned(Kind::Token, bytes, Record::Token),
        Table::Host => versioned(Kind::Host, bytes, |host| Record::Host(Box::new(host))),
        Table::Events => plain(Kind::Event, bytes, |event: Event| {
            Record::Event(Box::new(event))
        }),
        Table::Idempotency => plain(Kind::Idempotency, bytes, Record::Idempotency),
        Table::Meta => plain(Kind::Meta, bytes, Record::Last),
        Table::Quarantine => Ok(ReadRow {
            revision: None,
            record: Record::SetAside {
                why: set_aside_for(bytes),
            },
        }),
    }
}

fn versioned<T: DeserializeOwned>(
    kind: Kind,
    bytes: &[u8],
    record: impl FnOnce(T) -> Record,
) -> Result<ReadRow, DecodeError> {
    let (revision, value): (Revision, T) = codec::decode(kind, bytes)?;
    Ok(ReadRow {
        revision: Some(revision),
        record: record(value),
    })
}

fn plain<T: DeserializeOwned>(
    kind: Kind,
    bytes: &[u8],
    record: impl FnOnce(T) -> Record,
) -> Result<ReadRow, DecodeError> {
    Ok(ReadRow {
        revision: None,
        record: record(codec::decode(kind, bytes)?),
    })
}

/// Why a row was set aside: the text before its bytes.
pub(super) fn set_aside_for(bytes: &[u8]) -> String {
    let why = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(why).into_owned()
}

/// A row's name for people, `vms/web-1`; an event's is its revision.
pub(crate) fn row_name(table: Table, key: &[u8]) -> String {
    let number = <[u8; 8]>::try_from(key).map(u64::from_be_bytes);
    match (table, number) {
        (Table::Events, Ok(revision)) => format!("{}/{revision}", table.as_str()),
        // Two keys never have the same name: one row would hide another.
        _ => format!("{}/{}", table.as_str(), key.escape_ascii()),
    }
}
