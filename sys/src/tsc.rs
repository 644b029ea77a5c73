//! The host's time-stamp counter.

/// Reads the host's TSC on the current processor.
#[must_use]
pub fn host_tsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux leaves it enabled for user space.
    unsafe { std::arch::x86_64::_rdtsc() }
}
