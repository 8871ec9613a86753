//! Images that would have VMAN or QEMU read what is not theirs. Each is refused, or harmless.

use crate::support::{
    can_run,
    daemon::{Daemon, PATIENCE},
    http::request,
    wait_for,
};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::symlink, process::Command};

fn qemu_img(words: &[&str]) {
    let output = Command::new("qemu-img").args(words).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// A sound qcow2 of 8 MiB, made with these further words.
fn qcow2(daemon: &Daemon, words: &[&str]) -> Vec<u8> {
    let path = daemon.folder().join("evil.qcow2");
    let path = path.to_str().unwrap();
    let mut all = vec!["create", "-q", "-f", "qcow2"];
    all.extend(words);
    all.extend([path, "8M"]);
    qemu_img(&all);
    fs::read(path).unwrap()
}

fn put(daemon: &Daemon, name: &str, bytes: &[u8]) -> crate::support::http::Answer {
    let target = format!("/images/{name}?kind=disk");
    let headers = [("Content-Type", "application/octet-stream")];
    request(&daemon.socket(), "PUT", &target, &headers, bytes).unwrap()
}

/// Refused with the sentence why, and nothing is left.
fn refused(daemon: &Daemon, bytes: &[u8], says: &str) {
    let problem = put(daemon, "evil", bytes).expect(422);
    assert_eq!(problem["code"], "image_refused");
    assert!(
        problem["detail"].as_str().unwrap().contains(says),
        "{problem}"
    );
    assert_eq!(daemon.get("/images"), json!([]));
    for folder in ["images", "tmp"] {
        let left = fs::read_dir(daemon.storage().join(folder)).unwrap().count();
        assert_eq!(left, 0, "{folder}");
    }
}

#[test]
fn an_image_with_a_backing_file_is_refused() {
    if !can_run("an_image_with_a_backing_file_is_refused") {
        return;
    }
    let daemon = Daemon::start();
    let bytes = qcow2(&daemon, &["-u", "-F", "raw", "-b", "/etc/shadow"]);
    refused(&daemon, &bytes, "backing file");
}

#[test]
fn an_image_with_a_data_file_is_refused() {
    if !can_run("an_image_with_a_data_file_is_refused") {
        return;
    }
    let daemon = Daemon::start();
    let data = daemon.folder().join("data");
    let option = format!("data_file={},data_file_raw=on", data.display());
    let bytes = qcow2(&daemon, &["-o", &option]);
    refused(&daemon, &bytes, "data file");
}

#[test]
fn an_image_that_claims_63_pib_is_refused() {
    if !can_run("an_image_that_claims_63_pib_is_refused") {
        return;
    }
    let daemon = Daemon::start();
    let mut bytes = qcow2(&daemon, &[]);
    bytes[24..32].copy_from_slice(&(63_u64 << 50).to_be_bytes());
    refused(&daemon, &bytes, "impossible");
}

#[test]
fn an_image_with_truncated_tables_is_refused() {
    if !can_run("an_image_with_truncated_tables_is_refused") {
        return;
    }
    let daemon = Daemon::start();
    let bytes = qcow2(&daemon, &[]);
    for cut in [100, 70_000, bytes.len() - 65_536] {
        let problem = put(&daemon, "evil", &bytes[..cut]).expect(422);
        assert_eq!(problem["code"], "image_refused", "{cut}: {problem}");
    }
}

#[test]
fn a_vmdk_with_extents_of_the_host_is_refused_by_name() {
    if !can_run("a_vmdk_with_extents_of_the_host_is_refused_by_name") {
        return;
    }
    let daemon = Daemon::start();
    let descriptor = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
                      createType=\"monolithicFlat\"\nRW 16384 FLAT \"/etc/shadow\" 0\n";
    refused(&daemon, descriptor.as_bytes(), "VMDK");
}

#[test]
fn a_qcow2_inside_a_raw_disk_stays_raw_for_ever() {
    if !can_run("a_qcow2_inside_a_raw_disk_stays_raw_for_ever") {
        return;
    }
    let daemon = Daemon::start();
    let evil = qcow2(&daemon, &["-u", "-F", "raw", "-b", "/etc/passwd"]);
    daemon.tiny_vms(&["a"]);
    daemon
        .post(
            "/disks",
            &json!({"name": "raw", "size_mib": 8, "format": "raw"}),
        )
        .expect(201);
    // What a guest could write to the beginning of its disk.
    let file = daemon.storage().join("disks/raw.raw");
    let mut bytes = fs::read(&file).unwrap();
    bytes[..evil.len()].copy_from_slice(&evil);
    fs::write(&file, bytes).unwrap();
    daemon.act("a", "start");
    daemon
        .post("/disks/raw/attach", &json!({"vm_id": "a"}))
        .expect(200);
    let disk = daemon.get("/disks/raw");
    assert_eq!(
        (&disk["format"], &disk["size_mib"]),
        (&json!("raw"), &json!(8))
    );
    let pid = daemon.pid_of("a");
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets: Vec<_> = open
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .collect();
    assert!(targets.iter().any(|file| file.ends_with("disks/raw.raw")));
    assert!(
        !targets.iter().any(|file| file.ends_with("etc/passwd")),
        "{targets:?}"
    );
}

#[test]
fn a_symbolic_link_in_the_images_folder_is_not_followed() {
    if !can_run("a_symbolic_link_in_the_images_folder_is_not_followed") {
        return;
    }
    let daemon = Daemon::start();
    let secret = daemon.folder().join("secret");
    fs::write(&secret, "untouched").unwrap();
    // In the place of an image, and of a disk that is to be made.
    let image = daemon.storage().join("images/debian");
    symlink(&secret, &image).unwrap();
    put(&daemon, "debian", &vec![0; 1 << 20]).expect(201);
    assert!(!image.is_symlink(), "the upload took the link's place");
    fs::remove_file(&image).unwrap();
    symlink(&secret, &image).unwrap();
    let answer = daemon.post("/disks", &json!({"name": "clone", "image": "debian"}));
    assert!(answer.status >= 400, "{:?}", answer.json());
    symlink(&secret, daemon.storage().join("disks/linked.qcow2")).unwrap();
    let answer = daemon.post("/disks", &json!({"name": "linked", "size_mib": 8}));
    assert!(answer.status >= 400, "{:?}", answer.json());
    assert_eq!(fs::read_to_string(&secret).unwrap(), "untouched");
}

#[test]
fn an_image_with_clones_tells_them_and_is_not_deleted() {
    if !can_run("an_image_with_clones_tells_them_and_is_not_deleted") {
        return;
    }
    let daemon = Daemon::start();
    let bytes = qcow2(&daemon, &[]);
    put(&daemon, "base", &bytes).expect(201);
    for name in ["c1", "c2"] {
        let disk = daemon
            .post("/disks", &json!({"name": name, "image": "base"}))
            .expect(201);
        assert_eq!(
            (&disk["size_mib"], &disk["backing_image"]),
            (&json!(8), &json!("base"))
        );
    }
    assert_eq!(daemon.get("/images/base")["disks"], json!(["c1", "c2"]));
    let problem = daemon.delete("/images/base").expect(409);
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains("disk c1, disk c2"),
        "{problem}"
    );
    daemon.delete("/disks/c1").expect(204);
    daemon.delete("/disks/c2").expect(204);
    assert_eq!(daemon.delete("/images/base").expect(204), Value::Null);
    wait_for("the image's file to be gone", PATIENCE, || {
        (!daemon.storage().join("images/base").exists()).then_some(())
    });
}
