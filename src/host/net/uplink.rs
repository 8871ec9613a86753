//! The uplink: the interface of the host that carries a network's VLAN tagged to other hosts.
//!
//! Owns: that it is attached and carries tags only, and the file `uplink` in the network's folder,
//! which names the one that was attached: a daemon whose configuration says another, or none, takes
//! that one off the bridge. Must not: put ports into VLANs (`vlan.rs` does).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;

use rtnetlink::LinkUnspec;
use vman_model::NetworkPlan;

use super::bridge::Inner;
use super::links::{Link, LinkError};
use super::vlan;

impl Inner {
    /// The uplink is attached and carries the VLAN tagged, and all our ports are in it. Answers why
    /// the uplink does not.
    pub(super) async fn vlan(
        &self,
        bridge: &Link,
        plan: &NetworkPlan,
        repairs: &mut Vec<String>,
    ) -> Result<Option<String>, String> {
        let told = |error: LinkError| error.to_string();
        let name = &bridge.name;
        let uplink = self.settings.uplink.as_deref();
        if let Some(why) = self.vlan_missing.get().and_then(Option::as_ref) {
            return Ok(uplink.map(|uplink| format!("the uplink {uplink} is not attached: {why}")));
        }
        let Some(vlan) = self.settings.vlan_id else {
            return Ok(None);
        };
        let links = self.links.all().await.map_err(told)?;
        let uplink = uplink.map(|name| {
            let link = usable_uplink(&links, bridge, name)?;
            self.note_uplink(name).map(|()| link)
        });
        let (uplink, trouble) = match uplink.transpose() {
            Ok(uplink) => (uplink, None),
            Err(why) => (None, Some(why)),
        };
        let mut made = self.made.lock().await;
        if let Some(uplink) = uplink.filter(|uplink| uplink.master.is_none() || !uplink.up) {
            let attached = vlan::attach_uplink(&self.links, bridge, uplink, vlan).await;
            attached.map_err(told)?;
            if made.uplink == Some(uplink.index) {
                repairs.push(format!(
                    "the uplink {} had been detached or set down: it is attached to the bridge {name} again",
                    uplink.name
                ));
            }
        }
        made.uplink = uplink.map(|uplink| uplink.index);
        let ours: BTreeSet<_> = plan.ports.iter().map(|port| port.tap.as_str()).collect();
        let taps = links
            .iter()
            .filter(|link| link.master == Some(bridge.index) && ours.contains(link.name.as_str()));
        let taps: Vec<_> = taps.map(|link| link.index).collect();
        let strayed = vlan::members(&self.links, bridge, &taps, made.uplink, vlan).await;
        let strayed = strayed.map_err(told)?;
        if std::mem::replace(&mut made.in_vlan, true) && strayed > 0 {
            repairs.push(format!(
                "{strayed} ports of the bridge {name} had left VLAN {vlan} or were in another: they are in it again"
            ));
        }
        Ok(trouble)
    }

    fn uplink_note(&self) -> PathBuf {
        self.settings.folder.join("uplink")
    }

    /// From here on the interface is known as one that we attach.
    fn note_uplink(&self, name: &str) -> Result<(), String> {
        let path = self.uplink_note();
        if fs::read_to_string(&path).is_ok_and(|noted| noted == name) {
            return Ok(());
        }
        let written =
            fs::create_dir_all(&self.settings.folder).and_then(|()| fs::write(&path, name));
        written.map_err(|error| {
            let path = path.display();
            format!("the uplink {name} is not attached: {path} cannot be written: {error}")
        })
    }

    /// The uplink of a former configuration is no port of the bridge any more. Before the bridge
    /// follows the new one: else what guests send would leave by it without a tag.
    pub(super) async fn release_former_uplink(&self) -> Result<(), String> {
        let path = self.uplink_note();
        let former = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => {
                other.map_err(|error| format!("{} cannot be read: {error}", path.display()))?
            }
        };
        if self.settings.uplink.as_deref() == Some(&*former) {
            return Ok(());
        }
        let links = self.links.all().await.map_err(|error| error.to_string())?;
        let ours = |link: &&Link| {
            link.name == self.settings.bridge && link.is_bridge && link.alias == self.alias()
        };
        let bridge = links.iter().find(ours).map(|bridge| bridge.index);
        let held = |link: &&Link| link.name == former && link.master == bridge;
        if let Some(port) = links.iter().find(held).filter(|_| bridge.is_some()) {
            let off = LinkUnspec::new_with_index(port.index).nocontroller();
            let what = format!("take the former uplink {former} off the bridge");
            let set = self.links.set(off.build(), what).await;
            set.map_err(|error| error.to_string())?;
            let bridge = self.settings.bridge.as_str();
            tracing::info!(uplink = former, bridge, "the former uplink was taken off");
        }
        fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// The uplink, if it is there and nobody else's port.
fn usable_uplink<'a>(links: &'a [Link], bridge: &Link, name: &str) -> Result<&'a Link, String> {
    let found = links.iter().find(|link| link.name == name);
    let link = found.ok_or_else(|| {
        format!("the uplink {name} is not there: the VLAN does not leave this host")
    })?;
    let held = link.master.filter(|master| *master != bridge.index);
    match held.and_then(|master| links.iter().find(|link| link.index == master)) {
        Some(holder) => Err(format!(
            "the uplink {name} is a port of {} and is left there: the VLAN does not leave this host",
            holder.name
        )),
        None => Ok(link),
    }
}
