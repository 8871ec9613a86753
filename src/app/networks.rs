//! The VMs' networks, of what is configured and permitted.
//!
//! Must not: decide what a network may be (the configuration has). Look next: `host::net`.

use super::AppError;
use crate::{
    config::{Config, Ipv6Choice, NetworkMode, NetworkSettings},
    host::{
        dirs::StorageDirs,
        installation,
        net::{BridgeNetworks, BridgeSettings, UserNetwork, tap::Taps},
    },
};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};
use vman_actors::ports::{Ipv6, Network};
use vman_model::{NetworkName, Pool, network::Prefix6, vm::NetworkKind};

/// The network as it is configured and permitted. Only `auto` falls back. The installation is told by
/// `fresh` from now on, where it was not told before.
pub(super) async fn open(
    config: &Config,
    dirs: &StorageDirs,
    taps: Arc<Taps>,
    fresh: [u8; 16],
) -> Result<Arc<dyn Network>, AppError> {
    let mode = config.network.mode;
    let user = |kind, reason| Ok(Arc::new(UserNetwork::new(kind, reason)) as Arc<dyn Network>);
    match mode {
        NetworkMode::None => return user(NetworkKind::None, None),
        NetworkMode::User => return user(NetworkKind::User, None),
        NetworkMode::Auto | NetworkMode::Bridge => {}
    }
    let settings = bridge_settings(config, dirs, fresh);
    match BridgeNetworks::open(settings, taps).await {
        Ok(networks) => {
            for bridge in networks.facts().bridges {
                if let (Some(vlan_id), Some(why)) = (bridge.vlan_id, bridge.vlan_missing) {
                    tracing::warn!(vlan_id, "{why}");
                }
                if let Some(why) = bridge.ipv6.missing() {
                    tracing::warn!(network = bridge.network.as_str(), "{why}");
                }
            }
            if let Some(why) = networks.facts().vhost_missing {
                tracing::info!("{why}");
            }
            Ok(Arc::new(networks))
        }
        Err(why) if mode == NetworkMode::Auto => {
            tracing::warn!(reason = why, "no bridge: VMs get QEMU's user-mode network");
            user(NetworkKind::User, Some(why))
        }
        Err(why) => Err(AppError::Network(why)),
    }
}

/// Every network, the default one first.
fn bridge_settings(config: &Config, dirs: &StorageDirs, fresh: [u8; 16]) -> Vec<BridgeSettings> {
    let found = |program: &PathBuf| program.is_file().then(|| program.clone());
    let folder = |name: &NetworkName| {
        if *name == NetworkName::default() {
            "network".to_owned()
        } else {
            format!("network-{name}")
        }
    };
    let settings = |network: &NetworkSettings| BridgeSettings {
        network: network.name.clone(),
        bridge: network.bridge_name.clone(),
        pool: Pool::new(
            network.subnet.network(),
            network.subnet.prefix(),
            network.gateway,
        )
        .expect("the configuration has checked subnet and gateway"),
        ipv6: ipv6(network, dirs, fresh),
        dns: network.dns.clone(),
        vlan_id: network.vlan_id,
        uplink: network.uplink.clone(),
        isolated: network.isolated,
        nat: network.nat,
        mtu: network.mtu,
        folder: config.storage.runtime.join(folder(&network.name)),
        nft: found(&config.network.nft),
        dnsmasq: found(&config.network.dnsmasq),
    };
    let mut all: Vec<_> = config.network.networks.iter().map(settings).collect();
    keep_apart(all.iter_mut().map(|one| (&one.network, &mut one.ipv6)));
    all
}

/// One that is said may be what follows for another: the earlier network has it.
fn keep_apart<'a>(networks: impl Iterator<Item = (&'a NetworkName, &'a mut Ipv6)>) {
    let mut taken = BTreeMap::new();
    for (network, ipv6) in networks {
        let Some(prefix) = ipv6.prefix() else {
            continue;
        };
        if let Some(other) = taken.get(&prefix) {
            *ipv6 = Ipv6::Missing(format!(
                "guests of the network {network} have no IPv6: {prefix} is the network {other}'s; \
                 say another subnet6"
            ));
        } else {
            taken.insert(prefix, network);
        }
    }
}

/// A network whose prefix cannot be known has no IPv6 rather than another prefix.
fn ipv6(network: &NetworkSettings, dirs: &StorageDirs, fresh: [u8; 16]) -> Ipv6 {
    match network.ipv6 {
        Ipv6Choice::Off => Ipv6::Off,
        Ipv6Choice::Said(prefix) => Ipv6::On(prefix),
        Ipv6Choice::Derived => match installation::id(dirs, fresh) {
            Ok(id) => Ipv6::On(Prefix6::of(id, &network.name)),
            Err(why) => Ipv6::Missing(format!("guests have no IPv6: {why}; or say a subnet6")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_networks_never_have_one_prefix() {
        let name = |text: &str| NetworkName::parse(text).unwrap();
        let derived = |network: &NetworkName| Prefix6::of([7; 16], network);
        let (default, lab) = (NetworkName::default(), name("lab"));
        let mut networks = [
            (default.clone(), Ipv6::On(derived(&default))),
            (lab.clone(), Ipv6::On(derived(&lab))),
            (name("copied"), Ipv6::On(derived(&default))),
            (name("off"), Ipv6::Off),
        ];
        let before = networks.clone();
        keep_apart(networks.iter_mut().map(|(name, ipv6)| (&*name, ipv6)));
        assert_eq!(networks[..2], before[..2]);
        assert_eq!(networks[3], before[3]);
        let why = networks[2].1.missing().unwrap();
        assert!(why.contains("is the network default's"), "{why}");
    }
}
