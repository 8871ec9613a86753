//! Network cards of a VM: which there are, and what is under way with them.
//!
//! The first card belongs to a VM for life. Others come and go, also while it
//! runs; each keeps its number, its slot, its MAC address and its lease until
//! it goes. What happens to them: [`crate::vm::step`].

use super::lease::LeaseRecord;
use crate::{ids::NetworkName, vm::NetworkKind};
use serde::{Deserialize, Serialize};

/// The first card's slot on the pcie-root-ports (see [`crate::disk`]).
pub const FIRST_NIC_SLOT: u8 = 1;
/// The most cards of one VM: as many slots are kept for them.
pub const MAX_NICS: u8 = 3;

/// The slot of a card.
pub fn nic_slot(nic: u8) -> u8 {
    FIRST_NIC_SLOT + nic
}

/// The name of a card in the API: `nic0` is the first.
pub fn nic_id(nic: u8) -> String {
    format!("nic{nic}")
}

/// Whether a card's cable is plugged in, as its guest sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkState {
    /// Frames pass.
    #[default]
    Up,
    /// None do, and the guest knows.
    Down,
}

impl LinkState {
    /// The word the API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            LinkState::Up => "up",
            LinkState::Down => "down",
        }
    }
}

/// What is under way with a card. The operation it is for names the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NicState {
    /// Nothing: a living QEMU has it.
    Attached,
    /// It is being plugged into the living QEMU.
    Plugging,
    /// The guest was asked to let go of it.
    Unplugging,
}

/// A card beyond a VM's first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Its number, from 1.
    pub number: u8,
    /// Its MAC address, kept as long as there is the card.
    pub mac: [u8; 6],
    /// Its cable.
    pub link: LinkState,
    /// What is under way with it.
    pub state: NicState,
    /// The network it is connected to.
    pub network: NetworkName,
}

/// A card that a VM is to have, with all that had to be chosen for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewNic {
    /// Its number.
    pub number: u8,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its cable.
    pub link: LinkState,
    /// The network it is connected to.
    pub network: NetworkName,
    /// How it is connected if the VM runs.
    pub kind: NetworkKind,
    /// Its address, where addresses are VMAN's to give.
    pub lease: Option<LeaseRecord>,
}
