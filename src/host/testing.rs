//! What tests of the host need: a file system small enough to be filled, and a way to say that a
//! test cannot run here.

use std::{fs::OpenOptions, io::Write, path::Path, process::Command};
use tempfile::TempDir;

/// Says aloud that the present test cannot run here, and where `make test` counts it.
pub(crate) fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    eprintln!("SKIPPED: {test}: {reason}");
    if let Some(list) = std::env::var_os("VMAN_TEST_SKIPS") {
        let mut list = OpenOptions::new()
            .append(true)
            .create(true)
            .open(list)
            .unwrap();
        writeln!(list, "{test}: {reason}").unwrap();
    }
}

/// A small file system of its own; none where we may not mount one.
pub(crate) struct SmallDisk(TempDir);

impl SmallDisk {
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// `size` as mount(8) takes it, such as `6m`.
    pub(crate) fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir.path())
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            skip("a tmpfs cannot be mounted here");
        }
        mounted.then(|| Self(dir))
    }

    pub(crate) fn remount(&self, how: &str) {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,{how}")])
            .arg(self.0.path())
            .status();
        assert!(status.unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}
