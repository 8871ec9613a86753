//! Which groups a VM's QEMU is in, as it is noted beside its sockets: read and removed by whoever comes after.
//!
//! Owns: the note and the end of the groups in it. Must not: remove a group that holds a process, or make a VM wait for
//! a bus that is gone. Look next: `mod.rs` (who makes them), `scope.rs` (what systemd has to take away).

use rustix::io::Errno;

use super::{about, scope::Systemd, value_in};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// The kernel's file that says which processes are in a group, and takes one more.
const PROCESSES: &str = "cgroup.procs";
/// A process that has just been reaped may still be counted: how often, and how long apart, an
/// emptied group is asked to go before that is a failure.
const TRIES: u32 = 40;
const BETWEEN_TRIES: Duration = Duration::from_millis(5);

/// Notes which groups a VM's QEMU is in.
pub(super) fn note_down(note: &Path, groups: &[PathBuf]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(true).mode(0o600);
    let mut file = options.open(note).map_err(about(note))?;
    for group in groups {
        writeln!(file, "{}", group.display()).map_err(about(note))?;
    }
    Ok(())
}

pub(super) fn noted(note: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_to_string(note) {
        Ok(text) => Ok(text.lines().map(PathBuf::from).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(about(note)(error)),
    }
}

/// Whether a process is in every group that is noted for it, of which there is one.
pub fn is_within(pid: u32, note: &Path) -> io::Result<bool> {
    let groups = noted(note)?;
    for group in &groups {
        if !holds(group, pid)? {
            return Ok(false);
        }
    }
    Ok(!groups.is_empty())
}

/// Whether a process is in a group, or in a scope of one that is a slice.
fn holds(group: &Path, pid: u32) -> io::Result<bool> {
    let mut within = vec![group.to_owned()];
    if slice_of(group).is_some() {
        let scopes = fs::read_dir(group).into_iter().flatten().flatten();
        within.extend(scopes.map(|scope| scope.path()));
    }
    for group in within {
        match fs::read_to_string(group.join(PROCESSES)) {
            Ok(text) if text.lines().any(|line| line.parse() == Ok(pid)) => return Ok(true),
            Err(error) if !is_gone(&error) => return Err(about(&group)(error)),
            _ => {}
        }
    }
    Ok(false)
}

/// A file of a group that is not there, or that went while it was read.
fn is_gone(error: &io::Error) -> bool {
    let gone = [Errno::NOENT, Errno::NODEV, Errno::NOTDIR].map(|gone| Some(gone.raw_os_error()));
    gone.contains(&error.raw_os_error())
}

/// Moves a process into a group of our own; one that has ended meanwhile is told by whoever watches it.
pub(super) fn enter(group: &Path, pid: u32) -> io::Result<()> {
    if slice_of(group).is_some() {
        return Ok(());
    }
    let door = group.join(PROCESSES);
    let opened = OpenOptions::new().write(true).open(&door);
    let moved = opened.and_then(|mut opened| opened.write_all(pid.to_string().as_bytes()));
    match moved {
        Err(error) if error.raw_os_error() != Some(Errno::SRCH.raw_os_error()) => {
            Err(about(&door)(error))
        }
        _ => Ok(()),
    }
}

/// How many processes of the noted groups the kernel has ended for memory; none where that is not
/// counted.
pub fn oom_kills(note: &Path) -> io::Result<Option<u64>> {
    for group in noted(note)? {
        for file in ["memory.events", "memory.oom_control"] {
            match fs::read_to_string(group.join(file)) {
                // Since Linux 4.13 in both versions.
                Ok(text) => return Ok(value_in(&text, "oom_kill")),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(about(&group)(error)),
            }
        }
    }
    Ok(None)
}

/// Removes the noted groups and the note; no process is in them. Repeatable. Blocks, where the
/// kernel still counts one that has ended, for up to a fifth of a second.
pub fn remove(note: &Path) -> io::Result<()> {
    remove_by(note, &Systemd::default())
}

pub(super) fn remove_by(note: &Path, systemd: &Systemd) -> io::Result<()> {
    for group in noted(note)? {
        // A read-only file system says that it is one also of what has gone.
        if !group.try_exists().map_err(about(&group))? {
            continue;
        }
        match slice_of(&group) {
            Some(slice) => dissolve(&group, slice, systemd)?,
            None => leave(&group)?,
        }
    }
    match fs::remove_file(note) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(about(note)(error)),
        _ => Ok(()),
    }
}

pub(super) fn leave(group: &Path) -> io::Result<()> {
    for tried in 1.. {
        match fs::remove_dir(group) {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) if busy(&error) && tried < TRIES => thread::sleep(BETWEEN_TRIES),
            Err(error) => return Err(about(group)(error)),
        }
    }
    Ok(())
}

/// The name of systemd's slice that has this group, if one has.
fn slice_of(group: &Path) -> Option<&str> {
    let is_slice = group.extension().is_some_and(|kind| kind == "slice");
    group.file_name()?.to_str().filter(|_| is_slice)
}

/// Whether a group of version 2 or one below it holds a process; not if it has gone.
fn populated(group: &Path) -> bool {
    let events = fs::read_to_string(group.join("cgroup.events"));
    events.is_ok_and(|events| value_in(&events, "populated") != Some(0))
}

/// Has systemd take a slice away that holds nothing: one that does would be ended with all in it. An empty one that
/// stays harms nobody and is swept away one day, so no VM waits for a bus that is gone.
fn dissolve(group: &Path, slice: &str, systemd: &Systemd) -> io::Result<()> {
    let held = |_: &u32| {
        let held = populated(group);
        if held {
            thread::sleep(BETWEEN_TRIES);
        }
        held
    };
    if (0..TRIES).take_while(held).count() == TRIES as usize {
        return Err(about(group)(io::ErrorKind::ResourceBusy.into()));
    }
    if let Err(error) = systemd.stop(slice) {
        tracing::warn!(%error, "an empty slice of a VM's is left behind");
    }
    Ok(())
}

fn busy(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ResourceBusy
}

/// Removes a group that holds nothing, if it can be; whether it has gone.
pub(super) fn swept(group: &Path) -> bool {
    match slice_of(group) {
        Some(slice) => !populated(group) && Systemd::default().stop(slice).is_ok(),
        None => fs::remove_dir(group).is_ok(),
    }
}
