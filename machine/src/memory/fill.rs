//! Plain `&mut [u8]` views of guest memory, for decoders that write where the bytes belong.
//!
//! They are sound because a [`Filling`] exists only while no vCPU and no device runs, keeps both from starting, and takes
//! the stripe locks that every other access of this process takes too.

use super::{GuestRam, OutsideRam, to_usize};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use vmotion_model::PAGE_SIZE;

/// Permission to write guest memory in place. While one lives, the machine cannot be resumed.
#[derive(Debug)]
pub struct Filling {
    ram: Arc<GuestRam>,
    fillers: Arc<AtomicUsize>,
}

impl Filling {
    /// Longest run that one view covers, in pages.
    pub const RUN_PAGES_MAX: u64 = super::STRIPE_PAGES;

    /// Only for the machine, which knows that nothing runs, and checks `fillers` before it resumes anything.
    pub(crate) fn new(ram: Arc<GuestRam>, fillers: Arc<AtomicUsize>) -> Self {
        fillers.fetch_add(1, Ordering::SeqCst);
        Self { ram, fillers }
    }

    /// The memory being filled.
    #[must_use]
    pub const fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Calls `fill` with the `pages` pages from `first` on. The run must not cross from one memory region into the
    /// next and is at most [`Self::RUN_PAGES_MAX`] pages. `fill` must not access guest memory in any other way.
    ///
    /// # Errors
    /// [`OutsideRam`] for a run that breaks these rules.
    pub fn with_run_mut<R>(&self, first: u64, pages: u64, fill: impl FnOnce(&mut [u8]) -> R) -> Result<R, OutsideRam> {
        let total = self.ram.total_pages();
        let outside = OutsideRam { first, end: first.saturating_add(pages), total };
        if pages > Self::RUN_PAGES_MAX {
            return Err(outside);
        }
        let bytes = to_usize(pages * PAGE_SIZE);
        let run = self.ram.check(first, pages, bytes)?;
        let _locks = self.ram.lock_write(&run);
        let mut parts = self.ram.parts(run);
        let (Some((region, offset, part)), None) = (parts.next(), parts.next()) else { return Err(outside) };
        debug_assert_eq!(part.len(), bytes, "a run in one region is one part");
        // SAFETY: `parts` gives an offset within the region's mapping.
        let address = unsafe { region.as_ptr().add(to_usize(offset.0)) };
        // SAFETY: the range is mapped, and nothing else accesses it: vCPUs and devices do not run while `self` lives,
        // and this process's other accesses are held off by the stripe locks.
        let view = unsafe { std::slice::from_raw_parts_mut(address, bytes) };
        Ok(fill(view))
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        if self.fillers.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.ram.decline_huge_pages();
        }
    }
}
