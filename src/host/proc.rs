//! What proc(5) tells of processes and of this boot.
//!
//! Owns: reading and parsing. Must not: conclude anything from a pid alone, since pids are used
//! again; only a pidfd says which process is meant (`qemu::process`).

use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::Pid;
use vman_model::BootId;

/// The id of this boot of the host, as the kernel writes it.
pub fn boot_id() -> io::Result<BootId> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    BootId::parse(text.trim()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// When `pid` was started, in clock ticks since boot, or `None` if there is no such process. Two
/// processes of one boot that share a pid differ in it.
pub fn start_time(pid: Pid) -> io::Result<Option<u64>> {
    let Some(stat) = read(pid, "stat")? else {
        return Ok(None);
    };
    parse_start_time(&stat)
        .map(Some)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Time on the CPUs, in user space and in the kernel.
    pub cpu: Duration,
    /// Resident memory, in bytes.
    pub rss_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Bytes read from and written to storage; `None` where this is not for us to know.
    pub storage: Option<(u64, u64)>,
}

/// What the process with this pid and start time has used; `None` if there is no such process.
/// Unlike `/proc/PID/cmdline` these files answer also for a process that hangs in the kernel.
pub fn usage(pid: Pid, started: u64) -> io::Result<Option<Usage>> {
    let Some(stat) = read(pid, "stat")? else {
        return Ok(None);
    };
    if parse_start_time(&stat) != Some(started) {
        return Ok(None);
    }
    // Another user's process: what it may not tell is left out.
    let io = read(pid, "io").ok().flatten();
    Ok(parse_usage(&stat, io.as_deref()))
}

/// Fields 14, 15, 20 and 24 of `stat`; `read_bytes` and `write_bytes` of `io`.
fn parse_usage(stat: &[u8], io: Option<&[u8]>) -> Option<Usage> {
    let number = |field| stat_field(stat, field)?.parse::<u64>().ok();
    let ticks = number(14)?.saturating_add(number(15)?);
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let page = u64::try_from(rustix::param::page_size()).ok()?;
    let storage = io.and_then(|io| Some((io_line(io, "read_bytes")?, io_line(io, "write_bytes")?)));
    Some(Usage {
        cpu: Duration::from_millis(ticks.saturating_mul(1000) / per_second),
        rss_bytes: number(24)?.saturating_mul(page),
        threads: number(20)?,
        storage,
    })
}

fn io_line(io: &[u8], name: &str) -> Option<u64> {
    let lines = std::str::from_utf8(io).ok()?.lines();
    let mut named = lines.filter_map(|line| line.split_once(": "));
    named.find(|(key, _)| *key == name)?.1.trim().parse().ok()
}

/// The words of a process's command line; `None` if it is gone, empty for a zombie.
pub fn command_line(pid: Pid) -> io::Result<Option<Vec<Vec<u8>>>> {
    let Some(mut bytes) = read(pid, "cmdline")? else {
        return Ok(None);
    };
    if bytes.pop_if(|last| *last == 0).is_none() && bytes.is_empty() {
        return Ok(Some(Vec::new()));
    }
    Ok(Some(
        bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect(),
    ))
}

/// A process's short name, at most 15 bytes. Unlike its command line this never blocks on a process
/// that hangs in the kernel.
pub fn short_name(pid: Pid) -> io::Result<Option<Vec<u8>>> {
    let Some(mut name) = read(pid, "comm")? else {
        return Ok(None);
    };
    name.pop_if(|last| *last == b'\n');
    Ok(Some(name))
}

/// All processes there are, in no order.
pub fn pids() -> io::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let number = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        found.extend(number.and_then(Pid::from_raw));
    }
    Ok(found)
}

