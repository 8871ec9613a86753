//! How much of the host one VM's QEMU may use. Plain values: whether they are set on a group of our
//! own (`mod.rs`) or on a scope of systemd's is not known here.

use crate::host::qemu::cmdline::Accel;
use vman_model::vm::Resources;

const MIB: u64 = 1024 * 1024;
/// What QEMU 7.2 takes beside its guest's memory: 47 MiB when it has started, with devices, queues
/// and caches under load some 150.
const OVERHEAD: u64 = 256 * MIB;
/// Stacks and buffers of a virtual CPU.
const OVERHEAD_PER_CPU: u64 = 16 * MIB;
/// Page tables and dirty bitmaps: one part in so many of the guest's memory.
const OVERHEAD_SHARE: u64 = 64;
/// The buffer of translated code that QEMU's own emulation may fill (`tb-size`, 1 GiB at most).
const TRANSLATED_CODE: u64 = 1024 * MIB;
/// Threads and processes: far more than QEMU has with 255 processors and as many queues.
const TASKS: u64 = 2_048;
/// The kernel's weight of a group that says nothing, for one virtual CPU.
const WEIGHT_PER_CPU: u64 = 100;
const HIGHEST_WEIGHT: u64 = 10_000;

/// What one VM's QEMU may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory, QEMU's own included; beyond it the kernel ends this QEMU and no other.
    pub memory_max: u64,
    /// Its share of the processors where they are short, 1 to 10,000; 100 is what others have.
    pub cpu_weight: u64,
    /// Processor time in percent of one processor, at most; none for as much as there is.
    pub cpu_quota_percent: Option<u64>,
    /// Threads and processes.
    pub tasks_max: u64,
    /// Its share of the disks where they are short, 1 to 10,000; none for what others have.
    pub io_weight: Option<u64>,
}

impl Limits {
    /// For a VM of this size, with what its user asked for.
    pub fn of(cpu_count: u32, ram_mib: u64, accel: Accel, asked: Resources) -> Self {
        let (cpus, ram) = (u64::from(cpu_count), ram_mib.saturating_mul(MIB));
        let translated = match accel {
            Accel::Kvm => 0,
            Accel::Tcg => TRANSLATED_CODE,
        };
        let overhead = OVERHEAD + OVERHEAD_PER_CPU * cpus + ram / OVERHEAD_SHARE + translated;
        let usual = (WEIGHT_PER_CPU * cpus).clamp(1, HIGHEST_WEIGHT);
        Self {
            memory_max: ram.saturating_add(overhead),
            cpu_weight: asked.cpu_weight.map_or(usual, u64::from),
            cpu_quota_percent: asked.cpu_quota.map(u64::from),
            tasks_max: TASKS,
            io_weight: asked.io_weight.map(u64::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_the_guests_and_what_qemu_needs_beside_it() {
        let limits = |accel| Limits::of(2, 1024, accel, Resources::default());
        let kvm = limits(Accel::Kvm);
        assert_eq!(kvm.memory_max, (1024 + 256 + 2 * 16 + 16) * MIB);
        assert_eq!(limits(Accel::Tcg).memory_max, kvm.memory_max + 1024 * MIB);
        assert_eq!((kvm.cpu_weight, kvm.cpu_quota_percent), (200, None));
    }

    #[test]
    fn what_is_asked_for_is_taken_and_the_largest_vm_overflows_nothing() {
        let asked = Resources {
            cpu_weight: Some(7),
            cpu_quota: Some(150),
            io_weight: Some(9),
        };
        let limits = Limits::of(255, u64::MAX / MIB, Accel::Tcg, asked);
        assert_eq!(
            (
                limits.cpu_weight,
                limits.cpu_quota_percent,
                limits.io_weight
            ),
            (7, Some(150), Some(9))
        );
        assert_eq!(limits.memory_max, u64::MAX);
        let usual = Limits::of(255, 1, Accel::Kvm, Resources::default());
        assert_eq!(usual.cpu_weight, 10_000);
    }
}
