//! What this host lets be done to confine a QEMU, found out by doing it.
//!
//! Owns: the trials. Measures are independent: each is tried alone, so that one that lacks takes no
//! other with it. Must not: decide that a VM starts with less; the mode does (`mod.rs`).

use super::{Cage, Jail, cage::User, give, is_root, landlock, root::Root};
use crate::{
    config::JailMode,
    host::{cgroup::Cgroups, qemu::cmdline::Accel},
};
use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{process::Command, time::timeout};
use vman_model::{VmId, vm::Measure};

/// How long a trial may take.
const TRIAL_DEADLINE: Duration = Duration::from_secs(5);

/// What this host lets be done.
#[derive(Debug, Default)]
pub(super) struct Abilities {
    pub(super) measures: Vec<Measure>,
    /// What `VMAN_JAIL=require` insists on and is not to be had, with the reason.
    pub(super) lacking: Vec<String>,
    /// What is not to be had and nobody insists on.
    pub(super) left_out: Vec<String>,
    /// Beside the one that enters the folders.
    pub(super) groups: Vec<u32>,
    pub(super) cgroups: Arc<Cgroups>,
}

impl Abilities {
    fn take_cgroups(&mut self, cgroups: Cgroups) {
        self.measures.extend(cgroups.measures());
        for (measure, why) in &cgroups.lacking {
            let told = format!("{}: {why}", measure.as_str());
            // A share of the disks is a courtesy among VMs, and few schedulers of disks know it.
            if *measure == Measure::CgroupIo {
                self.left_out.push(told);
            } else {
                self.lacking.push(told);
            }
        }
        self.cgroups = Arc::new(cgroups);
    }
}

impl Jail {
    pub(super) async fn find_out(&self, accel: Accel) -> Abilities {
        // It is on QEMU's command line in every case.
        let mut found = Abilities {
            measures: vec![Measure::Seccomp],
            ..Abilities::default()
        };
        if self.config.mode == JailMode::Off {
            found
                .lacking
                .push("anything else: VMAN_JAIL=off".to_owned());
            return found;
        }
        let bounding = is_root();
        let bare = || Cage {
            bounding,
            ..Cage::default()
        };
        if let Err(why) = self.try_out(bare()).await {
            found.lacking.push(format!("anything else: {why}"));
            return found;
        }
        found.measures.extend([
            Measure::NoCapabilities,
            Measure::NoNewPrivileges,
            Measure::ResourceLimits,
            Measure::OomScore,
        ]);
        let ipc = Cage {
            ipc: true,
            ..bare()
        };
        let network = Cage {
            network: true,
            ..bare()
        };
        let vm = VmId::parse("trial").expect("letters are an id");
        let own = self.own(&vm);
        let landlock = async {
            let rules = landlock::rules(&own).map_err(|error| error.to_string())?;
            let landlock = Some(rules);
            self.try_out(Cage { landlock, ..bare() }).await
        };
        let mount = async {
            let root = Root::of(&own, &self.layout.empty()).map_err(|error| error.to_string())?;
            let root = Some(root);
            self.try_out(Cage { root, ..bare() }).await
        };
        let cgroups = tokio::task::spawn_blocking({
            let layout = self.layout.clone();
            move || Cgroups::find_out(&layout.all_cgroups())
        });
        let (ipc, network, landlock, mount, user, cgroups) = tokio::join!(
            self.try_out(ipc),
            self.try_out(network),
            landlock,
            mount,
            self.try_user(accel, bare()),
            cgroups
        );
        match user {
            Ok(groups) => {
                found.measures.push(Measure::OwnUser);
                found.groups = groups;
            }
            Err(why) => found.lacking.push(format!("own_user: {why}")),
        }
        for (measure, tried) in [
            (Measure::Landlock, landlock),
            (Measure::IpcNamespace, ipc),
            (Measure::MountNamespace, mount),
            (Measure::NetworkNamespace, network),
        ] {
            match tried {
                Ok(()) => found.measures.push(measure),
                Err(why) => found.lacking.push(format!("{}: {why}", measure.as_str())),
            }
        }
        found.take_cgroups(cgroups.unwrap_or_default());
        found
    }

    /// Whether a QEMU can have a user of its own, and which further groups it then needs.
    async fn try_user(&self, accel: Accel, bare: Cage) -> Result<Vec<u32>, String> {
        if !is_root() {
            return Err("the daemon does not run as root".to_owned());
        }
        passable(&self.layout.storage)?;
        let groups = match accel {
            Accel::Kvm => kvm_groups()?,
            Accel::Tcg => Vec::new(),
        };
        let shared = self.config.first_uid;
        let user = Some(User {
            uid: shared,
            groups: groups.clone(),
        });
        self.try_out(Cage { user, ..bare }).await?;
        let storage = &self.layout.storage;
        for folder in ["", "disks", "images", "vms"] {
            let folder = storage.join(folder);
            give(&folder, None, Some(shared))
                .and_then(|()| fs::set_permissions(&folder, Permissions::from_mode(0o710)))
                .map_err(|error| format!("{}: {error}", folder.display()))?;
        }
        Ok(groups)
    }

    /// Runs the binary in `cage`, to tell its version.
    async fn try_out(&self, cage: Cage) -> Result<(), String> {
        let mut command = Command::new(&self.binary);
        command
            .arg("-version")
            .env_clear()
            .current_dir("/")
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true);
        enter_before_exec(&mut command, cage);
        match timeout(TRIAL_DEADLINE, command.status()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(format!("QEMU does not start: {status}")),
            Ok(Err(error)) => Err(format!("QEMU does not start: {error}")),
            Err(_) => Err("QEMU did not start within 5 s".to_owned()),
        }
    }
}

#[allow(unsafe_code)]
fn enter_before_exec(command: &mut Command, cage: Cage) {
    // SAFETY: entering makes system calls on what was prepared before the fork; it allocates
    // nothing and takes no lock.
    unsafe { command.pre_exec(move || cage.enter()) };
}

/// Whether any user may pass through all folders above `path`.
fn passable(path: &Path) -> Result<(), String> {
    let whole = path
        .canonicalize()
        .map_err(|error| format!("{}: {error}", path.display()))?;
    for folder in whole.ancestors().skip(1) {
        let mode = fs::metadata(folder)
            .map_err(|error| format!("{}: {error}", folder.display()))?
            .mode();
        if mode & 0o001 == 0 {
            return Err(format!(
                "{} lets no other user pass: chmod o+x it, or choose another VMAN_STORAGE_PATH",
                folder.display()
            ));
        }
    }
    Ok(())
}

/// The groups with which another user may use /dev/kvm.
fn kvm_groups() -> Result<Vec<u32>, String> {
    let found = fs::metadata("/dev/kvm").map_err(|error| format!("/dev/kvm: {error}"))?;
    match found.mode() & 0o066 {
        mode if mode & 0o006 == 0o006 => Ok(Vec::new()),
        mode if mode & 0o060 == 0o060 => Ok(vec![found.gid()]),
        _ => Err("/dev/kvm is for its owner alone".to_owned()),
    }
}
