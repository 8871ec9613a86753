//! What this host offers: programs and an accelerator.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::cmdline::Accel;
use crate::config::AccelChoice;

/// How long a program may take to tell its version.
const VERSION_DEADLINE: Duration = Duration::from_secs(5);

/// How long a machine that is made to try KVM may take.
const KVM_DEADLINE: Duration = Duration::from_secs(5);

/// The accelerator to use, and a sentence that says why.
pub(super) async fn accelerator(choice: AccelChoice, binary: &Path) -> (Accel, String) {
    match choice {
        AccelChoice::Kvm => (Accel::Kvm, "kvm: it was asked for".to_owned()),
        AccelChoice::Tcg => (Accel::Tcg, "tcg: it was asked for".to_owned()),
        AccelChoice::Auto => match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
            Ok(_) => match try_kvm(binary).await {
                Ok(()) => (
                    Accel::Kvm,
                    "kvm: a machine could be made with it".to_owned(),
                ),
                Err(why) => (
                    Accel::Tcg,
                    format!("tcg: kvm is there and does not work: {why}"),
                ),
            },
            Err(error) => (
                Accel::Tcg,
                format!("tcg: /dev/kvm cannot be opened: {error}"),
            ),
        },
    }
}

/// Makes a machine with KVM and ends it again. On hosts that are virtual machines themselves,
/// /dev/kvm may open and QEMU 7.2 then die over a register that the outer host does not let it set
/// ("failed to set MSR"). That a Linux guest boots too is not shown by it.
async fn try_kvm(binary: &Path) -> Result<(), String> {
    let mut command = Command::new(binary);
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-S",
            "-m",
            "16",
            "-display",
            "none",
        ])
        .args(["-machine", "q35,accel=kvm", "-cpu", "host", "-qmp", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let tried = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            let commands = b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"quit\"}";
            // One that has died already does not read; what it said is what counts.
            let _ = stdin.write_all(commands).await;
            // The monitor's end is left open until QEMU has read it and ended.
            return child
                .wait_with_output()
                .await
                .map(|output| (output, Some(stdin)));
        }
        child.wait_with_output().await.map(|output| (output, None))
    };
    match timeout(KVM_DEADLINE, tried).await {
        Ok(Ok((output, _stdin))) if output.status.success() => Ok(()),
        Ok(Ok((output, _stdin))) => {
            let told = String::from_utf8_lossy(&output.stderr);
            Err(told.lines().next().unwrap_or("QEMU failed").to_owned())
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("a machine made with it did not answer within 5 s".to_owned()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn stand_in(folder: &Path, script: &str) -> std::path::PathBuf {
        let path = folder.join("qemu");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn a_kvm_that_kills_qemu_is_told_with_qemus_own_words() {
        let folder = tempfile::tempdir().unwrap();
        let qemu = stand_in(folder.path(), "echo 'failed to set MSR' >&2; kill -6 $$");
        assert_eq!(try_kvm(&qemu).await, Err("failed to set MSR".to_owned()));
    }

    #[tokio::test]
    async fn a_kvm_with_which_qemu_answers_is_usable() {
        let folder = tempfile::tempdir().unwrap();
        let qemu = stand_in(folder.path(), "head -c 20 >/dev/null");
        assert_eq!(try_kvm(&qemu).await, Ok(()));
    }
}
