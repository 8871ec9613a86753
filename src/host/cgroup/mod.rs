//! A control group for each life of a VM's QEMU, version 1 or 2: how much of the host it may use,
//! and whether the kernel ended it for memory.
//!
//! Owns: finding out by trial what this host lets be bounded, a group's making before the exec, that
//! the process is in it before its guest runs, and its removal after the end. Must not: decide how
//! much (`limits.rs` reckons), or end a process.
//! Look next: `place.rs` (where groups go), `files.rs` (which file says what), `note.rs` (how they
//! are found again and removed), `scope.rs` (where systemd has to make them), `host::jail` (what else
//! confines a QEMU, and who asks for all this).
//!
//! A VM's groups are noted in a file beside its sockets before they are made, so that a daemon that
//! did not make them (another one may be in other groups itself) removes them and reads them. Note
//! and groups go when the VM is released. A group whose note was lost is empty one day: the next
//! daemon sweeps it away.

mod files;
mod limits;
mod note;
mod place;
mod scope;
#[cfg(test)]
mod tests;

pub use limits::Limits;
pub use note::{is_within, oom_kills, remove};

use note::{enter, leave, note_down, noted, swept};
use place::{Controller, Hierarchies, Place, Version};
use scope::Scopes;
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use vman_model::vm::Measure;

/// The folder that all VMs' groups are in.
const FOLDER: &str = "vman";
/// A group that a launch has just made holds no process yet: what is older is nobody's.
const SETTLED: Duration = Duration::from_mins(1);
/// For trials: more than a trial needs.
const TRIAL: Limits = Limits {
    memory_max: 1 << 30,
    cpu_weight: 100,
    cpu_quota_percent: Some(100),
    tasks_max: 64,
    io_weight: Some(100),
};

/// A controller that works here.
#[derive(Clone, Debug)]
struct Usable {
    controller: Controller,
    version: Version,
    /// Groups are made in it; it is there.
    folder: PathBuf,
}

/// What this host lets be bounded.
#[derive(Debug, Default)]
pub struct Cgroups {
    usable: Vec<Usable>,
    /// Where systemd makes the groups, and what it bounds.
    scopes: Option<(Scopes, Vec<Controller>)>,
    /// What lacks and why, each in a few words that begin with the measure's name.
    pub lacking: Vec<(Measure, String)>,
}

/// The word in `confinement` for a controller.
fn measure(controller: Controller) -> Measure {
    match controller {
        Controller::Memory => Measure::CgroupMemory,
        Controller::Cpu => Measure::CgroupCpu,
        Controller::Pids => Measure::CgroupPids,
        Controller::Io => Measure::CgroupIo,
    }
}

/// Whether a measure is a control group's.
pub fn is_of_groups(one: Measure) -> bool {
    Controller::ALL.into_iter().any(|of| measure(of) == one)
}

impl Hierarchies {
    fn of_this_process() -> Self {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        Self::parse(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"))
    }
}

impl Cgroups {
    /// Tries everything out on this host, and sweeps away what is nobody's: no VM notes it in
    /// `notes`. Blocks for some milliseconds.
    pub fn find_out(notes: &[PathBuf]) -> Self {
        let hierarchies = Hierarchies::of_this_process();
        let under_systemd = Path::new("/run/systemd/system").exists();
        let mut found = Self::try_out(&hierarchies, under_systemd);
        if let (true, Err(_), Some(mounted)) = (
            under_systemd,
            hierarchies.two(under_systemd),
            hierarchies.mounted(),
        ) {
            found.take_scopes(mounted);
        }
        // What a VM's QEMU was ended for while no daemon looked is still to be read there.
        match notes
            .iter()
            .map(|note| noted(note))
            .collect::<io::Result<Vec<_>>>()
        {
            Ok(kept) => found.sweep(SETTLED, &kept.concat()),
            Err(error) => tracing::warn!(%error, "no control group is swept away"),
        }
        found
    }

