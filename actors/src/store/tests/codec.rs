//! Golden bytes, and bytes that are not ours.

use super::given::{disk, event, forward, host, image, key, lease, operation, template, token, vm};
use crate::store::codec::{DecodeError, Kind, decode, encode};
use proptest::prelude::*;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::{Debug, Write};
use vman_model::{
    DiskRecord, Event, ForwardRecord, IdempotencyRecord, ImageRecord, LeaseRecord, OperationRecord,
    Revision, TemplateRecord, TokenRecord, UnixMs, vm::VmRecord,
};

/// The rows of schema 1 as they are on people's disks. They never change: a
/// change of a record is a new schema, and these are still read.
const GOLDEN: [(Kind, &str); 12] = [
    (
        Kind::Template,
        "564d010100510000001fc4792e0705736d616c6c02fb0008010964656269616e2d3133010776\
         6d6c696e757a010a696e697472642e696d670d636f6e736f6c653d74747953300101fb002801\
         047469657203776562fd0068e5cf8b010000",
    ),
    (
        Kind::Vm,
        "564d0201007f0100007c4cf099fb2c01057765622d3107070707070707070707070707070707\
         05736d616c6c02fb0008010964656269616e2d31330107766d6c696e757a010a696e69747264\
         2e696d670d636f6e736f6c653d74747953300101fb0028010474696572037765620005fb5802\
         fbe803fb60ea010107010464622d310101fb2c01019600525601020304010a7765622d312d72\
         6f6f74fd0068e5cf8b010000020106fdf469e5cf8b010000011464656c657465207761732061\
         736b656420666f72030106626f6f742d3101fb6712fc40e2010006626f6f742d3101fd6468e5\
         cf8b01000001010a7765622d312d726f6f74010000525601020304010931302e302e322e3135\
         01fc7111010002000301011464656c657465207761732061736b656420666f720101fb307500\
         0102050609fa01046f702d3106fd9069e5cf8b0100000103722d310106646174612d3101fb00\
         04010101290106646174612d31046202046f702d310106646174612d31010101010152560909\
         09090001036c61620764656661756c74",
    ),
    (
        Kind::Disk,
        "564d0301003f000000d688b320080a7765622d312d726f6f74fb002800010964656269616e2d\
         313301057765622d3101fd0068e5cf8b0100000101010103732d3164c8fbe803fbd007020163",
    ),
    (
        Kind::Image,
        "564d04010061000000269f64ad090964656269616e2d31330001fc00a3e111fc000000804061\
         6261626162616261626162616261626162616261626162616261626162616261626162616261\
         62616261626162616261626162616261626162616261626162fd0068e5cf8b010000",
    ),
    (
        Kind::Operation,
        "564d0501004e00000046518ba20a046f702d310001057765622d3100010102096c61756e6368\
         696e6728fd0068e5cf8b01000001fd846be5cf8b010000010c73746172745f6661696c65640e\
         6e6f20737563682064657669636500",
    ),
    (
        Kind::Event,
        "564d0601005d0000000535b3e62afd0068e5cf8b01000000057765622d310501030105010120\
         746865206775657374207761732061736b656420746f20706f776572206f6666010301046f70\
         2d310003722d31076c6f63616c3a300100c00002070473746f7001280129",
    ),
    (
        Kind::Idempotency,
        "564d0701003300000088a60191036b2d31090909090909090909090909090909090909090909\
         090909090909090909090902046f702d31fd0068e5cf8b010000",
    ),
    (
        Kind::Token,
        "564d1801004a000000a2dee4c60b103061316232633364346535663630373102636901050505\
         0505050505050505050505050505050505050505050505050505050505fd0068e5cf8b010000\
         01fd00505c18a301000000",
    ),
    (
        Kind::Host,
        "564d2801002d000000c8341cc80d06626f6f742d3101057765622d310101fd0068e5cf8b010000fcc0d40100046f702d310801057765622d3101",
    ),
    (Kind::Meta, "564d0801000500000041eb808dfc87d61200"),
    (
        Kind::Lease,
        "564d10010039000000246d5c620b0831302e302e302e37057765622d31000a00000752560102\
         03040101fbd00701fb2823fbf40100fd0068e5cf8b0100000764656661756c74",
    ),
    (
        Kind::Forward,
        "564d1101001e0000009683cc310c087564702d38303830057765622d3101fb901f50fd0068e5cf8b010000",
    ),
];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn golden(kind: Kind) -> &'static str {
    let found = GOLDEN.iter().find(|(of, _)| *of == kind);
    found.map_or("", |(_, bytes)| *bytes)
}

