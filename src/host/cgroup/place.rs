//! Where on this host a VM's control group belongs, by what `/proc/self` says. Pure.
//!
//! Version 1: below the daemon's own group in each hierarchy, which may hold processes beside
//! groups. Version 2: beside the daemon's own group, because a group that gives controllers to
//! groups below it may hold no process itself (cgroups(7), "no internal processes").

use std::path::{Path, PathBuf};

/// What a control group bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Controller {
    Memory,
    Cpu,
    Pids,
    Io,
}

impl Controller {
    pub(super) const ALL: [Self; 4] = [Self::Memory, Self::Cpu, Self::Pids, Self::Io];

    /// The kernel's name.
    pub(super) fn name(self, version: Version) -> &'static str {
        match (self, version) {
            (Self::Memory, _) => "memory",
            (Self::Cpu, _) => "cpu",
            (Self::Pids, _) => "pids",
            (Self::Io, Version::One) => "blkio",
            (Self::Io, Version::Two) => "io",
        }
    }
}

/// The two interfaces that Linux has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// Where the groups of one or more controllers go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) version: Version,
    /// Their parent's parent: it is there already.
    pub(super) above: PathBuf,
}

/// The hierarchies of this host as seen from here.
#[derive(Debug, Default)]
pub(super) struct Hierarchies {
    /// Mount point, root within the hierarchy, and version 1's controllers.
    mounts: Vec<(PathBuf, PathBuf, Version, Vec<String>)>,
    /// The daemon's own groups: version 1's controllers (none: version 2) and the path.
    own: Vec<(Vec<String>, PathBuf)>,
}

impl Hierarchies {
    /// From `/proc/self/mountinfo` and `/proc/self/cgroup`; lines not understood are left out.
    pub(super) fn parse(mountinfo: &str, cgroup: &str) -> Self {
        Self {
            mounts: mountinfo.lines().filter_map(mount).collect(),
            own: cgroup.lines().filter_map(membership).collect(),
        }
    }

    /// Version 1's place for a controller, if it is there.
    pub(super) fn one(&self, controller: Controller) -> Option<Place> {
        let name = controller.name(Version::One);
        let has = |names: &[String]| names.iter().any(|known| known == name);
        let mounted = |(_, _, version, names): &&(PathBuf, PathBuf, Version, Vec<String>)| {
            *version == Version::One && has(names)
        };
        let (point, root, ..) = self.mounts.iter().find(mounted)?;
        let (_, own) = self.own.iter().find(|(names, _)| has(names))?;
        Some(Place {
            version: Version::One,
            above: point.join(below(own, root)?),
        })
    }

    /// Where version 2 is mounted, if it is.
    pub(super) fn mounted(&self) -> Option<&Path> {
        let two = |(_, _, version, _): &&(PathBuf, PathBuf, Version, Vec<String>)| {
            *version == Version::Two
        };
        self.mounts.iter().find(two).map(|(point, ..)| &**point)
    }

    /// Version 2's place, for whatever controllers it has; or why nothing may be made there.
    pub(super) fn two(&self, under_systemd: bool) -> Result<Option<Place>, String> {
        let mounted = |(_, _, version, _): &&(PathBuf, PathBuf, Version, Vec<String>)| {
            *version == Version::Two
        };
        let Some((point, root, ..)) = self.mounts.iter().find(mounted) else {
            return Ok(None);
        };
        let Some((_, own)) = self.own.iter().find(|(names, _)| names.is_empty()) else {
            return Ok(None);
        };
        let name = own.file_name().and_then(|name| name.to_str());
        let is_unit = name.is_some_and(|name| {
            let ends = [".service", ".scope", ".slice"];
            ends.iter().any(|end| name.ends_with(end))
        });
        if under_systemd && is_unit {
            return Err(
                "systemd has given the daemon no group of its own to make others beside: that is \
                 DelegateSubgroup=, since systemd 254"
                    .to_owned(),
            );
        }
        let beside = own.parent().unwrap_or(own);
        let above = below(beside, root).map(|rest| point.join(rest));
        Ok(above.map(|above| Place {
            version: Version::Two,
            above,
        }))
    }
}

