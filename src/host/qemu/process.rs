//! A QEMU as a process: started so that it needs nobody, known by its pidfd, and never lost.
//!
//! Owns: the spawn, the pidfd, the exit notice, signals. Must not: speak QMP, or end a QEMU because
//! somebody lost interest in it. What a QEMU gets from us: a session of its own, `/dev/null` as
//! stdin, its log as stdout and stderr, the descriptors meant for it, default signal handling, `/`
//! as directory, umask 0077, and a PATH. No parent-death signal and no kill-on-drop: it outlives us.
//!
//! Needs Linux 5.11 (`close_range` with `CLOSE_RANGE_CLOEXEC`, pidfds). Look next: `adopt.rs` for a
//! QEMU started by an earlier daemon.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, getppid, pidfd_open, pidfd_send_signal,
    setsid, umask, waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use vman_model::vm::ProcessIdentity;

use crate::host::{jail::Cage, proc};

/// A log longer than this, in bytes, is put aside as `.1` when a QEMU is started, so that a VM's
/// logs take at most about twice as much plus what one QEMU says in its life.
pub const LOG_ROTATE_AT: u64 = 1024 * 1024;

/// All the environment there is beside the locale; also where a bare name is looked for.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Inherited descriptors get numbers from here on, clear of those that the spawn itself uses.
const FIRST_INHERITED: RawFd = 64;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited by itself.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// It is gone and was not our child, so the kernel does not tell us.
    Unknown,
}

/// Why there is no process. In every case none is left behind.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The log cannot be written.
    #[error("could not open qemu's log {path}")]
    Log {
        /// The log.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to start it.
    #[error("could not start {program}")]
    Start {
        /// The binary.
        program: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It was started but could not be watched, so it was ended again.
    #[error("could not watch the qemu just started, which was ended again")]
    Watch(#[source] io::Error),
}

/// Descriptors that a QEMU is to inherit. Their numbers are known before it is started, because its
/// command line names them.
#[derive(Debug, Default)]
pub struct Inherited {
    descriptors: Vec<OwnedFd>,
}

impl Inherited {
    /// Duplicates `descriptor` for QEMU and says under which number QEMU will find it.
    pub fn add(&mut self, descriptor: impl AsFd) -> io::Result<RawFd> {
        let duplicate = fcntl_dupfd_cloexec(descriptor, FIRST_INHERITED)?;
        let number = duplicate.as_raw_fd();
        self.descriptors.push(duplicate);
        Ok(number)
    }
}

/// All there is to say about a start.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The binary; looked up on PATH if it is a bare name.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// What it inherits beside stdin, stdout and stderr.
    pub inherited: Inherited,
    /// What it is confined by.
    pub cage: Option<Cage>,
    /// Where its output goes.
    pub log: &'a Path,
    /// The line that the log gets before it, which tells one life's words from the next one's.
    pub banner: &'a str,
}

/// A QEMU that is or was there.
#[derive(Debug, Clone)]
pub struct Process {
    identity: ProcessIdentity,
    pidfd: Arc<OwnedFd>,
    exit: watch::Receiver<Option<Exit>>,
}

impl Process {
    /// Starts a process and watches it. Blocks for the fork and exec, about a millisecond; must be
    /// called within a tokio runtime, which has to go on running for the process to be reaped.
    pub fn spawn(spawn: Spawn<'_>) -> Result<Self, SpawnError> {
        let log = open_log(spawn.log, spawn.banner).map_err(|source| SpawnError::Log {
            path: spawn.log.to_owned(),
            source,
        })?;
        let start = |source| SpawnError::Start {
            program: spawn.program.to_owned(),
            source,
        };
        let mut command = Command::new(spawn.program);
        command.args(&spawn.arguments);
        command
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .env("LC_ALL", "C");
        command.current_dir("/").stdin(Stdio::null());
        command.stdout(log.try_clone().map_err(start)?).stderr(log);
        detach(&mut command, spawn.inherited, spawn.cage);
        let child = command.spawn().map_err(start)?;
        // The closure owns the inherited descriptors: our copies go now, so that a peer sees the
        // end of QEMU and not of us.
        drop(command);
        Self::watch_child(child)
    }

    fn watch_child(mut child: Child) -> Result<Self, SpawnError> {
        // Nobody else waits for this child, so its pid cannot be anybody else's yet.
        let watched = identify(child.id()).and_then(|identity| {
            let pidfd = pidfd_open(as_pid(identity.pid)?, PidfdFlags::NONBLOCK)?;
            Self::watch(identity, pidfd)
        });
        watched.map_err(|error| {
            // It failed for want of descriptors or the like; the process waits with its CPUs stopped.
            let _ = child.kill();
            let _ = child.wait();
            SpawnError::Watch(error)
        })
    }

    /// Watches a process by its pidfd, ours or not. The watching ends with the process and not with
    /// the interest in it, so a child of ours is reaped even if its launch was abandoned.
    pub(super) fn watch(identity: ProcessIdentity, pidfd: OwnedFd) -> io::Result<Self> {
        let pidfd = Arc::new(pidfd);
        let readiness = register(Arc::clone(&pidfd))?;
        let (told, exit) = watch::channel(None);
        tokio::spawn(async move {
            let exit = wait_for_exit(&readiness).await;
            told.send_replace(Some(exit));
        });
        Ok(Self {
            identity,
            pidfd,
            exit,
        })
    }

    /// Who it is.
    pub fn identity(&self) -> &ProcessIdentity {
        &self.identity
    }

    /// Waits for its end. Cancel-safe, and may be asked by any number of tasks.
    pub async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or(Exit::Unknown),
            // The watching task went with its runtime: nothing more can be known.
            Err(_) => Exit::Unknown,
        }
    }

    /// Whether it has ended, without waiting and without asking anybody but the kernel.
    pub fn is_gone(&self) -> bool {
        is_gone(self.pidfd.as_fd())
    }

    /// Sends a signal to this very process; one that is gone is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends it at once. [`Process::exited`] says when it is done.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL)
    }
}

