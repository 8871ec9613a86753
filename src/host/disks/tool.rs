//! qemu-img, confined: a process of its own that lives for one call.
//!
//! Owns: its environment, its limits of memory, time and file size, its end.
//! Must not: choose words or files; whoever calls says the format.
//! Look next: [`crate::host::jail::ToolJail`] for what else it is kept from.

use crate::host::jail::{ToolJail, ToolNeeds};
use rustix::process::Resource;
use std::{ffi::OsString, io, path::PathBuf, process::Stdio, sync::Arc, time::Duration};
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    time::timeout,
};
use vman_actors::ports::FileError;

/// An empty qcow2 file is 200 KiB; qemu-img needs milliseconds for it. A storage that takes a
/// minute is not going to come back.
const QEMU_IMG_DEADLINE: Duration = Duration::from_mins(1);
/// What qemu-img may add to a file: its tables. Those of the largest disk are far below.
const MORE_BYTES: u64 = 1 << 30;
/// Of what qemu-img says: enough for its sentence.
const STDERR_LIMIT: u64 = 4096;
/// What qemu-img may use: it reads the headers of files that came from outside.
const LIMITS: [(Resource, u64); 3] = [
    (Resource::As, 2 << 30),
    (Resource::Cpu, 30),
    (Resource::Core, 0),
];

/// One call.
pub(super) struct Call {
    pub(super) words: Vec<OsString>,
    /// The images it may read.
    pub(super) read: Vec<PathBuf>,
    /// The file it is about, which is there.
    pub(super) write: PathBuf,
    /// It writes no file beyond so many bytes and [`MORE_BYTES`].
    pub(super) largest: u64,
}

/// The tool, if it is there.
#[derive(Clone, Debug)]
pub(super) struct QemuImg(Option<Arc<ToolJail>>);

impl QemuImg {
    pub(super) fn new(jail: Option<Arc<ToolJail>>) -> Self {
        Self(jail)
    }

    /// Runs it and waits for its end.
    pub(super) async fn run(&self, what: &str, call: Call) -> Result<(), FileError> {
        let missing = |why: String| {
            FileError::NoTool(format!(
                "{what}: {why}; install qemu-utils or name it in VMAN_QEMU_IMG"
            ))
        };
        let Some(jail) = &self.0 else {
            return Err(missing("qemu-img was not found".to_owned()));
        };
        let failed = |error: String| FileError::Io {
            what: format!("{what}: qemu-img"),
            error,
        };
        let tool = jail.binary();
        let mut command = Command::new(tool);
        command
            .args(call.words)
            .env_clear()
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            // Unlike a guest, a half-made file is worth nothing.
            .kill_on_drop(true);
        let size = (Resource::Fsize, call.largest.saturating_add(MORE_BYTES));
        let needs = ToolNeeds {
            read: call.read,
            write: vec![call.write],
            limits: LIMITS.into_iter().chain([size]).collect(),
        };
        let confined = jail.confine(&mut command, &needs).await;
        confined.map_err(|error| failed(error.to_string()))?;
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                missing(format!("{}: {error}", tool.display()))
            }
            _ => failed(error.to_string()),
        })?;
        match timeout(QEMU_IMG_DEADLINE, ended(&mut child)).await {
            Ok(Ok((true, _))) => Ok(()),
            Ok(Ok((false, said))) if said.contains("No space left on device") => {
                Err(FileError::NoSpace {
                    what: what.to_owned(),
                })
            }
            Ok(Ok((false, said))) => Err(failed(said)),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => {
                // The file must not be written to once its name is gone.
                let _ = child.kill().await;
                let seconds = QEMU_IMG_DEADLINE.as_secs();
                Err(failed(format!("it was not done after {seconds} s")))
            }
        }
    }
}

/// Whether it succeeded, and the end of what it said.
async fn ended(child: &mut Child) -> io::Result<(bool, String)> {
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(STDERR_LIMIT).read_to_end(&mut said).await?;
    }
    let status = child.wait().await?;
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    let said = if said.is_empty() {
        status.to_string()
    } else {
        said
    };
    Ok((status.success(), said))
}
