//! What proc(5) tells of processes and of this boot.
//!
//! Owns: reading and parsing. Must not: conclude anything from a pid alone, since pids are used
//! again; only a pidfd says which process is meant (`qemu::process`).

use std::fs;
use std::io;

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

/// Field 22. The second field is the short name in parentheses, which may itself hold spaces and
/// parentheses: fields are counted from the last one.
fn parse_start_time(stat: &[u8]) -> Option<u64> {
    let name_ends = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&stat[name_ends + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
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
    fn a_process_that_is_not_there_is_none_and_no_error() {
        // Above the largest pid_max there can be.
        let pid = Pid::from_raw(i32::MAX).expect("positive");
        assert_eq!(start_time(pid).expect("no error"), None);
        assert_eq!(command_line(pid).expect("no error"), None);
    }
}
