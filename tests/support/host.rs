//! The host as it really is: processes and their descriptors.

use std::{fs, path::Path};

/// A QEMU that has a file below some folder open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    pub pid: u32,
    pub name: String,
    pub uuid: String,
    pub incarnation: u64,
}

/// All living QEMUs whose logs are below `folder`.
pub fn qemus(folder: &Path) -> Vec<Qemu> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| qemu(pid, folder))
        .collect()
}

fn qemu(pid: u32, folder: &Path) -> Option<Qemu> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<_> = line
        .split(|b| *b == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    if !words.first()?.contains("qemu-system") {
        return None;
    }
    let after = |flag: &str| {
        let at = words.iter().position(|word| word == flag)?;
        words.get(at + 1).cloned()
    };
    let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let ours = open
        .flatten()
        .any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.starts_with(folder)));
    let name = after("-name")?
        .trim_start_matches("guest=")
        .split(',')
        .next()?
        .to_owned();
    let incarnation = after("-fw_cfg")?.rsplit('=').next()?.parse().ok()?;
    ours.then_some(Qemu {
        pid,
        name,
        uuid: after("-uuid")?,
        incarnation,
    })
}

/// Whether a process lives (a zombie does not).
pub fn lives(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let state = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.trim().chars().next());
    !matches!(state, Some('Z' | 'X') | None)
}

/// A process's start time in ticks since boot.
pub fn start_time(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let rest = stat.rsplit(')').next().unwrap();
    rest.split_whitespace().nth(19).unwrap().parse().unwrap()
}

/// Sends a signal to a process.
pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    let _ = rustix::process::kill_process(pid, signal);
}