    /// Has systemd bound what we may not.
    fn take_scopes(&mut self, mounted: &Path) {
        let scopes = match Scopes::find(mounted) {
            Ok(scopes) => scopes,
            Err(why) => {
                for (_, lacks) in &mut self.lacking {
                    *lacks = format!("{lacks}; and {why}");
                }
                return;
            }
        };
        let known = fs::read_to_string(mounted.join("cgroup.controllers")).unwrap_or_default();
        let known: Vec<_> = known.split_whitespace().collect();
        let lacks = |of: Controller| self.lacking.iter().any(|(lacks, _)| *lacks == measure(of));
        let bounded: Vec<_> = Controller::ALL
            .into_iter()
            .filter(|of| lacks(*of) && known.contains(&of.name(Version::Two)))
            .collect();
        self.lacking
            .retain(|(lacks, _)| !bounded.iter().any(|of| measure(*of) == *lacks));
        self.scopes = Some((scopes, bounded));
    }

    /// Puts a QEMU that was spawned, and whose CPUs stand, into the groups that [`Cgroups::make`] has noted, and where
    /// only systemd may put it. Repeatable after that. Blocks for some milliseconds, within a tokio runtime.
    ///
    /// From outside, while it starts: a move takes the kernel some 14 ms (it waits for all CPUs), which a child that
    /// moves itself before its exec adds to every start. What it allocates until then is counted where the daemon is.
    pub fn take_in(
        &self,
        pid: u32,
        name: &str,
        limits: &Limits,
        measures: &[Measure],
        note: &Path,
    ) -> io::Result<()> {
        let mut groups = noted(note)?;
        for group in &groups {
            enter(group, pid)?;
        }
        let Some((scopes, bounded)) = &self.scopes else {
            return Ok(());
        };
        let wanted = |of: &&Controller| measures.contains(&measure(**of));
        let bounded: Vec<_> = bounded.iter().filter(wanted).copied().collect();
        if bounded.is_empty() {
            return Ok(());
        }
        // Before it is there, as the others: where it really is is known when it is.
        groups.push(scopes.group(name));
        note_down(note, &groups)?;
        groups.pop();
        groups.push(scopes.put(pid, name, limits, &bounded)?);
        note_down(note, &groups)
    }

    fn try_out(hierarchies: &Hierarchies, under_systemd: bool) -> Self {
        let two = hierarchies.two(under_systemd);
        let mut found = Self::default();
        for controller in Controller::ALL {
            let tried = match (&two, hierarchies.one(controller)) {
                (_, Some(place)) => usable(controller, &place),
                (Ok(Some(place)), None) => usable(controller, place),
                (Ok(None), None) => Err("the kernel has it in no hierarchy".to_owned()),
                (Err(why), None) => Err(why.clone()),
            };
            match tried {
                Ok(usable) => found.usable.push(usable),
                Err(why) => found.lacking.push((measure(controller), why)),
            }
        }
        found
    }

    /// What is bounded for every VM.
    pub fn measures(&self) -> impl Iterator<Item = Measure> {
        let scoped = self.scopes.iter().flat_map(|(_, bounded)| bounded);
        let own = self.usable.iter().map(|usable| usable.controller);
        own.chain(scoped.copied()).map(measure)
    }

