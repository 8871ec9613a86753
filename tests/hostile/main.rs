//! Strangers' bytes, mutated, into every way in: a short round of what `make fuzz` does for long,
//! without a fuzzer. A failure tells the number that makes the same bytes again.
#![allow(clippy::unwrap_used, missing_docs, dead_code, unreachable_pub)]

#[path = "../../fuzz/bodies.rs"]
mod bodies;
#[path = "../../fuzz/entries.rs"]
mod entries;
mod mutate;
#[path = "../api/support.rs"]
mod support;

use bodies::Bodies;
use mutate::Mutator;
use std::panic::{AssertUnwindSafe, catch_unwind};
use vman_actors::store::codec::{Kind, encode};
use vman_model::Revision;

fn seeds(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Feeds so many inputs, and tells which one was too much.
fn rounds(seeds: &[Vec<u8>], count: u64, mut entry: impl FnMut(&[u8])) {
    for number in 0..count {
        let bytes = Mutator::new(seeds, number).next();
        let survived = catch_unwind(AssertUnwindSafe(|| entry(&bytes)));
        assert!(
            survived.is_ok(),
            "input {number}: {:?}",
            bytes.escape_ascii().to_string()
        );
    }
}

fn qmp_seeds() -> Vec<Vec<u8>> {
    seeds(&[
        "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, \"package\": \"Debian\"}, \"capabilities\": [\"oob\"]}}\n",
        "{\"return\": {\"running\": true, \"singlestep\": false, \"status\": \"running\"}, \"id\": 7}\n",
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"Device 'x' not found\"}, \"id\": \"a\"}\n",
        "{\"timestamp\": {\"seconds\": 1700000000, \"microseconds\": 1}, \"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-shutdown\"}}\n",
        "{\"event\": \"BLOCK_IO_ERROR\", \"data\": {\"device\": \"\", \"node-name\": \"disk-a\", \"nospace\": true}}\n{\"return\": []}\n",
        "\n\r\n \n",
    ])
}

#[test]
fn no_line_of_a_qemu_makes_the_decoder_panic() {
    rounds(&qmp_seeds(), 30_000, |bytes| {
        entries::qmp(bytes);
    });
}

#[test]
#[ignore = "takes minutes: part of the long tests"]
fn ten_million_mutated_qmp_lines_make_no_panic() {
    let (seeds, began) = (qmp_seeds(), std::time::Instant::now());
    let (mut lines, mut number) = (0_usize, 0);
    while lines < 10_000_000 {
        let mut bytes = Mutator::new(&seeds, number).next();
        bytes.push(b'\n');
        lines += entries::qmp(&bytes);
        number += 1;
    }
    let seconds = began.elapsed().as_secs();
    println!("{lines} lines told from {number} mutated inputs in {seconds} s, no panic");
}

#[test]
fn no_image_makes_the_inspector_panic() {
    let mut qcow2 = b"QFI\xfb\0\0\0\x03".to_vec();
    qcow2.extend([0; 16]);
    qcow2.extend(b"\0\0\0\x10\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\0\x01");
    qcow2.resize(1_024, 0);
    let mut kernel = vec![0; 1_024];
    kernel[510..512].copy_from_slice(b"\x55\xaa");
    kernel[514..518].copy_from_slice(b"HdrS");
    let all = [qcow2, kernel, vec![0; 4_096], b"KDMV\x01\0\0\0".to_vec()];
    rounds(&all, 20_000, entries::image);
}

#[test]
fn no_row_makes_the_store_panic() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let inventory = runtime.block_on(async {
        let api = support::Api::start().await;
        api.small_template().await;
        api.small_vm("a").await;
        api.act("a", "start").await.expect(200);
        api.tree.handles.store.inventory()
    });
    let mut all = vec![encode(Kind::Meta, &Revision(1_234_567))];
    for vm in inventory.vms.values() {
        all.push(encode(Kind::Vm, &(vm.revision, &vm.value)));
    }
    for disk in inventory.disks.values() {
        all.push(encode(Kind::Disk, &(disk.revision, &disk.value)));
    }
    for template in inventory.templates.values() {
        all.push(encode(
            Kind::Template,
            &(template.revision, &template.value),
        ));
    }
    for operation in inventory.operations.values() {
        all.push(encode(
            Kind::Operation,
            &(operation.revision, &operation.value),
        ));
    }
    for event in &inventory.recent_events {
        all.push(encode(Kind::Event, event));
    }
    // Also without the envelope, which they get again under a right checksum.
    const ENVELOPE: usize = 13;
    let bare: Vec<_> = all.iter().map(|row| row[ENVELOPE..].to_vec()).collect();
    all.extend(bare);
    rounds(&all, 20_000, entries::rows);
}

#[test]
fn no_configuration_makes_the_daemon_panic() {
    let folder = tempfile::tempdir().unwrap();
    let all = seeds(&[
        include_str!("../../contrib/vman.toml"),
        include_str!("../../contrib/.env.example"),
        "listen = \"127.0.0.1:8000\"\nsubnet = \"10.0.0.0/8\"\ndns = [\"1.1.1.1\"]\n",
        "VMAN_SUBNET=10.0.0.0/8\nVMAN_LISTEN=\"[::1]:80\"\nexport VMAN_DNS='8.8.8.8'\n",
        "10.1.2.3/24",
        "9999999999999999999999",
        "/a/b",
    ]);
    rounds(&all, 1_000, |bytes| {
        entries::configuration(bytes, folder.path());
    });
}

#[test]
fn no_body_makes_the_daemon_fail() {
    let bodies = Bodies::new();
    let texts = [
        r#"{"name": "t", "cpu_count": 1, "ram_mib": 64, "labels": {"a": "b"}, "firmware": "uefi"}"#,
        r#"{"template_name": "small", "name": "v", "address": "10.0.0.9", "restart": {"policy": "always", "window_s": 1}}"#,
        r#"{"boot": {"kernel": "linux", "cmdline": "x"}, "cpu_weight": 7, "disk_gib": 2}"#,
        r#"{"force": true, "timeout_s": 0.5}"#,
        r#"{"name": "e", "size_mib": 12, "mount_point": "/dev/vdc", "format": "qcow2", "iops": 5}"#,
        r#"{"vm_id": "a", "host_port": 80, "protocol": "udp", "guest_port": 65535}"#,
        r#"{"name": "k", "scope": "admin", "expires_in_s": 60}"#,
    ];
    let mut all = Vec::new();
    for target in 0..Bodies::targets() {
        for text in texts {
            let mut seed = vec![u8::try_from(target).unwrap()];
            seed.extend_from_slice(text.as_bytes());
            all.push(seed);
        }
    }
    rounds(&all, 3_000, |bytes| bodies.send(bytes));
}