impl Hierarchies {
    /// The daemon's own group of version 2 and all above it that are seen from here, up to the
    /// mount.
    pub(super) fn own_two(&self) -> Vec<PathBuf> {
        let two = self
            .mounts
            .iter()
            .find(|(_, _, version, _)| *version == Version::Two);
        let own = self.own.iter().find(|(names, _)| names.is_empty());
        let (Some((point, root, ..)), Some((_, own))) = (two, own) else {
            return Vec::new();
        };
        let groups = own.ancestors().filter_map(|group| below(group, root));
        groups.map(|group| point.join(group)).collect()
    }
}

/// `path` of the hierarchy as seen through a mount of its part `root`.
fn below(path: &Path, root: &Path) -> Option<PathBuf> {
    path.strip_prefix(root).ok().map(Path::to_owned)
}

/// `36 35 98:0 ROOT POINT options… - TYPE source superoptions` (proc(5))
fn mount(line: &str) -> Option<(PathBuf, PathBuf, Version, Vec<String>)> {
    let (place, kind) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, point) = (place.next()?, place.next()?);
    let mut kind = kind.split(' ');
    let version = match kind.next()? {
        "cgroup" => Version::One,
        "cgroup2" => Version::Two,
        _ => return None,
    };
    let names = kind.nth(1)?.split(',').map(str::to_owned).collect();
    Some((point.into(), root.into(), version, names))
}

/// `4:memory:/path`, `0::/path` (cgroups(7))
fn membership(line: &str) -> Option<(Vec<String>, PathBuf)> {
    let mut parts = line.splitn(3, ':').skip(1);
    let names = parts.next()?.split(',').filter(|name| !name.is_empty());
    Some((names.map(str::to_owned).collect(), parts.next()?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "\
24 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
25 24 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
26 24 0:24 /box /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
27 24 0:25 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio
28 24 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
    const ONE_OWN: &str = "4:memory:/box/daemon\n3:cpu,cpuacct:/\n2:blkio:/\n0::/";
    const TWO: &str = "30 24 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate";

    fn one(controller: Controller) -> Option<PathBuf> {
        let found = Hierarchies::parse(ONE, ONE_OWN).one(controller);
        found.map(|place| place.above)
    }

    #[test]
    fn in_version_1_groups_go_below_the_daemons_own_as_it_is_seen_from_here() {
        assert_eq!(
            one(Controller::Memory),
            Some("/sys/fs/cgroup/memory/daemon".into())
        );
        assert_eq!(
            one(Controller::Cpu),
            Some("/sys/fs/cgroup/cpu,cpuacct/".into())
        );
        assert_eq!(one(Controller::Io), Some("/sys/fs/cgroup/blkio/".into()));
        assert_eq!(one(Controller::Pids), None);
    }

    #[test]
    fn in_version_2_groups_go_beside_the_daemons_own() {
        let two = |own: &str, systemd| {
            let found = Hierarchies::parse(TWO, own).two(systemd);
            found.map(|place| place.map(|place| place.above))
        };
        let root = Ok(Some("/sys/fs/cgroup/".into()));
        assert_eq!(two("0::/", false), root);
        assert_eq!(two("0::/openrc.vman", false), root);
        assert_eq!(
            two("0::/system.slice/vman.service/daemon", true),
            Ok(Some("/sys/fs/cgroup/system.slice/vman.service".into()))
        );
    }

    #[test]
    fn systemds_own_groups_are_left_to_it() {
        let found = Hierarchies::parse(TWO, "0::/system.slice/vman.service");
        assert!(found.two(true).unwrap_err().contains("DelegateSubgroup"));
    }

    #[test]
    fn what_is_not_understood_is_nowhere() {
        for (mounts, own) in [("", ""), ("x - cgroup", ":"), (TWO, "1:cpu:/"), (ONE, "0")] {
            let found = Hierarchies::parse(mounts, own);
            assert_eq!(found.two(false), Ok(None));
            assert_eq!(found.one(Controller::Cpu), None);
        }
    }
}
