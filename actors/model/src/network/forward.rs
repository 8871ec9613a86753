//! Ports of the host that lead into a guest.

use crate::{
    ids::{ForwardId, VmId},
    time::UnixMs,
};
use serde::{Deserialize, Serialize};

/// What is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The word the API and the kernel use.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

/// A port of the host that leads into a VM's guest. Its id is made of what it
/// takes on the host, so that no port is given twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardRecord {
    /// `tcp-8080`.
    pub id: ForwardId,
    /// Where it leads.
    pub vm_id: VmId,
    /// What is forwarded.
    pub protocol: Protocol,
    /// The port on the host, 1 to 65535.
    pub host_port: u16,
    /// The port in the guest, 1 to 65535.
    pub guest_port: u16,
    /// When it was made.
    pub created_at: UnixMs,
}

impl ForwardRecord {
    /// The id of whatever takes this port of the host.
    pub fn id_of(protocol: Protocol, host_port: u16) -> ForwardId {
        ForwardId::parse(&format!("{}-{host_port}", protocol.as_str()))
            .expect("a word, a hyphen and a number are an id")
    }
}
