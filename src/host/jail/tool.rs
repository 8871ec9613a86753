//! What keeps a tool that lives for one call and reads what a stranger has written (qemu-img) from
//! everything but the files of that call.
//!
//! Owns: finding out once what this host lets be done, and the cage of each call. Must not: start
//! the tool, or choose its limits; whoever runs it does (`host::disks`). Measures are independent,
//! as a QEMU's are (`mod.rs`): each is tried alone, and what lacks is told.

use super::{
    cage::{Cage, limit},
    is_root,
    landlock::{self, Own},
    program_folder,
};
use crate::config::JailMode;
use rustix::process::Resource;
use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{process::Command, sync::OnceCell, time::timeout};

/// How long a trial may take.
const TRIAL_DEADLINE: Duration = Duration::from_secs(5);
/// What the whole of it is called, for people.
const ALL: &str = "resource_limits, no_capabilities, no_new_privileges, landlock, no_network";

/// The files of one call, and its bounds.
#[derive(Clone, Debug, Default)]
pub struct ToolNeeds {
    /// Only read.
    pub read: Vec<PathBuf>,
    /// Read and written; they are there.
    pub write: Vec<PathBuf>,
    /// What it may use.
    pub limits: Vec<(Resource, u64)>,
}

/// What this host lets be done to the tool.
#[derive(Debug, Default)]
struct Found {
    caged: bool,
    landlock: bool,
    offline: bool,
    lacking: Vec<String>,
}

/// The jail of a tool.
#[derive(Debug)]
pub struct ToolJail {
    mode: JailMode,
    binary: PathBuf,
    found: OnceCell<Found>,
}

impl ToolJail {
    /// Nothing is tried yet.
    pub fn new(mode: JailMode, binary: PathBuf) -> Self {
        Self {
            mode,
            binary,
            found: OnceCell::new(),
        }
    }

    /// The tool.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// In a sentence, for health.
    pub async fn describe(&self) -> String {
        let lacking = &self.found().await.lacking;
        match lacking.as_slice() {
            [] => ALL.to_owned(),
            lacking => format!("{ALL}; without {}", lacking.join("; without ")),
        }
    }

    /// Confines what `command` will be to its limits and, as far as this host can, to the files it
    /// needs. `Err` where less can be had than is required.
    pub async fn confine(&self, command: &mut Command, needs: &ToolNeeds) -> io::Result<()> {
        let found = self.found().await;
        if self.mode == JailMode::Require && !found.lacking.is_empty() {
            return Err(io::Error::other(format!(
                "VMAN_JAIL=require, and this host runs it without {}",
                found.lacking.join("; without ")
            )));
        }
        let cage = found.caged.then(|| self.cage(found, needs)).transpose()?;
        enter_before_exec(command, needs.limits.clone(), cage);
        Ok(())
    }

    fn cage(&self, found: &Found, needs: &ToolNeeds) -> io::Result<Cage> {
        let rules = || {
            landlock::tool_rules(&Own {
                program: program_folder(&self.binary),
                read: needs.read.clone(),
                write: needs.write.clone(),
            })
        };
        Ok(Cage {
            landlock: found.landlock.then(rules).transpose()?,
            offline: found.offline,
            bounding: is_root(),
            ..Cage::default()
        })
    }

    async fn found(&self) -> &Found {
        self.found.get_or_init(|| self.find_out()).await
    }

    async fn find_out(&self) -> Found {
        let mut found = Found::default();
        if self.mode == JailMode::Off {
            let why = "all but resource_limits: VMAN_JAIL=off";
            found.lacking.push(why.to_owned());
            return found;
        }
        let with = |landlock, offline| Found {
            landlock,
            offline,
            ..Found::default()
        };
        let (bare, landlock, offline) = (with(false, false), with(true, false), with(false, true));
        let (bare, landlock, offline) = tokio::join!(
            self.try_out(&bare),
            self.try_out(&landlock),
            self.try_out(&offline)
        );
        if let Err(why) = bare {
            found
                .lacking
                .push(format!("all but resource_limits: {why}"));
            return found;
        }
        found.caged = true;
        (found.landlock, found.offline) = (landlock.is_ok(), offline.is_ok());
        for (measure, tried) in [("landlock", landlock), ("no_network", offline)] {
            if let Err(why) = tried {
                found.lacking.push(format!("{measure}: {why}"));
            }
        }
        found
    }

    /// Runs the tool so confined, to tell its version.
    async fn try_out(&self, measures: &Found) -> Result<(), String> {
        let failed = |why: String| format!("it does not start: {why}");
        let cage = self.cage(measures, &ToolNeeds::default());
        let cage = cage.map_err(|error| error.to_string())?;
        let mut command = Command::new(&self.binary);
        command
            .arg("--version")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        enter_before_exec(&mut command, Vec::new(), Some(cage));
        match timeout(TRIAL_DEADLINE, command.status()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(failed(status.to_string())),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed("not within 5 s".to_owned())),
        }
    }
}

#[allow(unsafe_code)]
fn enter_before_exec(command: &mut Command, limits: Vec<(Resource, u64)>, cage: Option<Cage>) {
    let enter = move || {
        for (resource, most) in &limits {
            limit(*resource, *most)?;
        }
        cage.as_ref().map_or(Ok(()), Cage::enter)
    };
    // SAFETY: limiting and entering make system calls on what was prepared before the fork; they
    // allocate nothing and take no lock.
    unsafe { command.pre_exec(enter) };
}
