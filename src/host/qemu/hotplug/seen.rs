//! Which disks a QEMU has, as it tells itself.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use vman_actors::ports::node_name;
use vman_model::DiskId;
use vman_model::vm::SeenDisk;

use super::disk_of_device;
use crate::host::qemu::cmdline::file_node;
use crate::host::qmp::{Client, QmpError};

/// Which disks of ours a QEMU has, by its devices and its block nodes.
pub(in crate::host::qemu) async fn disks(
    client: &Client,
    within: Duration,
) -> Result<Vec<SeenDisk>, QmpError> {
    let path = json!({"path": "/machine/peripheral"});
    let flat = json!({"flat": true});
    let (devices, nodes) = tokio::join!(
        client.execute("qom-list", Some(path), within),
        client.execute("query-named-block-nodes", Some(flat), within),
    );
    let mut seen: Vec<SeenDisk> = Vec::new();
    let mut note = |disk: DiskId, device: bool| {
        let known = seen.iter().position(|seen| seen.disk == disk);
        let at = known.unwrap_or_else(|| {
            seen.push(SeenDisk {
                disk,
                device: false,
                node: false,
            });
            seen.len() - 1
        });
        if device {
            seen[at].device = true;
        } else {
            seen[at].node = true;
        }
    };
    for entry in devices?.as_array().into_iter().flatten() {
        let name = entry.get("name").and_then(Value::as_str);
        if let Some(disk) = name.and_then(disk_of_device) {
            note(disk, true);
        }
    }
    for node in nodes?.as_array().into_iter().flatten() {
        if let Some((_, disk)) = named_disk(node) {
            note(disk, false);
        }
    }
    Ok(seen)
}

/// The disk of a block node, told by the file it has open.
fn named_disk(node: &Value) -> Option<(&str, DiskId)> {
    let name = node.get("node-name")?.as_str()?;
    if !name.starts_with("disk-") && !name.starts_with("disk_") {
        return None;
    }
    let file = node.get("file").and_then(Value::as_str).map(Path::new);
    let stem = file
        .and_then(Path::file_stem)
        .and_then(|stem| stem.to_str());
    let by_file = stem.and_then(|stem| DiskId::parse(stem).ok());
    let ours = by_file.filter(|disk| node_name(disk) == name);
    let by_name = || DiskId::parse(name.strip_prefix("disk-")?).ok();
    ours.or_else(by_name).map(|disk| (name, disk))
}

/// The disk of a block node that QEMU names.
pub(in crate::host::qemu) async fn disk_of_node(
    client: &Client,
    node: &str,
    within: Duration,
) -> Result<Option<DiskId>, QmpError> {
    let flat = json!({"flat": true});
    let nodes = client
        .execute("query-named-block-nodes", Some(flat), within)
        .await?;
    let nodes = nodes.as_array().into_iter().flatten();
    let found = nodes
        .filter_map(named_disk)
        .find(|(name, _)| *name == node || node == file_node(name));
    Ok(found.map(|(_, disk)| disk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_tells_its_disk_also_where_its_name_is_a_number() {
        let long = DiskId::parse(&"x".repeat(60)).unwrap();
        let name = node_name(&long);
        assert!(name.len() <= 31, "{name}");
        let node = json!({"node-name": name, "file": format!("/s/disks/{long}.qcow2")});
        assert_eq!(named_disk(&node).unwrap().1, long);
        let short = json!({"node-name": "disk-a.b", "file": "json:{}"});
        assert_eq!(named_disk(&short).unwrap().1.as_str(), "a.b");
        assert!(named_disk(&json!({"node-name": "file-a", "file": "/s/a"})).is_none());
    }
}
