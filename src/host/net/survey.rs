//! What is on the host of one network, told from one dump of its links.
//!
//! Must not: change anything, or decide what of it should not be there (the observer does).

use vman_actors::ports::{ForeignLink, NetworkSurvey, SeenBridge, SeenTap};
use vman_model::TapName;

use super::links::Link;

/// What `links` say of the bridge of this name and mark.
pub(super) fn survey(
    links: &[Link],
    bridge: &str,
    uplink: Option<&str>,
    mark: &str,
) -> NetworkSurvey {
    let found = links.iter().find(|link| link.name == bridge);
    let index = found.map(|link| link.index);
    let (mut taps, mut foreign) = (Vec::new(), Vec::new());
    for link in links {
        let on_it = link.master.is_some() && link.master == index;
        if link.is_tap && TapName::is_one(&link.name) {
            taps.push(SeenTap {
                name: link.name.clone(),
                attached: on_it && link.up,
            });
        } else if on_it && uplink != Some(&link.name) {
            foreign.push(ForeignLink {
                name: link.name.clone(),
                bridge: bridge.to_owned(),
            });
        }
    }
    NetworkSurvey {
        bridges: found
            .map(|link| SeenBridge {
                name: link.name.clone(),
                ours: link.is_bridge && link.alias == mark,
                up: link.up,
            })
            .into_iter()
            .collect(),
        taps,
        foreign,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vman_actors::ports::Traffic;
    use vman_model::VmId;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            alias: String::new(),
            is_bridge: false,
            is_tap: false,
            up: true,
            mtu: 1500,
            master: None,
            vlan: None,
            traffic: Traffic::default(),
        }
    }

    #[test]
    fn ours_is_told_from_others_by_mark_kind_and_name() {
        let tap = TapName::of(&VmId::parse("web").unwrap(), 0);
        let bridge = Link {
            is_bridge: true,
            alias: "mark".to_owned(),
            ..link(2, "br-x")
        };
        let on_bridge = |name: &str, is_tap| Link {
            is_tap,
            master: Some(2),
            ..link(3, name)
        };
        let links = [
            bridge,
            on_bridge(tap.as_str(), true),
            on_bridge("veth9", false),
            // One of another program that happens to be on no bridge of ours.
            link(5, "tap0"),
            Link {
                is_tap: true,
                ..link(6, "v0other-abcdefg")
            },
        ];
        let seen = survey(&links, "br-x", None, "mark");
        assert!(seen.bridges[0].ours);
        assert_eq!(seen.foreign[0].name, "veth9");
        assert_eq!((seen.foreign.len(), &*seen.foreign[0].bridge), (1, "br-x"));
        let taps: Vec<_> = seen.taps.iter().map(|t| (&*t.name, t.attached)).collect();
        assert_eq!(taps, [(tap.as_str(), true), ("v0other-abcdefg", false)]);
        assert!(!survey(&links, "br-x", None, "another").bridges[0].ours);
        assert!(survey(&links, "br-y", None, "mark").bridges.is_empty());
        let seen = survey(&links, "br-x", Some("veth9"), "mark");
        assert!(seen.foreign.is_empty(), "the uplink is where it belongs");
    }
}