fn read(pid: Pid, file: &str) -> io::Result<Option<Vec<u8>>> {
    match fs::read(format!("/proc/{}/{file}", pid.as_raw_nonzero())) {
        Ok(bytes) => Ok(Some(bytes)),
        // ESRCH: it went away between open and read.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn parse_start_time(stat: &[u8]) -> Option<u64> {
    stat_field(stat, 22)?.parse().ok()
}

/// A field from the third on, counted from 1. The second is the short name in parentheses, which may
/// itself hold spaces and parentheses: fields are counted from the last one.
fn stat_field(stat: &[u8], field: usize) -> Option<&str> {
    let name_ends = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&stat[name_ends + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(field.checked_sub(3)?)
}

/// What went through a link, in this network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkCounts {
    /// Bytes that the host received and sent.
    pub bytes: (u64, u64),
    /// The same in packets.
    pub packets: (u64, u64),
}

/// The counters of every link by its name.
pub fn links() -> io::Result<Vec<(String, LinkCounts)>> {
    let text = fs::read_to_string("/proc/net/dev")?;
    Ok(text.lines().filter_map(counts_of).collect())
}

/// A line of `/proc/net/dev`: the name, eight figures of what was received, eight of what was sent (proc(5)).
fn counts_of(line: &str) -> Option<(String, LinkCounts)> {
    let (link, counts) = line.split_once(':')?;
    let counts: Vec<u64> = counts
        .split_whitespace()
        .map_while(|count| count.parse().ok())
        .collect();
    let at = |place: usize| counts.get(place).copied();
    let counts = LinkCounts {
        bytes: (at(0)?, at(8)?),
        packets: (at(1)?, at(9)?),
    };
    Some((link.trim().to_owned(), counts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("77 (a) R (b) 1 2) S {}", fields.join(" "));
        assert_eq!(parse_start_time(stat.as_bytes()), Some(22));
        assert_eq!(parse_start_time(b"77 (a S 1 2"), None);
        assert_eq!(parse_start_time(b"77 (a) S 1 2"), None);
    }

    #[test]
    fn this_process_is_found_with_its_words_and_its_start() {
        let pid = rustix::process::getpid();
        assert!(pids().expect("a list").contains(&pid));
        assert!(start_time(pid).expect("readable").expect("there") > 0);
        let words = command_line(pid).expect("readable").expect("there");
        let expected: Vec<_> = std::env::args().map(String::into_bytes).collect();
        assert_eq!(words, expected);
        assert!(
            !short_name(pid)
                .expect("readable")
                .expect("there")
                .is_empty()
        );
        assert_eq!(boot_id().expect("readable").as_str().len(), 36);
    }

    #[test]
    fn what_this_process_has_used_is_told_and_another_start_time_is_another_process() {
        let pid = rustix::process::getpid();
        let started = start_time(pid).expect("readable").expect("there");
        let used = usage(pid, started).expect("readable").expect("there");
        assert!(used.rss_bytes > 100_000 && used.threads >= 1, "{used:?}");
        assert!(used.storage.is_some(), "{used:?}");
        assert_eq!(usage(pid, started + 1).expect("readable"), None);
    }

    #[test]
    fn links_are_told_with_what_they_received_and_sent() {
        let line = "  lo: 10 2 0 0 0 0 0 0 30 4 0 0 0 0 0 0";
        let (name, counts) = counts_of(line).expect("a link");
        assert_eq!(
            (name.as_str(), counts.bytes, counts.packets),
            ("lo", (10, 30), (2, 4))
        );
        assert!(counts_of("Inter-|   Receive | Transmit").is_none());
        assert!(counts_of("eth0: 1 2").is_none());
        assert!(
            links()
                .expect("readable")
                .iter()
                .any(|(name, _)| name == "lo")
        );
    }

    #[test]
    fn a_process_that_is_not_there_is_none_and_no_error() {
        // Above the largest pid_max there can be.
        let pid = Pid::from_raw(i32::MAX).expect("positive");
        assert_eq!(start_time(pid).expect("no error"), None);
        assert_eq!(command_line(pid).expect("no error"), None);
    }
}
