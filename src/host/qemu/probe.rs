//! What this host offers: programs and an accelerator.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::cmdline::Accel;
use crate::config::AccelChoice;

/// How long a program may take to tell its version.
const VERSION_DEADLINE: Duration = Duration::from_secs(5);

/// The accelerator to use now, and a sentence that says why.
pub(super) fn accelerator(choice: AccelChoice) -> (Accel, String) {
    match choice {
        AccelChoice::Kvm => (Accel::Kvm, "kvm: it was asked for".to_owned()),
        AccelChoice::Tcg => (Accel::Tcg, "tcg: it was asked for".to_owned()),
        AccelChoice::Auto => match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
            Ok(_) => (Accel::Kvm, "kvm: /dev/kvm can be opened".to_owned()),
            Err(error) => (
                Accel::Tcg,
                format!("tcg: /dev/kvm cannot be opened: {error}"),
            ),
        },
    }
}

/// What `program` calls its version, or a sentence why it cannot be used.
pub(super) async fn version(program: &Path, flag: &str, remedy: &str) -> Result<String, String> {
    let mut command = Command::new(program);
    command
        .arg(flag)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let name = program.display();
    let output = match timeout(VERSION_DEADLINE, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Err(format!("{name} was not found; {remedy}"));
        }
        Ok(Err(error)) => return Err(format!("{name} cannot be run: {error}")),
        Err(_) => return Err(format!("{name} did not tell its version within 5 s")),
    };
    if !output.status.success() {
        return Err(format!("{name} fails: {}", output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_once("version ").map(|(_, rest)| rest);
    let version = version.and_then(|rest| rest.split_whitespace().next());
    version
        .map(str::to_owned)
        .ok_or_else(|| format!("{name} tells no version"))
}
