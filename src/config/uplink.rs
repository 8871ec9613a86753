//! The interface that carries a network's VLAN to other hosts.

use super::{
    is_name,
    read::{Reader, quoted},
};

/// None where nothing is said. `bridge` is the name of the network's own bridge.
pub(super) fn read(reader: &mut Reader, key: &str, bridge: &str) -> Option<String> {
    let parse = |text: &str| match text {
        "" => Ok(None),
        text if text == bridge => Err(format!(
            "must be another interface than the bridge; it is {}",
            quoted(text)
        )),
        text if text.len() <= 15 && is_name(text) => Ok(Some(text.to_owned())),
        text => Err(format!(
            "must be the name of an interface, at most 15 letters, digits, `.`, `_`, `-`; it is {}",
            quoted(text)
        )),
    };
    reader.value(
        key,
        |_| None,
        parse,
        |uplink| uplink.clone().unwrap_or_default(),
    )
}
