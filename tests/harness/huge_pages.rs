//! Huge pages for guests, for as long as a test needs them.

use std::fs;

const RESERVED: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

/// Pages of 2 MiB, reserved besides those that were before; given back when dropped.
pub struct HugePages(u64);

impl HugePages {
    /// `None` where the kernel does not have them, or no memory in one piece for them.
    pub fn reserve(pages: u64) -> Option<Self> {
        let before = number(RESERVED)?;
        let huge = Self(pages);
        fs::write(RESERVED, (before + pages).to_string()).ok()?;
        (number(RESERVED)? >= before + pages).then_some(huge)
    }

    /// Pages that nobody has.
    pub fn free() -> u64 {
        number(FREE).unwrap_or(0)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Some(now) = number(RESERVED) {
            let _ = fs::write(RESERVED, now.saturating_sub(self.0).to_string());
        }
    }
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
