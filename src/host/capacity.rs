//! How much memory and how many processors there are for VMs.

use super::cgroup;
use std::{fs, io, thread};
use vman_model::Capacity;

const MIB: u64 = 1024 * 1024;

/// What this host has, or what this daemon's control group leaves of it.
pub fn look() -> io::Result<Capacity> {
    let total = memory_total(&fs::read_to_string("/proc/meminfo")?);
    let total = total.ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal"))?;
    let memory = cgroup::own_memory_limit().map_or(total, |limit| total.min(limit));
    Ok(Capacity {
        memory_mib: memory / MIB,
        cpus: thread::available_parallelism()?.get() as u64,
    })
}

/// `MemTotal:  N kB` (proc(5)), in bytes.
fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_memory_is_read_as_the_kernel_tells_it() {
        let told = "MemTotal:       24683672 kB\nMemFree: 1 kB\n";
        assert_eq!(memory_total(told), Some(24_683_672 * 1024));
        for odd in [
            "",
            "MemTotal: many kB",
            "MemTotal: 1",
            "MemTotal: 99999999999999999999 kB",
        ] {
            assert_eq!(memory_total(odd), None, "{odd}");
        }
        let here = look().unwrap();
        assert!(here.memory_mib > 0 && here.cpus > 0, "{here:?}");
    }
}
