//! What a user asks a VM to be.

use crate::{
    ids::{ImageName, TemplateName},
    power::StartSpec,
    restart::RestartPolicy,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The largest memory a VM may be given, in MiB (16 TiB: more is a typing error).
pub const MAX_RAM_MIB: u64 = 16 * 1024 * 1024;
/// The most virtual CPUs a VM may be given (q35 with one socket takes 255 without an IOMMU).
pub const MAX_CPUS: u32 = 255;
/// The largest root disk, in MiB (64 TiB).
pub const MAX_DISK_MIB: u64 = 64 * 1024 * 1024;
/// The longest kernel command line, in bytes (Linux on x86 takes 2048 with its end).
pub const MAX_CMDLINE: usize = 2047;
/// The most labels on a template or VM.
pub const MAX_LABELS: usize = 64;

/// The firmware a VM boots with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Firmware {
    /// SeaBIOS.
    #[default]
    Bios,
    /// OVMF, with variables of its own for each VM.
    Uefi,
}

impl Firmware {
    /// The word the API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Firmware::Bios => "bios",
            Firmware::Uefi => "uefi",
        }
    }
}

/// Direct kernel boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSpec {
    /// The kernel image.
    pub kernel: ImageName,
    /// The initial RAM file system image.
    pub initrd: Option<ImageName>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// How a VM reaches a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkKind {
    /// QEMU's user-mode network.
    User,
    /// None.
    None,
    /// A TAP on a bridge of the host.
    Bridge,
}

impl NetworkKind {
    /// The word the API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            NetworkKind::User => "user",
            NetworkKind::None => "none",
            NetworkKind::Bridge => "bridge",
        }
    }
}

/// What a template says and a VM's request may override.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSize {
    /// Virtual CPUs, 1 to [`MAX_CPUS`].
    pub cpu_count: u32,
    /// Memory in MiB, 1 to [`MAX_RAM_MIB`].
    pub ram_mib: u64,
    /// The disk image its root disk is a clone of.
    pub image: Option<ImageName>,
    /// Direct kernel boot.
    pub boot: Option<BootSpec>,
    /// Firmware.
    pub firmware: Firmware,
    /// The root disk's size in MiB; the image's own size if it is not said.
    pub disk_mib: Option<u64>,
    /// Labels, for the user's own use.
    pub labels: BTreeMap<String, String>,
}

impl VmSize {
    /// Every image that it boots.
    pub fn images(&self) -> impl Iterator<Item = &ImageName> {
        let boot = self
            .boot
            .iter()
            .flat_map(|boot| std::iter::once(&boot.kernel).chain(&boot.initrd));
        self.image.iter().chain(boot)
    }

    /// Whether it boots `image` in any way.
    pub fn uses_image(&self, image: &ImageName) -> bool {
        self.images().any(|name| name == image)
    }
}

/// What follows when a guest's CPUs were stopped because its storage is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoErrorPolicy {
    /// It goes on by itself when there is space again.
    #[default]
    Resume,
    /// It waits for somebody to resume it.
    Hold,
}

impl IoErrorPolicy {
    /// The word the API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            IoErrorPolicy::Resume => "resume",
            IoErrorPolicy::Hold => "hold",
        }
    }
}

/// The highest weight of a control group (`cpu.weight`, `io.weight`; control group v2).
pub const MAX_WEIGHT: u16 = 10_000;

/// The highest quota of processor time, in percent of one processor (1000 processors).
pub const MAX_CPU_QUOTA: u32 = 100_000;

/// How much of the host a VM is asked to have beside its size. None: the usual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Its share of the processors where they are short, 1 to [`MAX_WEIGHT`].
    pub cpu_weight: Option<u16>,
    /// Processor time at most, in percent of one processor.
    pub cpu_quota: Option<u32>,
    /// Its share of the disks where they are short, 1 to [`MAX_WEIGHT`].
    pub io_weight: Option<u16>,
}

/// What a VM is asked to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// The template it was made from. The VM keeps its own copy of the values.
    pub template: TemplateName,
    /// Its size and what it boots.
    pub size: VmSize,
    /// When it is started again by itself.
    pub restart: RestartPolicy,
    /// What follows when its CPUs were stopped for want of space.
    pub io_error: IoErrorPolicy,
    /// How it comes up and goes down with the host.
    pub start: StartSpec,
    /// How much of the host it has beside its size.
    pub resources: Resources,
}
