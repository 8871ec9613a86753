//! What strangers' bytes reach, one function for each way in. Each takes anything and must neither
//! panic nor break the promises that it asserts. Called by the fuzz targets and, with a mutator of
//! their own, by ordinary tests (`tests/hostile`), so that a short round needs no fuzzer.

use std::{fs, io::Cursor, path::Path};
use vman::{
    config::{Config, Environment, Overrides, keys::KEYS},
    host::{
        inspect::{inspect, virtual_size},
        qmp::wire::{Decoder, Message},
    },
};
use vman_actors::store::codec::{Kind, decode, encode, seal};
use vman_model::{
    DiskRecord, Event, ForwardRecord, IdempotencyRecord, ImageKind, ImageRecord, LeaseRecord,
    OperationRecord, Revision, TemplateRecord, TokenRecord, vm::VmRecord,
};

/// Larger than what the inspector lets through.
const MAX_VIRTUAL_SIZE: u64 = 64 << 40;
/// Short, so that lines beyond it are met.
const LINE: usize = 4_096;

/// What a QEMU sends: however the bytes are cut, the same lines come of them, and each line is told
/// once, if only as garbage. Answers how many were.
pub fn qmp(bytes: &[u8]) -> usize {
    let whole = messages(&[bytes]);
    let (first, second) = bytes.split_at(bytes.len() / 2);
    assert_eq!(whole, messages(&[first, second]), "cut in two");
    let lines = bytes.split(|byte| *byte == b'\n').count() - 1;
    assert!(whole.len() <= lines, "a line is told once");
    whole.len()
}

fn messages(parts: &[&[u8]]) -> Vec<Message> {
    let mut decoder = Decoder::with_max_line(LINE);
    let mut told = Vec::new();
    for part in parts {
        decoder.feed(part, &mut |message| told.push(message));
    }
    told
}

/// What is uploaded: what the inspector accepts has a size within bounds, and the same when it is
/// asked again.
pub fn image(bytes: &[u8]) {
    for kind in [ImageKind::Disk, ImageKind::Kernel, ImageKind::Initrd] {
        let mut file = Cursor::new(bytes);
        if let Ok(seen) = inspect(kind, &mut file) {
            assert!(seen.virtual_size > 0 && seen.virtual_size <= MAX_VIRTUAL_SIZE);
            let size = virtual_size(seen.format, &mut file).expect("what was let in can be read");
            assert_eq!(size, seen.virtual_size);
        }
    }
}

/// What a rotten store holds, as rows and as payloads under a right checksum: what can be read is
/// written as it was read.
pub fn rows(bytes: &[u8]) {
    row::<TemplateRecord>(Kind::Template, bytes);
    row::<VmRecord>(Kind::Vm, bytes);
    row::<DiskRecord>(Kind::Disk, bytes);
    row::<ImageRecord>(Kind::Image, bytes);
    row::<OperationRecord>(Kind::Operation, bytes);
    row::<LeaseRecord>(Kind::Lease, bytes);
    row::<ForwardRecord>(Kind::Forward, bytes);
    row::<TokenRecord>(Kind::Token, bytes);
    bare::<Event>(Kind::Event, bytes);
    bare::<IdempotencyRecord>(Kind::Idempotency, bytes);
    bare::<Revision>(Kind::Meta, bytes);
}

fn row<T>(kind: Kind, bytes: &[u8])
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    bare::<(Revision, T)>(kind, bytes);
}

fn bare<T>(kind: Kind, bytes: &[u8])
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let sealed = seal(kind, kind.schema(), bytes);
    for row in [bytes, &sealed] {
        if let Ok(value) = decode::<T>(kind, row) {
            let again = decode::<T>(kind, &encode(kind, &value));
            assert_eq!(again.as_ref(), Ok(&value), "what was read can be written");
        }
    }
}

/// What an operator writes: a file, `.env` and the environment. Every fault is told in a sentence.
pub fn configuration(bytes: &[u8], folder: &Path) {
    let text = String::from_utf8_lossy(bytes);
    fs::write(folder.join("vman.toml"), bytes).expect("a folder of the test's own");
    fs::write(folder.join(".env"), bytes).expect("a folder of the test's own");
    // The bytes as each value in turn, too.
    let which = bytes
        .first()
        .map_or(0, |byte| usize::from(*byte) % KEYS.len());
    let variable = (KEYS[which].variable(), text.into_owned());
    let environment = Environment {
        variables: [("HOME".to_owned(), "/root".to_owned()), variable].into(),
        working_directory: folder.to_owned(),
        configuration_directory: folder.to_owned(),
        uid: 0,
        processors: 4,
    };
    if let Err(error) = Config::load(&Overrides::default(), &environment) {
        for fault in &error.faults {
            let told = fault.to_string();
            assert!(!told.is_empty() && !told.contains('\n'), "{told:?}");
        }
    }
}
