//! Mapping pages whose bytes are here.

use crate::PagerError;
use crate::queue::Fault;
use crate::shared::Shared;
use crate::space::{BLOCK_PAGES, Space};
use crate::state::PageState;
use crate::stats::count;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Instant;
use vmotion_model::PAGE_SIZE;
use vmotion_sys::memory::data_ranges;
use vmotion_sys::userfaultfd::{Obstacle, Progress};

/// Pages mapped before the waiting thread is woken; the rest of their run follows while it goes on.
const FIRST_PAGES: u64 = 16;
/// Tries before "mappings are changing" is an error; each gives the processor away.
const TRIES_MAX: u32 = 10_000;

/// What to do about a page that is mapped already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnMapped {
    /// Go on behind it.
    Skip,
    /// Leave the rest to its own faults: the run is mapped already, or somebody is about it.
    Stop,
}

/// How far mapping a run got.
#[derive(Debug, Default)]
pub(crate) struct Mapped {
    /// Pages mapped now.
    pub(crate) pages: u64,
    /// The first page could not be mapped because it was.
    pub(crate) first_was_mapped: bool,
    /// The first page could not be mapped because the memfd has none there.
    pub(crate) first_is_hole: bool,
}

impl Shared {
    /// Answers a fault on a page that is here, and maps those beside it that are likely to be unmapped for the same reason.
    pub(crate) fn answer(&self, block: u64, fault: &Fault) -> Result<(), PagerError> {
        let beside = if self.whole_blocks {
            self.answer_block(block)?;
            None
        } else {
            self.answer_page(block, fault.index, fault.minor)?
        };
        self.counters.local(fault.read_at, Instant::now());
        for run in beside.into_iter().flatten() {
            let mapped = self.map_run(block, run, OnMapped::Stop)?;
            count(&self.counters.pages_mapped, mapped.pages);
        }
        Ok(())
    }

    /// Maps `index` and wakes its waiters. Returns what is left of the run of pages around it that were never missing, where that
    /// may have lost its translations together with it: behind it first, as memory is mostly read forwards.
    fn answer_page(&self, block: u64, index: u64, minor: bool) -> Result<Option<[Range<u64>; 2]>, PagerError> {
        let was_missing = self.states.get(index) != PageState::Present;
        let mut minor = minor;
        for _ in 0..TRIES_MAX {
            if minor {
                let run = if was_missing { index..index + 1 } else { self.present_around(block, index) };
                let first = index..run.end.min(index + FIRST_PAGES);
                let mapped = self.map_run(block, first.clone(), OnMapped::Stop)?;
                if mapped.first_is_hole {
                    minor = false;
                    continue;
                }
                if mapped.first_was_mapped {
                    // Somebody was quicker, perhaps so much that this fault is over; perhaps not.
                    self.wake(block, &(index..index + 1))?;
                    return Ok(None);
                }
                if was_missing {
                    return Ok(None);
                }
                count(&self.counters.pages_mapped, mapped.pages);
                return Ok(Some([first.end..run.end, run.start..index]));
            }
            let range = self.space.addresses(&(index..index + 1));
            match self.userfault_of(block).map_zero(&range) {
                Progress { obstacle: None, .. } => {
                    count(&self.counters.pages_fresh, 1);
                    return Ok(None);
                }
                // The memfd has a page by now.
                Progress { obstacle: Some(Obstacle::Mapped), .. } => minor = true,
                Progress { obstacle: Some(obstacle), .. } => {
                    if self.stop_for(block, obstacle)? {
                        return Ok(None);
                    }
                }
            }
        }
        Err(PagerError::kernel("map a page")(io::ErrorKind::TimedOut.into()))
    }

    /// The pages around `index` in its block that were never missing.
    fn present_around(&self, block: u64, index: u64) -> Range<u64> {
        let pages = self.space.block_pages(block);
        let present = |index: &u64| self.states.get(*index) == PageState::Present;
        let end = (index..pages.end).take_while(present).last().map_or(index, |last| last + 1);
        let start = (pages.start..index).rev().take_while(present).last().unwrap_or(index);
        start..end
    }

    /// Answers a fault on a 2 MiB page all of which is here.
    pub(crate) fn answer_block(&self, block: u64) -> Result<(), PagerError> {
        let pages = self.space.block_pages(block);
        let mut mapped = self.map_run(block, pages.clone(), OnMapped::Stop)?;
        if mapped.first_is_hole {
            let populated = self.alias.populate(Space::alias_bytes(&pages));
            populated.map_err(PagerError::kernel("allocate a huge page"))?;
            count(&self.counters.pages_fresh, BLOCK_PAGES);
            mapped = self.map_run(block, pages.clone(), OnMapped::Stop)?;
        }
        if mapped.first_was_mapped { self.wake(block, &pages) } else { Ok(()) }
    }

    /// Maps the pages of `run`, all in one block, that the memfd has, and wakes their waiters.
    pub(crate) fn map_run(&self, block: u64, run: Range<u64>, on_mapped: OnMapped) -> Result<Mapped, PagerError> {
        let mut result = Mapped::default();
        let (mut at, mut tries) = (run.start, 0);
        let step = if self.whole_blocks { BLOCK_PAGES } else { 1 };
        while at < run.end {
            let Progress { bytes, obstacle } =
                self.userfault_of(block).map_existing(&self.space.addresses(&(at..run.end)));
            let pages = bytes as u64 / PAGE_SIZE;
            at += pages;
            result.pages += pages;
            match obstacle {
                None => {}
                Some(Obstacle::Mapped) => {
                    result.first_was_mapped |= at == run.start;
                    if on_mapped == OnMapped::Stop {
                        break;
                    }
                    at += step;
                }
                Some(Obstacle::Hole) => {
                    result.first_is_hole |= at == run.start;
                    if self.whole_blocks {
                        break;
                    }
                    at = self.next_data(at..run.end)?;
                }
                Some(obstacle) => {
                    tries += 1;
                    if self.stop_for(block, obstacle)? || tries == TRIES_MAX {
                        break;
                    }
                }
            }
        }
        Ok(result)
    }

    /// What the rarer obstacles mean: true when there is nothing left to do, false to try again.
    fn stop_for(&self, block: u64, obstacle: Obstacle) -> Result<bool, PagerError> {
        let failed = PagerError::kernel("map pages into guest memory");
        match obstacle {
            Obstacle::Changing => {
                std::thread::yield_now();
                Ok(false)
            }
            // Its last page arrived meanwhile: it is the kernel's own business again, and its waiters were or will be woken.
            Obstacle::NotRegistered if self.missing_of(block).load(Ordering::Acquire) == 0 => {
                self.wake(block, &self.space.block_pages(block))?;
                Ok(true)
            }
            Obstacle::NotRegistered => Err(failed(io::ErrorKind::NotFound.into())),
            Obstacle::Other(error) => Err(failed(error)),
            Obstacle::Mapped | Obstacle::Hole => Ok(true),
        }
    }

    /// The first page of `run` that the memfd has after a hole at its start, or its end.
    fn next_data(&self, run: Range<u64>) -> Result<u64, PagerError> {
        let base = self.space.file_base();
        let bytes = base + run.start * PAGE_SIZE..base + run.end * PAGE_SIZE;
        let data = data_ranges(&self.memfd, bytes).map_err(PagerError::kernel("ask where the memfd has holes"))?;
        Ok(data.first().map_or(run.end, |data| (data.start - base) / PAGE_SIZE).max(run.start + 1))
    }
}
