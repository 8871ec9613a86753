//! Ports of the host on which a QEMU itself listens for its guest, in user mode.
//!
//! Owns: making them exactly those that are wanted. QEMU has no QMP commands for this; what the
//! human monitor is told here is made of numbers and words of ours.

use std::collections::BTreeSet;

use serde_json::json;
use vman_actors::ports::{DiskError, PortForward};
use vman_model::Protocol;

use super::cmdline::nic_id;
use super::devices::{Monitor, unknown};

/// Makes the card in `slot` forward these ports and no others. Those that can be had are had also
/// where others cannot.
pub(super) async fn settle(
    monitor: &Monitor,
    slot: u8,
    wanted: &BTreeSet<PortForward>,
) -> Result<(), DiskError> {
    let id = nic_id(slot);
    let listing = human(monitor, "info usernet").await?;
    let there = forwards(&listing, &id);
    for port in there.difference(wanted) {
        let (protocol, host) = (port.protocol.as_str(), port.host_port);
        human(monitor, &format!("hostfwd_remove {id} {protocol}::{host}")).await?;
    }
    let mut refused = Vec::new();
    for port in wanted.difference(&there) {
        let (protocol, host, guest) = (port.protocol.as_str(), port.host_port, port.guest_port);
        let line = format!("hostfwd_add {id} {protocol}::{host}-:{guest}");
        // It says nothing where it has succeeded.
        if !human(monitor, &line).await?.trim().is_empty() {
            refused.push(format!("{protocol} port {host}"));
        }
    }
    if refused.is_empty() {
        return Ok(());
    }
    Err(DiskError::Refused(format!(
        "{} cannot be listened on: another program has it, or it is below 1024 and QEMU may not",
        refused.join(", ")
    )))
}

async fn human(monitor: &Monitor, line: &str) -> Result<String, DiskError> {
    let command = json!({"command-line": line});
    let said = monitor
        .client
        .execute("human-monitor-command", Some(command), monitor.within)
        .await;
    Ok(said
        .map_err(unknown)?
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

/// The forwarded ports of one card in what `info usernet` says (7.2).
fn forwards(listing: &str, id: &str) -> BTreeSet<PortForward> {
    let mut found = BTreeSet::new();
    let mut ours = false;
    for line in listing.lines() {
        if line.starts_with("Hub ") || line.starts_with("VLAN ") {
            ours = line.contains(&format!("({id})"));
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let [kind, _, _, host, _, guest, ..] = words.as_slice() else {
            continue;
        };
        let protocol = match *kind {
            "TCP[HOST_FORWARD]" => Protocol::Tcp,
            "UDP[HOST_FORWARD]" => Protocol::Udp,
            _ => continue,
        };
        if let (true, Ok(host_port), Ok(guest_port)) = (ours, host.parse(), guest.parse()) {
            found.insert(PortForward {
                protocol,
                host_port,
                guest_port,
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forwards_of_one_card_are_read_from_what_qemu_lists() {
        let listing = "Hub -1 (nic1):\r\n  \
            Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n  \
            TCP[HOST_FORWARD]  14               *  8080       10.0.2.15    80     0     0\r\n  \
            TCP[ESTABLISHED]   15       127.0.0.1  8080       10.0.2.15    80     0     0\r\n  \
            UDP[HOST_FORWARD]  16               *  5353       10.0.2.15    53     0     0\r\n\
            Hub -1 (nic2):\r\n  \
            TCP[HOST_FORWARD]  17               *  9090       10.0.2.15    90     0     0\r\n";
        let port = |protocol, host_port, guest_port| PortForward {
            protocol,
            host_port,
            guest_port,
        };
        let first = [port(Protocol::Tcp, 8080, 80), port(Protocol::Udp, 5353, 53)];
        assert_eq!(forwards(listing, "nic1"), first.into());
        assert_eq!(
            forwards(listing, "nic2"),
            [port(Protocol::Tcp, 9090, 90)].into()
        );
        assert!(forwards("", "nic1").is_empty());
    }
}
