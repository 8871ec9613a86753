//! What a commit and an opening cost here. Not a test.

use super::*;
use std::time::Instant;

/// `cargo test --release -- --ignored --nocapture commits_are_measured`
#[test]
#[ignore = "a measurement, not a test"]
fn commits_are_measured() {
    let dir =
        tempfile::tempdir_in(std::env::var("VMAN_MEASURE_IN").unwrap_or("/tmp".into())).unwrap();
    let storage = opened_in(&dir);
    let value = "v".repeat(600);
    for (commits, batch) in [(300_u32, 1_u32), (100, 16), (50, 256)] {
        let mut times = Vec::new();
        for n in 0..commits {
            let rows: Vec<Row> = (0..batch)
                .map(|b| row(&format!("{n}.{b}"), &value))
                .collect();
            let begin = Instant::now();
            storage.commit(&rows).unwrap();
            times.push(begin.elapsed());
        }
        times.sort();
        let (median, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        eprintln!("{batch} rows a commit: median {median:?}, p99 {p99:?}");
    }
    let rows: Vec<Row> = (0..100_000_u32)
        .map(|n| Row {
            table: Table::Events,
            key: n.to_be_bytes().to_vec(),
            value: Some(vec![7; 300]),
        })
        .collect();
    for part in rows.chunks(10_000) {
        storage.commit(part).unwrap();
    }
    eprintln!("{} MiB", storage.size() >> 20);
    let killed = dir.path().join("killed");
    fs::create_dir(&killed).unwrap();
    fs::copy(&storage.path, killed.join("vman.redb")).unwrap();
    let begin = Instant::now();
    drop(storage);
    eprintln!("close: {:?}", begin.elapsed());
    for (what, path) in [("closed", dir.path().to_owned()), ("killed", killed)] {
        let storage = RedbStorage::new(path.join("vman.redb"));
        let begin = Instant::now();
        storage.open().unwrap();
        eprintln!(
            "open of a {what} store with 100,000 events: {:?}",
            begin.elapsed()
        );
    }
    // The floor: one write and one fdatasync.
    let file = File::create(dir.path().join("floor")).unwrap();
    let mut times = Vec::new();
    for n in 0..200 {
        let begin = Instant::now();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], n % 16 * 4096).unwrap();
        file.sync_data().unwrap();
        times.push(begin.elapsed());
    }
    times.sort();
    eprintln!("floor: write 4 KiB + fdatasync: median {:?}", times[100]);
}