    /// Makes the group `name` for what is among `measures` and notes it. Repeatable; blocks for a
    /// few system calls.
    pub fn make(
        &self,
        name: &str,
        limits: &Limits,
        measures: &[Measure],
        note: &Path,
    ) -> io::Result<()> {
        let wanted = |usable: &&Usable| measures.contains(&measure(usable.controller));
        let usable: Vec<_> = self.usable.iter().filter(wanted).collect();
        let mut groups: Vec<PathBuf> = Vec::new();
        for usable in &usable {
            let group = usable.folder.join(name);
            // Controllers of one hierarchy share a group.
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        note_down(note, &groups)?;
        for group in &groups {
            there(group)?;
        }
        for usable in usable {
            bound(usable, name, limits)?;
        }
        Ok(())
    }

    /// Removes groups that hold nothing and have been there for longer than `settled`, but for `kept`.
    fn sweep(&self, settled: Duration, kept: &[PathBuf]) {
        let own = self.usable.iter().map(|usable| usable.folder.clone());
        let scopes = self.scopes.iter().map(|(scopes, _)| scopes.folder());
        for entry in own.chain(scopes).flat_map(fs::read_dir).flatten().flatten() {
            let old = entry.metadata().is_ok_and(|found| age(&found) > settled);
            let is_group = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let group = entry.path();
            if is_group && old && !kept.contains(&group) && swept(&group) {
                let group = group.display().to_string();
                tracing::info!(
                    group,
                    "an empty control group of an earlier daemon is removed"
                );
            }
        }
    }
}

/// How much memory the daemon and all it starts may use, in bytes, if its own group says so.
pub fn own_memory_limit() -> Option<u64> {
    let hierarchies = Hierarchies::of_this_process();
    let one = hierarchies.one(Controller::Memory).and_then(|place| {
        // It knows of the limits above.
        let stat = fs::read_to_string(place.above.join("memory.stat")).ok()?;
        value_in(&stat, "hierarchical_memory_limit")
    });
    let two = hierarchies.own_two().into_iter().filter_map(|group| {
        // `max` is no number.
        let most = fs::read_to_string(group.join("memory.max")).ok()?;
        most.trim().parse::<u64>().ok()
    });
    one.into_iter().chain(two).min()
}

/// `NAME N`, a line.
fn value_in(text: &str, name: &str) -> Option<u64> {
    let values = text.lines().filter_map(|line| line.split_once(' '));
    let (_, value) = values.into_iter().find(|(known, _)| *known == name)?;
    value.trim().parse().ok()
}

/// Whether groups with this controller can be had at this place, by making one.
fn usable(controller: Controller, place: &Place) -> Result<Usable, String> {
    let folder = place.above.join(FOLDER);
    let usable = Usable {
        controller,
        version: place.version,
        folder: folder.clone(),
    };
    let name = format!("trial.{}.{controller:?}", std::process::id());
    let tried = hand_down(&usable, &place.above).and_then(|()| {
        there(&folder.join(&name))?;
        let bounded = bound(&usable, &name, &TRIAL);
        leave(&folder.join(&name)).and(bounded)
    });
    match tried {
        Ok(()) => Ok(usable),
        Err(error) => Err(error.to_string()),
    }
}

/// Makes our folder of groups, and has it give the controller to the groups in it.
fn hand_down(usable: &Usable, above: &Path) -> io::Result<()> {
    let name = usable.controller.name(usable.version);
    let give = |group: &Path| write(&group.join("cgroup.subtree_control"), &format!("+{name}"));
    if usable.version == Version::One {
        return there(&usable.folder);
    }
    let known = fs::read_to_string(above.join("cgroup.controllers"));
    let known = known.map_err(about(above))?;
    if !known.split_whitespace().any(|known| known == name) {
        let why = format!("version 2 has no controller {name} in {}", above.display());
        return Err(io::Error::other(why));
    }
    give(above)?;
    there(&usable.folder)?;
    give(&usable.folder)
}

fn bound(usable: &Usable, name: &str, limits: &Limits) -> io::Result<()> {
    let group = usable.folder.join(name);
    for alternatives in files::settings(usable.controller, usable.version, limits) {
        let there = alternatives
            .iter()
            .find(|(file, _)| group.join(file).exists());
        let (file, value) = there
            .or(alternatives.first())
            .ok_or(io::ErrorKind::NotFound)?;
        write(&group.join(file), value)?;
    }
    Ok(())
}

fn there(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(about(folder)(error)),
        _ => Ok(()),
    }
}

/// Into a file of the kernel's, which takes a value in one write.
fn write(file: &Path, value: &str) -> io::Result<()> {
    let opened = OpenOptions::new().write(true).truncate(true).open(file);
    let written = opened.and_then(|mut opened| opened.write_all(value.as_bytes()));
    written.map_err(about(file))
}

fn age(found: &fs::Metadata) -> Duration {
    let changed = UNIX_EPOCH + Duration::from_secs(found.ctime().unsigned_abs());
    let since = SystemTime::now().duration_since(changed);
    since.unwrap_or_default()
}

fn about(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
