//! What a QEMU is told and when, by one that answers when it is let.

use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use vman_actors::ports::{DiskAction, DiskPlan, device_name, node_name};
use vman_model::{DiskFormat, DiskId, DiskOptions};

use super::{Devices, Hotplug, Owner};
use crate::host::qmp::fake::FakeQmp;

/// The work on the disks of a machine, a disk, and what has to be there meanwhile.
struct Prepared {
    hotplug: Hotplug,
    plan: DiskPlan,
    qemu: FakeQmp,
    _there: (TempDir, Box<dyn Send>),
}

impl Prepared {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let id = DiskId::parse("data").unwrap();
        let path = folder.path().join("data.qcow2");
        std::fs::write(&path, "").unwrap();
        let (connected, qemu) = FakeQmp::connected().await;
        let (client, seen) = watch::channel(Some(connected.client.clone()));
        let (nudges, nudged) = mpsc::channel(1);
        let owner = Owner {
            pid: std::process::id(),
            disks: folder.path().to_owned(),
        };
        let plan = DiskPlan {
            node: node_name(&id),
            device: device_name(&id),
            path,
            format: DiskFormat::Qcow2,
            slot: 1,
            serial: "data".to_owned(),
            options: DiskOptions::default(),
        };
        Self {
            hotplug: Hotplug::new(Devices::new(seen, nudges, Duration::from_secs(20)), owner),
            plan,
            qemu,
            _there: (folder, Box::new((connected, client, nudged))),
        }
    }
}

#[tokio::test]
async fn a_device_is_sent_behind_its_file_before_that_is_known_to_be_open() {
    let mut on = Prepared::new().await;
    let opening = tokio::spawn(on.hotplug.begin(DiskAction::Open(on.plan.clone())));
    let file = on.qemu.hear().await;
    let plugging = tokio::spawn(on.hotplug.begin(DiskAction::Plug {
        plan: on.plan,
        opened: true,
    }));
    let device = on.qemu.hear().await;
    let told = |said: &Value| said["execute"].as_str().unwrap().to_owned();
    assert_eq!([told(&file), told(&device)], ["blockdev-add", "device_add"]);
    for said in [file, device] {
        on.qemu.answer(&said["id"], &json!({})).await;
    }
    assert_eq!(opening.await.unwrap(), Ok(()));
    assert_eq!(plugging.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn other_work_on_a_disk_waits_for_what_is_under_way() {
    let mut on = Prepared::new().await;
    let disk = DiskId::parse("data").unwrap();
    let growing = tokio::spawn(on.hotplug.begin(DiskAction::Resize(disk, 64)));
    let grow = on.qemu.hear().await;
    let opening = tokio::spawn(on.hotplug.begin(DiskAction::Open(on.plan)));
    let early = tokio::time::timeout(Duration::from_millis(100), on.qemu.hear());
    assert!(early.await.is_err(), "it was sent too early");
    on.qemu.answer(&grow["id"], &json!({})).await;
    let open = on.qemu.hear().await;
    assert_eq!(open["execute"], "blockdev-add");
    on.qemu.answer(&open["id"], &json!({})).await;
    assert_eq!(growing.await.unwrap(), Ok(()));
    assert_eq!(opening.await.unwrap(), Ok(()));
}
