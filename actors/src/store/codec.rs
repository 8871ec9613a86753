//! The only place that knows how rows look on disk: bincode in an envelope.
//!
//! `"VM"`, kind (1 byte), schema version (2), payload length (4), CRC-32C of
//! all of these and the payload (4), payload; integers little-endian. The
//! checksum is for rot (also of the schema: a flipped bit is not a newer VMAN),
//! the kind for rows in the wrong table, the length and the decoder's limit for
//! corrupt lengths, which would otherwise ask for all memory there is. Every
//! schema keeps this envelope.
//!
//! bincode is complete but abandoned (RUSTSEC-2025-0141). `tests` hold golden
//! bytes of every kind: a struct of a released schema never changes; a new
//! version gets a new struct, and `migrate.rs` the way from the old one.

use serde::{Serialize, de::DeserializeOwned};

const MAGIC: [u8; 2] = *b"VM";
/// The header before its checksum, and with it.
const CHECKED: usize = 2 + 1 + 2 + 4;
const HEADER: usize = CHECKED + 4;
/// The largest payload: a VM's record with all its labels is far below.
const MAX_PAYLOAD: usize = 1 << 20;

/// What a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A template.
    Template = 1,
    /// A VM.
    Vm = 2,
    /// A disk.
    Disk = 3,
    /// An image.
    Image = 4,
    /// An operation.
    Operation = 5,
    /// An event.
    Event = 6,
    /// An idempotency key.
    Idempotency = 7,
    /// The store's own.
    Meta = 8,
    /// A lease.
    Lease = 16,
    /// A forwarded port.
    Forward = 17,
    /// A bearer token.
    Token = 24,
    /// The host.
    Host = 40,
}

impl Kind {
    /// The schema this build writes. A kind goes up by one when the shape of its record changes, and `STEPS` in
    /// `migrate.rs` gets the way up from the one before.
    pub const fn schema(self) -> u16 {
        match self {
            Kind::Template
            | Kind::Vm
            | Kind::Disk
            | Kind::Image
            | Kind::Operation
            | Kind::Event
            | Kind::Idempotency
            | Kind::Meta
            | Kind::Host
            | Kind::Lease
            | Kind::Forward
            | Kind::Token => 1,
        }
    }
}

/// Why a row cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer VMAN.
    #[error("schema {found} is newer than this build's {known}")]
    Newer {
        /// The row's schema.
        found: u16,
        /// What this build knows.
        known: u16,
    },
    /// Not a row, or rotten.
    #[error("{0}")]
    Corrupt(String),
}

fn corrupt(why: impl Into<String>) -> DecodeError {
    DecodeError::Corrupt(why.into())
}

/// A row's bytes.
pub fn encode<T: Serialize>(kind: Kind, value: &T) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    bincode::serde::encode_into_std_write(value, &mut out, bincode::config::standard())
        .expect("a record serialises into memory: its types hold no map with a failing key");
    close(kind, kind.schema(), out)
}

/// The row of a payload of another schema than this build writes.
pub fn seal(kind: Kind, schema: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    out.extend_from_slice(payload);
    close(kind, schema, out)
}

/// Writes the header in front of a payload.
fn close(kind: Kind, schema: u16, mut out: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(out.len() - HEADER).expect("records are far below 4 GiB");
    out[0..2].copy_from_slice(&MAGIC);
    out[2] = kind as u8;
    out[3..5].copy_from_slice(&schema.to_le_bytes());
    out[5..9].copy_from_slice(&length.to_le_bytes());
    let checksum = checksum(&out[..CHECKED], &out[HEADER..]);
    out[CHECKED..HEADER].copy_from_slice(&checksum.to_le_bytes());
    out
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(header), payload)
}

/// Reads a row. Every byte must be accounted for.
pub fn decode<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T, DecodeError> {
    let payload = open(kind, bytes)?;
    let config = bincode::config::standard().with_limit::<MAX_PAYLOAD>();
    let (value, used) = bincode::serde::decode_from_slice(payload, config)
        .map_err(|error| corrupt(format!("payload: {error}")))?;
    if used != payload.len() {
        return Err(corrupt(format!("{} bytes left over", payload.len() - used)));
    }
    Ok(value)
}

fn open(kind: Kind, bytes: &[u8]) -> Result<&[u8], DecodeError> {
    let (schema, payload) = unseal(kind, bytes)?;
    let known = kind.schema();
    if schema > known {
        return Err(DecodeError::Newer {
            found: schema,
            known,
        });
    }
    if schema < known {
        // Whatever can be brought up was brought up before rows are decoded.
        return Err(corrupt(format!("there is no way up from schema {schema}")));
    }
    Ok(payload)
}

/// A row's schema and payload, whatever the schema.
pub(super) fn unseal(kind: Kind, bytes: &[u8]) -> Result<(u16, &[u8]), DecodeError> {
    let (header, payload) = bytes
        .split_at_checked(HEADER)
        .ok_or_else(|| corrupt("shorter than its header"))?;
    if header[0..2] != MAGIC {
        return Err(corrupt("no magic"));
    }
    let length = u32::from_le_bytes([header[5], header[6], header[7], header[8]]);
    if length as usize != payload.len() {
        return Err(corrupt(format!(
            "length {length} for {} bytes",
            payload.len()
        )));
    }
    let told = u32::from_le_bytes([header[9], header[10], header[11], header[12]]);
    if told != checksum(&header[..CHECKED], payload) {
        return Err(corrupt("checksum mismatch"));
    }
    if header[2] != kind as u8 {
        return Err(corrupt(format!(
            "kind {} where {} belongs",
            header[2], kind as u8
        )));
    }
    if payload.len() > MAX_PAYLOAD {
        return Err(corrupt(format!("{} bytes are too many", payload.len())));
    }
    Ok((u16::from_le_bytes([header[3], header[4]]), payload))
}