fn holds<T: Serialize + DeserializeOwned + PartialEq + Debug>(kind: Kind, value: &T) {
    let bytes = encode(kind, value);
    assert_eq!(hex(&bytes), golden(kind), "{kind:?}");
    let read: T = decode(kind, &bytes).unwrap();
    assert_eq!(read, *value);
}

#[test]
fn every_kind_of_row_has_the_bytes_it_always_had() {
    holds(Kind::Template, &(Revision(7), template("small")));
    holds(Kind::Vm, &(Revision(300), vm()));
    holds(Kind::Disk, &(Revision(8), disk()));
    holds(Kind::Image, &(Revision(9), image()));
    holds(Kind::Operation, &(Revision(10), operation("op-1")));
    holds(Kind::Event, &event());
    holds(Kind::Idempotency, &key("k-1", UnixMs(1_700_000_000_000)));
    holds(Kind::Meta, &Revision(1_234_567));
    holds(Kind::Lease, &(Revision(11), lease()));
    holds(Kind::Forward, &(Revision(12), forward()));
    holds(Kind::Token, &(Revision(11), token()));
    holds(Kind::Host, &(Revision(13), host()));
}

fn decode_as_anything(bytes: &[u8]) -> Vec<Option<DecodeError>> {
    vec![
        decode::<(Revision, TemplateRecord)>(Kind::Template, bytes).err(),
        decode::<(Revision, VmRecord)>(Kind::Vm, bytes).err(),
        decode::<(Revision, DiskRecord)>(Kind::Disk, bytes).err(),
        decode::<(Revision, ImageRecord)>(Kind::Image, bytes).err(),
        decode::<(Revision, OperationRecord)>(Kind::Operation, bytes).err(),
        decode::<Event>(Kind::Event, bytes).err(),
        decode::<IdempotencyRecord>(Kind::Idempotency, bytes).err(),
        decode::<Revision>(Kind::Meta, bytes).err(),
        decode::<(Revision, LeaseRecord)>(Kind::Lease, bytes).err(),
        decode::<(Revision, ForwardRecord)>(Kind::Forward, bytes).err(),
        decode::<(Revision, TokenRecord)>(Kind::Token, bytes).err(),
    ]
}

/// A row whose envelope is right whatever its payload is.
fn enveloped(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut row = b"VM".to_vec();
    row.extend([kind, 1, 0]);
    row.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&row), payload);
    row.extend(sum.to_le_bytes());
    row.extend(payload);
    row
}

#[test]
fn a_row_with_anything_changed_added_or_cut_is_corrupt() {
    let row = encode(Kind::Vm, &(Revision(300), vm()));
    let read = |bytes: &[u8]| decode::<(Revision, VmRecord)>(Kind::Vm, bytes);
    assert!(read(&row).is_ok());
    for at in 0..row.len() {
        for bit in 0..8 {
            let mut flipped = row.clone();
            flipped[at] ^= 1 << bit;
            let error = read(&flipped).unwrap_err();
            assert!(
                matches!(error, DecodeError::Corrupt(_)),
                "{at}.{bit}: {error}"
            );
        }
        assert!(read(&row[..at]).is_err());
    }
    let longer = [row.as_slice(), &[0]].concat();
    assert!(read(&longer).is_err());
    // Sealed anew with a byte too many: every byte must be accounted for.
    let payload = [&row[13..], &[0]].concat();
    assert!(read(&enveloped(Kind::Vm as u8, &payload)).is_err());
    assert!(read(&enveloped(Kind::Vm as u8, &row[13..])).is_ok());
    assert!(read(&enveloped(Kind::Disk as u8, &row[13..])).is_err());
}

#[test]
fn a_length_that_asks_for_all_memory_is_refused() {
    // bincode's marker of a 64-bit length, where the first string's belongs.
    let mut payload = vec![1, 253];
    payload.extend(u64::MAX.to_le_bytes());
    payload.extend([0; 32]);
    for kind in 1..=8 {
        for error in decode_as_anything(&enveloped(kind, &payload)) {
            assert!(error.is_some());
        }
    }
}

proptest! {
    #[test]
    fn reading_any_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        decode_as_anything(&bytes);
    }

    #[test]
    fn reading_any_payload_in_a_right_envelope_never_panics(
        kind in 1u8..=8, payload in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        decode_as_anything(&enveloped(kind, &payload));
    }

    #[test]
    fn reading_a_changed_payload_in_a_right_envelope_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        for (kind, row) in [
            (Kind::Vm, encode(Kind::Vm, &(Revision(300), vm()))),
            (Kind::Event, encode(Kind::Event, &event())),
        ] {
            let mut payload = row[13..].to_vec();
            for (at, byte) in &changes {
                let at = at.index(payload.len());
                payload[at] = *byte;
            }
            decode_as_anything(&enveloped(kind as u8, &payload));
        }
    }
}
