//! Whatever bytes are uploaded, the inspector answers: no panic, no endless loop, no memory beyond
//! the tables' limits, and what it accepts has a size within bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::io::Cursor;
use vman::host::inspect::{inspect, virtual_size};
use vman_model::ImageKind;

/// Larger than what the inspector lets through.
const MAX_VIRTUAL_SIZE: u64 = 64 << 40;

fuzz_target!(|bytes: &[u8]| {
    for kind in [ImageKind::Disk, ImageKind::Kernel, ImageKind::Initrd] {
        let mut file = Cursor::new(bytes);
        if let Ok(seen) = inspect(kind, &mut file) {
            assert!(seen.virtual_size > 0 && seen.virtual_size <= MAX_VIRTUAL_SIZE);
            let size = virtual_size(seen.format, &mut file).expect("what was let in can be read");
            assert_eq!(size, seen.virtual_size);
        }
    }
});
