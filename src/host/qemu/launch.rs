//! From a plan to a process.
//!
//! Owns: what has to be there before QEMU is: folders, listening sockets, the console's file, the
//! firmware's variables. Must not: wait for QEMU. The sockets are made by us and inherited, so that
//! the monitor can be connected to, and spoken to, before QEMU has started. All of it blocks for a
//! few milliseconds: call it from a blocking thread. Look next: `machine.rs`.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use vman_actors::ports::{LaunchError, LaunchPlan};
use vman_model::vm::Firmware;
use vman_model::{Incarnation, VmId};

use super::cmdline::{Accel, Descriptors, Flash, Machinery, TapNumbers, arguments};
use super::layout::Layout;
use super::process::{Inherited, Process, Spawn, SpawnError};
use super::sockets::listen;
use crate::host::dirs::put_whole;
use crate::host::jail::{Jail, Life};
use crate::host::net::tap::Taps;

/// Where distributions put OVMF: the firmware and the variables it starts with. Debian and Ubuntu,
/// Fedora, Arch.
const OVMF: &[(&str, &str)] = &[
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/OVMF/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
];

/// The line in QEMU's log with which a life begins.
pub(super) fn banner(incarnation: Incarnation) -> String {
    format!("== incarnation {incarnation} ==")
}

/// Makes everything ready and starts QEMU. On an error no process is left behind.
pub(super) fn start(
    binary: &Path,
    accel: Accel,
    layout: &Layout,
    taps: &Taps,
    jail: &Jail,
    plan: &LaunchPlan,
) -> Result<Process, LaunchError> {
    make_folder(&layout.sockets(&plan.vm))?;
    make_folder(&layout.files(&plan.vm))?;
    let flash = match plan.firmware {
        Firmware::Bios => None,
        Firmware::Uefi => Some(flash(layout, &plan.vm)?),
    };
    let mut inherited = Inherited::default();
    let mut descriptors = open_all(&mut inherited, layout, &plan.vm)?;
    descriptors.taps = hand_over(&mut inherited, taps, plan)?;
    let mut own = vec![layout.console_log(&plan.vm)];
    own.extend(flash.as_ref().map(|flash| flash.vars.clone()));
    let unconfined = |error: io::Error| LaunchError::Preparation {
        what: "jail".to_owned(),
        error: error.to_string(),
    };
    jail.hand_over(plan, &own).map_err(unconfined)?;
    let cage = jail.cage(plan).map_err(unconfined)?;
    let life = Life::of(plan);
    jail.make_groups(&life, accel).map_err(unconfined)?;
    let arguments =
        arguments(plan, &Machinery { accel, flash }, &descriptors).map_err(|error| {
            LaunchError::Preparation {
                what: "command line".to_owned(),
                error: error.to_string(),
            }
        })?;
    let log = layout.qemu_log(&plan.vm);
    let banner = banner(plan.incarnation);
    let spawn = Spawn {
        program: binary,
        arguments,
        inherited,
        cage,
        log: &log,
        banner: &banner,
    };
    let process = Process::spawn(spawn).map_err(|error| match error {
        SpawnError::Log { path, source } => unprepared(&path)(source),
        SpawnError::Start { program, source } if source.kind() == io::ErrorKind::NotFound => {
            LaunchError::NoBinary {
                binary: program.display().to_string(),
            }
        }
        SpawnError::Start { program, source } => {
            LaunchError::Spawn(format!("{}: {source}", program.display()))
        }
        SpawnError::Watch(source) => LaunchError::Spawn(format!("cannot be watched: {source}")),
    })?;
    // While QEMU starts, which takes longer.
    let bounded = jail.close_behind(&life, accel, process.identity().pid);
    if let Err(error) = bounded {
        // Its CPUs stand: no guest is lost. That it ends is seen by whoever reaps it.
        let _ = process.kill();
        return Err(unconfined(error));
    }
    Ok(process)
}

fn unprepared(path: &Path) -> impl Fn(io::Error) -> LaunchError {
    move |error| LaunchError::Preparation {
        what: path.display().to_string(),
        error: error.to_string(),
    }
}

fn make_folder(path: &Path) -> Result<(), LaunchError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(unprepared(path))
}

fn open_all(
    inherited: &mut Inherited,
    layout: &Layout,
    vm: &VmId,
) -> Result<Descriptors, LaunchError> {
    let mut socket = |path: PathBuf| -> Result<RawFd, LaunchError> {
        let number = listen(&path).and_then(|listener| inherited.add(listener));
        number.map_err(unprepared(&path))
    };
    let qmp = socket(layout.qmp(vm))?;
    let rescue = socket(layout.rescue(vm))?;
    let console = socket(layout.console_socket(vm))?;
    let agent = socket(layout.agent(vm))?;
    let path = layout.console_log(vm);
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path);
    let console_log = log
        .and_then(|log| inherited.add(log))
        .map_err(unprepared(&path))?;
    Ok(Descriptors {
        qmp,
        rescue,
        console,
        console_log,
        agent,
        taps: Vec::new(),
    })
}

/// The TAPs that the claim has made, as QEMU will have them.
fn hand_over(
    inherited: &mut Inherited,
    taps: &Taps,
    plan: &LaunchPlan,
) -> Result<Vec<TapNumbers>, LaunchError> {
    let names = plan.nics.iter().filter_map(|nic| nic.tap.as_ref());
    let mut numbers = Vec::new();
    for name in names {
        let what = format!("TAP {name}");
        let tap = taps
            .take(name.as_str())
            .ok_or_else(|| LaunchError::Preparation {
                what: what.clone(),
                error: "it was not claimed by this daemon".to_owned(),
            })?;
        let mut inherit = |all: Vec<OwnedFd>| -> Result<Vec<RawFd>, LaunchError> {
            let all = all.into_iter().map(|fd| inherited.add(fd));
            all.collect::<io::Result<_>>()
                .map_err(unprepared(Path::new(&what)))
        };
        numbers.push(TapNumbers {
            queues: inherit(tap.queues)?,
            vhost: inherit(tap.vhost)?,
        });
    }
    Ok(numbers)
}

fn flash(layout: &Layout, vm: &VmId) -> Result<Flash, LaunchError> {
    let installed =
        |(code, vars): &&(&str, &str)| Path::new(code).exists() && Path::new(vars).exists();
    let Some((code, fresh)) = OVMF.iter().find(installed) else {
        return Err(LaunchError::Preparation {
            what: "UEFI firmware".to_owned(),
            error: "OVMF is not installed".to_owned(),
        });
    };
    let vars = layout.uefi_vars(vm);
    if !vars.exists() {
        let copied = put_whole(&vars, |file| {
            io::copy(&mut File::open(fresh)?, file).map(drop)
        });
        copied.map_err(unprepared(&vars))?;
    }
    Ok(Flash {
        code: code.into(),
        vars,
    })
}
