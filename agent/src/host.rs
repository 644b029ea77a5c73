//! What this host is and has.

use std::fs;
use vmotion_machine::probe_host;
use vmotion_model::{ByteSize, CpuModel, HostCapacity, error_chain};

/// Memory kept back for the host itself, in bytes.
const HOST_RESERVE_BYTES: u64 = 512 << 20;

/// CPU threads and memory for machines.
pub(crate) fn capacity(memory_used: ByteSize) -> HostCapacity {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    HostCapacity {
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        memory: ByteSize(total_memory().saturating_sub(HOST_RESERVE_BYTES)),
        memory_used,
    }
}

fn total_memory() -> u64 {
    meminfo(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal").bytes()
}

/// A line of `/proc/meminfo`; 0 when it is not there.
pub(crate) fn meminfo(text: &str, key: &str) -> ByteSize {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.trim().strip_suffix("kB"));
    ByteSize(value.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or(0).saturating_mul(1024))
}

/// The processors as guests see them; the reason in words when this host cannot run machines.
pub(crate) fn cpu() -> Result<CpuModel, String> {
    probe_host().map(|facts| facts.cpu).map_err(|error| error_chain(&error))
}
