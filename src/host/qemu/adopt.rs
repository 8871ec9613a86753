//! Finding QEMUs that an earlier daemon started, and being sure that it is them.
//!
//! Owns: one scan of /proc, and re-attachment by pidfd. Must not: speak QMP (whoever adopts asks
//! `query-uuid` as the last proof) or end anything. Both marks come first on a QEMU's command line
//! (see `cmdline.rs`), so a guest's kernel words, which are the user's, cannot pose as them.

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use vman_actors::ports::FoundProcess;
use vman_model::vm::ProcessIdentity;
use vman_model::{BootId, Incarnation, VmUuid};

use super::cmdline::{INCARNATION_MARK, UUID_OPTION};
use super::process::{Process, as_pid, is_gone};
use crate::host::proc;

/// Why a recorded process could not be attached to.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// It is not there any more: gone, another process by the same pid, or another boot.
    #[error("the recorded qemu process is gone")]
    Gone,
    /// It could not be found out.
    #[error("could not find out whether the recorded qemu process is there")]
    Unclear(#[source] io::Error),
}

/// All QEMUs of ours on this host. Cheap enough for every start: a short name is read of each
/// process and a command line of each QEMU. A process that may not be read is skipped, for a QEMU of
/// ours runs as ourselves; any other failure (no descriptor free) fails the scan, since a QEMU that
/// was overlooked would be started twice.
pub fn find_all() -> io::Result<Vec<FoundProcess>> {
    let boot_id = proc::boot_id()?;
    let mut all = Vec::new();
    for pid in proc::pids()? {
        match look_at(pid, &boot_id) {
            Ok(found) => all.extend(found),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

fn look_at(pid: Pid, boot_id: &BootId) -> io::Result<Option<FoundProcess>> {
    let name = proc::short_name(pid)?;
    if !name.is_some_and(|name| name.starts_with(b"qemu")) {
        return Ok(None);
    }
    let start_time = proc::start_time(pid)?;
    let words = proc::command_line(pid)?;
    // The same process before and after, so the words in between are its own.
    let same = proc::start_time(pid)? == start_time;
    let (Some(start_time), Some(words), true) = (start_time, words, same) else {
        return Ok(None);
    };
    Ok(marks(&words).and_then(|(uuid, incarnation)| {
        let pid = u32::try_from(pid.as_raw_nonzero().get()).ok()?;
        let identity = ProcessIdentity {
            pid,
            start_time,
            boot_id: boot_id.clone(),
        };
        Some(FoundProcess {
            uuid,
            incarnation,
            identity,
        })
    }))
}

fn marks(words: &[Vec<u8>]) -> Option<(VmUuid, Incarnation)> {
    let [_, uuid_option, uuid, fw_cfg_option, mark, ..] = words else {
        return None;
    };
    if uuid_option != UUID_OPTION.as_bytes() || fw_cfg_option != b"-fw_cfg" {
        return None;
    }
    let incarnation = mark.strip_prefix(INCARNATION_MARK.as_bytes())?;
    let incarnation = std::str::from_utf8(incarnation).ok()?.parse().ok()?;
    let uuid = VmUuid::parse(std::str::from_utf8(uuid).ok()?)?;
    Some((uuid, Incarnation(incarnation)))
}

/// Takes hold of the process that `identity` names. The pidfd comes first: what is read of the pid
/// afterwards is that very process's, or the pidfd says that it ended.
pub fn attach(identity: &ProcessIdentity) -> Result<Process, AttachError> {
    if proc::boot_id().map_err(AttachError::Unclear)? != identity.boot_id {
        return Err(AttachError::Gone);
    }
    let pid = as_pid(identity.pid).map_err(|_| AttachError::Gone)?;
    let pidfd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(pidfd) => pidfd,
        // EINVAL, ENOENT on newer kernels: the pid is a thread of another process by now.
        Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => return Err(AttachError::Gone),
        Err(error) => return Err(AttachError::Unclear(error.into())),
    };
    let start_time = proc::start_time(pid).map_err(AttachError::Unclear)?;
    // A zombie still has its start time; its pidfd tells.
    if start_time != Some(identity.start_time) || is_gone(pidfd.as_fd()) {
        return Err(AttachError::Gone);
    }
    Process::watch(identity.clone(), pidfd).map_err(AttachError::Unclear)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<Vec<u8>> {
        text.split(' ')
            .map(|word| word.as_bytes().to_vec())
            .collect()
    }

    #[test]
    fn marks_count_only_where_we_put_them() {
        let uuid = "0f0e0d0c-0b0a-4908-8706-050403020100";
        let ours = format!("qemu -uuid {uuid} -fw_cfg {INCARNATION_MARK}7 -name x");
        let expected = VmUuid::parse(uuid).map(|uuid| (uuid, Incarnation(7)));
        assert!(expected.is_some());
        assert_eq!(marks(&words(&ours)), expected);
        for other in [
            format!("qemu -append -uuid {uuid} -fw_cfg {INCARNATION_MARK}7"),
            format!("qemu -uuid {uuid} -name x -fw_cfg {INCARNATION_MARK}7"),
            format!("qemu -uuid {uuid} -fw_cfg {INCARNATION_MARK}-7"),
            format!("qemu -uuid other -fw_cfg {INCARNATION_MARK}7"),
            "qemu".to_owned(),
        ] {
            assert_eq!(marks(&words(&other)), None, "{other}");
        }
    }
}
