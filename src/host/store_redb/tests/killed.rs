//! SIGKILL at each system call that a piece of work makes on certain files, by strace(1): for the tests of what is
//! found afterwards.

use std::{
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const PLACE: &str = "VMAN_TEST_STORE_IN";
const SIGKILL: i32 = 9;
/// Whatever is done to files. strace(1) counts each of them by itself, so that one for all would reach the rarer ones
/// never: the work ends before there were as many of them.
const CALLS: [&str; 16] = [
    "mkdir",
    "openat",
    "pwrite64",
    "write",
    "ftruncate",
    "fallocate",
    "fsync",
    "fdatasync",
    "rename",
    "renameat2",
    "unlink",
    "copy_file_range",
    "sendfile",
    "fcntl",
    "flock",
    "close",
];
/// More of one call than any work makes.
const ENDLESS: u32 = 1000;

/// The folder in which the work is to be done, for the test that is run to be killed.
pub(super) fn place() -> PathBuf {
    let place = std::env::var_os(PLACE).expect("another test runs this one");
    PathBuf::from(place)
}

/// Work that is killed: an ignored test, and the files at whose calls it is.
pub(super) struct Work {
    /// Its name below `host::store_redb::tests`.
    pub(super) test: &'static str,
    /// In its folder.
    pub(super) files: &'static [&'static str],
}

/// One run of it.
pub(super) struct Run<'a> {
    pub(super) place: &'a Path,
    /// The call, and the how manyeth.
    pub(super) at: &'a str,
    /// Or it came to its end: there was no such call.
    pub(super) killed: bool,
}

impl Work {
    /// Runs it once for each of its calls in a new folder that `given` has filled, and shows what is left to `look`.
    /// Answers at how many it was killed; none where strace lacks.
    pub(super) fn killed_at_each_call(
        &self,
        given: impl Fn(&Path),
        mut look: impl FnMut(&Run<'_>),
    ) -> Option<u32> {
        let mut kills = 0;
        for call in CALLS {
            for nth in 1.. {
                assert!(nth < ENDLESS, "{call}: it never comes to its end");
                let dir = tempfile::tempdir().unwrap();
                given(dir.path());
                let killed = self.killed_at(call, nth, dir.path())?;
                look(&Run {
                    place: dir.path(),
                    at: &format!("{call} {nth}"),
                    killed,
                });
                if !killed {
                    break;
                }
                kills += 1;
            }
        }
        eprintln!("killed at each of {kills} calls");
        Some(kills)
    }

    fn killed_at(&self, call: &str, nth: u32, place: &Path) -> Option<bool> {
        let status = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null"])
            .args(
                self.files
                    .iter()
                    .map(|file| format!("--trace-path={}", place.join(file).display())),
            )
            // Not every machine has every call.
            .arg(format!("--inject=?{call}:signal=KILL:when={nth}"))
            .arg(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture"])
            .arg(format!("host::store_redb::tests::{}", self.test))
            .env(PLACE, place)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let Ok(status) = status else {
            crate::host::testing::skip("strace is not installed");
            return None;
        };
        let killed = status.signal() == Some(SIGKILL);
        assert!(killed || status.success(), "{call} {nth}: {status}");
        Some(killed)
    }
}