fn identify(pid: u32) -> io::Result<ProcessIdentity> {
    let start_time = proc::start_time(as_pid(pid)?)?.ok_or(io::ErrorKind::NotFound)?;
    Ok(ProcessIdentity {
        pid,
        start_time,
        boot_id: proc::boot_id()?,
    })
}

/// A recorded pid as the kernel's interfaces take it.
pub(super) fn as_pid(pid: u32) -> io::Result<Pid> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a process id"))
}

/// A pidfd is readable from the moment on in which all threads of the process have ended, reaped or not.
pub(super) fn is_gone(pidfd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    let at_once = rustix::time::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(poll(&mut polled, Some(&at_once)), Ok(1..))
}

#[allow(unsafe_code)]
fn register(pidfd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the descriptor is owned by the Arc that the AsyncFd keeps, so it stays open and the
    // same until the AsyncFd is gone.
    Ok(unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?)
}

async fn wait_for_exit(readiness: &AsyncFd<Arc<OwnedFd>>) -> Exit {
    let pidfd = readiness.get_ref().as_fd();
    loop {
        let Ok(mut ready) = readiness.readable().await else {
            return Exit::Unknown;
        };
        match waitid(
            WaitId::PidFd(pidfd),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        ) {
            Ok(Some(status)) => {
                return match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Exit::Code(code),
                    (None, Some(signal)) => Exit::Signal(signal),
                    (None, None) => Exit::Unknown,
                };
            }
            // Not a child of ours.
            Err(Errno::CHILD) if is_gone(pidfd) => return Exit::Unknown,
            Err(Errno::INTR) => {}
            Ok(None) | Err(_) => ready.clear_ready(),
        }
    }
}

fn open_log(path: &Path, banner: &str) -> io::Result<File> {
    if fs::metadata(path).is_ok_and(|known| known.len() > LOG_ROTATE_AT) {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".1");
        fs::rename(path, aside)?;
    }
    let mut log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    writeln!(log, "{banner}")?;
    Ok(log)
}

/// Makes the child independent of this daemon, between fork and exec.
#[allow(unsafe_code)]
fn detach(command: &mut Command, inherited: Inherited, cage: Option<Cage>) {
    let daemon = getpid();
    let between_fork_and_exec = move || {
        // The next daemon may have looked for this QEMU and found none: then there shall be none.
        // (From here to the exec, the daemon's close-on-exec lock is still held by this child.)
        if getppid() != Some(daemon) {
            return Err(Errno::SRCH.into());
        }
        setsid()?;
        umask(Mode::RWXG | Mode::RWXO);
        for signal in 1..=64 {
            // SAFETY: plain libc call. What may not be changed (SIGKILL, libc's own) is refused with
            // an error that does not matter.
            unsafe { ffi::signal(signal, ffi::SIG_DFL) };
        }
        // SAFETY: a system call that touches no memory; it only marks descriptors of this child.
        let marked =
            unsafe { ffi::syscall(ffi::SYS_CLOSE_RANGE, 3, ffi::LAST, ffi::CLOSE_RANGE_CLOEXEC) };
        if marked != 0 {
            return Err(io::Error::last_os_error());
        }
        for descriptor in &inherited.descriptors {
            fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        match &cage {
            Some(cage) => cage.enter(),
            None => Ok(()),
        }
    };
    // SAFETY: the closure runs in a forked child of a threaded process, where only what is
    // async-signal-safe may be done: it makes system calls and allocates nothing.
    unsafe { command.pre_exec(between_fork_and_exec) };
}

/// The two calls that neither std nor rustix has.
mod ffi {
    use std::ffi::{c_int, c_long, c_uint};

    pub(super) const SIG_DFL: usize = 0;
    /// The same number on every architecture, as all since Linux 5.1.
    pub(super) const SYS_CLOSE_RANGE: c_long = 436;
    pub(super) const CLOSE_RANGE_CLOEXEC: c_uint = 4;
    pub(super) const LAST: c_uint = c_uint::MAX;

    #[allow(unsafe_code)]
    // SAFETY: both are declared as signal(3) and syscall(2) of the C library that std links.
    unsafe extern "C" {
        pub(super) fn signal(number: c_int, handler: usize) -> usize;
        pub(super) fn syscall(number: c_long, ...) -> c_long;
    }
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
