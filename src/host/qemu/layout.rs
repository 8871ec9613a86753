//! Where a VM's files are. A [`VmId`]'s charset holds neither a slash nor a leading dot, so an id is
//! a harmless file name.

use std::path::PathBuf;

use vman_model::VmId;

/// Beside the sockets: the note of a VM's control groups.
pub const CGROUPS_NOTE: &str = "cgroups";

/// The two roots. What is in the first means nothing after a reboot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// For sockets.
    pub runtime: PathBuf,
    /// For what stays.
    pub storage: PathBuf,
}

impl Layout {
    /// The folder of a VM's sockets.
    pub fn sockets(&self, vm: &VmId) -> PathBuf {
        self.runtime.join("vms").join(vm.as_str())
    }

    /// Our own monitor.
    pub fn qmp(&self, vm: &VmId) -> PathBuf {
        self.sockets(vm).join("qmp.sock")
    }

    /// The monitor kept for people.
    pub fn rescue(&self, vm: &VmId) -> PathBuf {
        self.sockets(vm).join("rescue.sock")
    }

    /// The serial console, for typing.
    pub fn console_socket(&self, vm: &VmId) -> PathBuf {
        self.sockets(vm).join("console.sock")
    }

    /// The guest agent's channel.
    pub fn agent(&self, vm: &VmId) -> PathBuf {
        self.sockets(vm).join("agent.sock")
    }

    /// Which control groups the VM's QEMU is in.
    pub fn cgroups(&self, vm: &VmId) -> PathBuf {
        self.sockets(vm).join(CGROUPS_NOTE)
    }

    /// The same of all VMs that have a folder of sockets.
    pub fn all_cgroups(&self) -> Vec<PathBuf> {
        let folders = std::fs::read_dir(self.runtime.join("vms"));
        let folders = folders.into_iter().flatten().flatten();
        folders
            .map(|folder| folder.path().join(CGROUPS_NOTE))
            .collect()
    }

    /// An empty folder, over which a QEMU's own root is mounted where only it sees that.
    pub fn empty(&self) -> PathBuf {
        self.runtime.join("empty")
    }

    /// The folder of a VM's own files.
    pub fn files(&self, vm: &VmId) -> PathBuf {
        self.storage.join("vms").join(vm.as_str())
    }

    /// What the serial console wrote.
    pub fn console_log(&self, vm: &VmId) -> PathBuf {
        self.files(vm).join("console.log")
    }

    /// What QEMU itself wrote.
    pub fn qemu_log(&self, vm: &VmId) -> PathBuf {
        self.files(vm).join("qemu.log")
    }

    /// The firmware's variables.
    pub fn uefi_vars(&self, vm: &VmId) -> PathBuf {
        self.files(vm).join("uefi-vars.fd")
    }

    /// All files of a VM that are the adapter's to erase.
    pub(super) fn own_files(&self, vm: &VmId) -> Vec<PathBuf> {
        let files = self.files(vm);
        let names = [
            "console.log",
            "console.log.1",
            "qemu.log",
            "qemu.log.1",
            "uefi-vars.fd",
        ];
        let mut paths: Vec<_> = names.iter().map(|name| files.join(name)).collect();
        paths.push(files.join("uefi-vars.fd.new"));
        paths
    }
}
