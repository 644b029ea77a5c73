//! Giving up on what is missing.

use crate::error::keep_first;
use crate::shared::Shared;
use crate::{Pager, PagerError};
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use vmotion_model::PAGE_SIZE;
use vmotion_sys::userfaultfd::{Features, Obstacle, Progress};

impl Pager {
    /// Gives up: every thread that waits for a missing page, and every later one that touches one, gets an error instead of hanging
    /// or of seeing old bytes: `SIGBUS` in user mode, `EFAULT` in system calls, an error of `KVM_RUN`. (Before Linux 6.6: `SIGSEGV`, and
    /// for all of the 2 MiB around.) Pages that are here stay usable, as long as their faults are resolved. How many pages were
    /// given up. Dropping a pager with missing pages does the same.
    ///
    /// # Errors
    /// The first [`PagerError::Kernel`]; everything that could be given up was.
    pub fn abandon(&self) -> Result<u64, PagerError> {
        let shared = &*self.shared;
        shared.abandoned.store(true, Ordering::Release);
        let mut result = Ok(());
        for block in 0..shared.space.blocks() {
            if shared.missing_of(block).load(Ordering::Acquire) > 0 {
                keep_first(&mut result, shared.abandon_block(block));
            }
        }
        result.map(|()| shared.remaining.load(Ordering::Acquire))
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        if self.remaining() > 0 && !self.shared.abandoned.load(Ordering::Acquire) {
            // Nobody is left to tell; what the kernel refused stays registered until the queues are dropped too.
            let _ = self.abandon();
        }
    }
}

impl Shared {
    fn abandon_block(&self, block: u64) -> Result<(), PagerError> {
        let pages = self.space.block_pages(block);
        if !self.userfault_of(block).features().contain(Features::POISON) {
            return self.forbid_block(block);
        }
        if self.whole_blocks {
            return self.poison(block, pages);
        }
        let mut at = pages.start;
        while at < pages.end {
            let missing = (at..pages.end).take_while(|index| !self.states.get(*index).is_here()).count() as u64;
            self.poison(block, at..at + missing)?;
            at += missing + 1;
        }
        Ok(())
    }

    fn poison(&self, block: u64, run: Range<u64>) -> Result<(), PagerError> {
        let mut at = run.start;
        while at < run.end {
            let Progress { bytes, obstacle } = self.userfault_of(block).poison(&self.space.addresses(&(at..run.end)));
            at += bytes as u64 / PAGE_SIZE;
            let failed = PagerError::kernel("poison missing pages");
            match obstacle {
                None => {}
                // It arrived meanwhile.
                Some(Obstacle::Mapped) => at += 1,
                Some(Obstacle::Changing) => std::thread::yield_now(),
                Some(Obstacle::NotRegistered) if self.missing_of(block).load(Ordering::Acquire) == 0 => return Ok(()),
                Some(Obstacle::Other(error)) => return Err(failed(error)),
                Some(Obstacle::Hole | Obstacle::NotRegistered) => return Err(failed(io::ErrorKind::NotFound.into())),
            }
        }
        Ok(())
    }

    /// What kernels without poison can do.
    fn forbid_block(&self, block: u64) -> Result<(), PagerError> {
        let pages = self.space.block_pages(block);
        let (region, bytes) = self.space.within_region(&pages);
        let forbidden = self.mappings[region].part(bytes).forbid();
        forbidden.map_err(PagerError::kernel("forbid access to missing pages"))?;
        self.wake(block, &pages)
    }
}
