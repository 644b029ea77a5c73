//! Missing pages arrive.

use crate::PagerError;
use crate::error::keep_first;
use crate::local::OnMapped;
use crate::plan::Registration;
use crate::shared::Shared;
use crate::space::{Space, bytes_of, to_usize};
use crate::state::PageState;
use crate::stats::count;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Instant;
use vmotion_model::PAGE_SIZE;
use vmotion_sys::memory::data_ranges;
use vmotion_sys::userfaultfd::Progress;

/// From so many pages on, one system call that maps all of them in B is cheaper than a fault for each.
const POPULATE_PAGES_MIN: u64 = 8;

/// From so many mappings on, taken by registered memory and what lies between, no more are made by unregistering parts of it: half
/// of what a process may have by default (`vm.max_map_count`). The rest of the process needs some too.
const MAPPINGS_MAX: i64 = 32_768;

/// What arrives.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Content<'a> {
    /// These bytes, of the pages from the first one named on.
    Bytes(&'a [u8]),
    /// Zeros.
    Zero,
}

/// What was written.
struct Filled {
    /// The pages the memfd has memory for now, which can be mapped; the others are holes still.
    holding: Vec<Range<u64>>,
    zero: bool,
}

impl Shared {
    /// Puts `content` in place where pages of `pages` are missing and nobody else is doing so. How many those were.
    pub(crate) fn install(&self, pages: Range<u64>, content: Content<'_>) -> Result<u64, PagerError> {
        if self.abandoned.load(Ordering::Acquire) {
            return Err(PagerError::Abandoned);
        }
        let first = pages.start;
        let mut installed = 0;
        for (block, part) in self.space.parts(pages) {
            let mut at = part.start;
            while at < part.end {
                let claimed = self.claim(at..part.end);
                at = claimed.end.max(at + 1);
                if claimed.is_empty() {
                    continue;
                }
                // What is mapped belongs to the guest from then on, whatever becomes of the rest.
                let of = |run: &Range<u64>| match content {
                    Content::Bytes(bytes) => {
                        Content::Bytes(&bytes[bytes_of(run.start - first)..bytes_of(run.end - first)])
                    }
                    Content::Zero => Content::Zero,
                };
                let rest = claimed.start + self.copy_into_holes(block, &claimed, of(&claimed))..claimed.end;
                let mut result = Ok(());
                if rest.start > claimed.start {
                    installed += rest.start - claimed.start;
                    result =
                        self.finish(block, claimed.start..rest.start, &Filled { holding: Vec::new(), zero: false });
                }
                if !rest.is_empty() {
                    let filled = match self.fill(block, &rest, of(&rest)) {
                        Ok(filled) => filled,
                        Err(error) => {
                            self.give_back(block, rest)?;
                            return Err(PagerError::kernel("write guest memory")(error));
                        }
                    };
                    installed += rest.end - rest.start;
                    keep_first(&mut result, self.finish(block, rest, &filled));
                }
                result?;
            }
        }
        Ok(installed)
    }

    /// Moves the pages from the start of `run` on to filling, as far as they are missing; empty when the first is not.
    fn claim(&self, run: Range<u64>) -> Range<u64> {
        let claim = |index: &u64| self.states.change(*index, |state| Some((state.begin()?, ()))).is_some();
        let claimed = run.clone().take_while(claim).count() as u64;
        run.start..run.start + claimed
    }

    /// Writes through B; the pages are claimed and not mapped in A, so nobody sees how.
    fn fill(&self, block: u64, run: &Range<u64>, content: Content<'_>) -> io::Result<Filled> {
        if self.whole_blocks {
            // Where no huge page is left, this is an error and a write would be a signal.
            self.alias.populate(Space::alias_bytes(&self.space.block_pages(block)))?;
        }
        let place = Space::alias_bytes(run);
        match content {
            Content::Bytes(bytes) => {
                if run.end - run.start >= POPULATE_PAGES_MIN && !self.whole_blocks {
                    self.alias.populate(place.clone())?;
                }
                self.alias.write(place.start, bytes)?;
                Ok(Filled { holding: std::iter::once(run.clone()).collect(), zero: false })
            }
            Content::Zero => {
                let base = self.space.file_base();
                let old = data_ranges(&self.memfd, base + place.start as u64..base + place.end as u64)?;
                let in_alias = |bytes: Range<u64>| {
                    to_usize(bytes.start - base).max(place.start)..to_usize(bytes.end - base).min(place.end)
                };
                let old: Vec<_> = old.into_iter().map(in_alias).collect();
                old.iter().try_for_each(|bytes| self.alias.clear(bytes.clone()))?;
                let pages = |bytes: &Range<usize>| bytes.start as u64 / PAGE_SIZE..bytes.end as u64 / PAGE_SIZE;
                Ok(Filled { holding: old.iter().map(pages).collect(), zero: true })
            }
        }
    }

    /// Writes straight into A where the memfd has holes, which maps the pages and wakes their waiters at the same time. How many pages
    /// that were: those before the first that the memfd has, which is out of date. Whatever else is in the way is left to the other way
    /// of placing pages, which says what it was.
    fn copy_into_holes(&self, block: u64, run: &Range<u64>, content: Content<'_>) -> u64 {
        match content {
            Content::Bytes(bytes) if !self.whole_blocks => {
                let (region, within) = self.space.within_region(run);
                self.userfault_of(block).copy(&self.mappings[region].part(within), bytes).bytes as u64 / PAGE_SIZE
            }
            Content::Bytes(_) | Content::Zero => 0,
        }
    }

    /// The claimed pages of `run` are missing again. Whoever waits for one is woken: its next fault demands it again.
    fn give_back(&self, block: u64, run: Range<u64>) -> Result<(), PagerError> {
        let mut wake = Ok(());
        for index in run {
            if self.states.change(index, PageState::give_back) == Some(true) {
                let woken = if self.whole_blocks { self.space.block_pages(block) } else { index..index + 1 };
                keep_first(&mut wake, self.wake(block, &woken));
            }
        }
        wake
    }

    /// The bytes of `run` are in place: maps them, wakes who waits, and accounts for it all.
    fn finish(&self, block: u64, run: Range<u64>, filled: &Filled) -> Result<(), PagerError> {
        // When mapping fails, the pages are here all the same: those who wait find that out with their next fault.
        let mut result = Ok(());
        if !self.whole_blocks {
            for holding in &filled.holding {
                keep_first(&mut result, self.map_run(block, holding.clone(), OnMapped::Skip).map(drop));
            }
        }
        let pages = run.end - run.start;
        let mut demanded = Vec::new();
        for index in run {
            if self.states.change(index, PageState::finish) == Some(true) {
                demanded.push(index);
            }
        }
        count(&self.counters.pages_demanded, demanded.len() as u64);
        count(&self.counters.pages_pushed, pages - demanded.len() as u64);
        count(&self.counters.pages_zero, if filled.zero { pages } else { 0 });
        if !self.whole_blocks && !demanded.is_empty() {
            if result.is_err() || filled.zero {
                for index in &demanded {
                    keep_first(&mut result, self.answer_arrived(block, *index, filled.zero));
                }
            }
            let now = Instant::now();
            let mut waiters = self.waiters_of(block);
            demanded.iter().for_each(|index| self.counters.fetched(waiters.take(*index), now));
        }
        let pages_of_block = u32::try_from(pages).expect("a run within a block has at most 512 pages");
        if self.missing_of(block).fetch_sub(pages_of_block, Ordering::AcqRel) == pages_of_block {
            keep_first(&mut result, self.finish_block(block));
        }
        if self.remaining.fetch_sub(pages, Ordering::AcqRel) == pages {
            keep_first(&mut result, self.finish_all());
        }
        result
    }

    /// Somebody waits for a page that arrived but may not be mapped: a zero page is still a hole of the memfd.
    fn answer_arrived(&self, block: u64, index: u64, zero: bool) -> Result<(), PagerError> {
        let run = index..index + 1;
        if zero {
            let Progress { obstacle, .. } = self.userfault_of(block).map_zero(&self.space.addresses(&run));
            if obstacle.is_none() {
                return Ok(());
            }
        }
        self.wake(block, &run)
    }

    /// Nothing of a block is missing any more: later faults are the kernel's own business.
    fn finish_block(&self, block: u64) -> Result<(), PagerError> {
        let pages = self.space.block_pages(block);
        let mut result = Ok(());
        if self.whole_blocks {
            result = self.answer_block(block);
            let waiters = self.waiters_of(block).take(pages.start);
            self.counters.fetched(waiters, Instant::now());
        }
        keep_first(&mut result, self.unregister(block, &pages));
        // Unregistering wakes before it unregisters; a thread that came to wait between the two would do so for ever.
        keep_first(&mut result, self.wake(block, &pages));
        result
    }

    /// Gives a block back to the kernel, unless that would split a mapping when there are many: then its faults are answered here
    /// until the end.
    fn unregister(&self, block: u64, pages: &Range<u64>) -> Result<(), PagerError> {
        let beside = [block.checked_sub(1), Some(block + 1)];
        let watched_beside = beside.into_iter().flatten().filter(|beside| self.is_watched(*beside)).count();
        // Between two that stay registered it makes two mappings more; between two that are not, it joins three to one.
        let more = match watched_beside {
            2 => 2,
            1 => 0,
            _ => -2,
        };
        if more > 0 && self.mappings_taken.load(Ordering::Relaxed) >= MAPPINGS_MAX {
            return Ok(());
        }
        match self.userfault_of(block).unregister(&self.space.addresses(pages)) {
            Ok(()) => {
                self.watched[to_usize(block)].store(false, Ordering::Release);
                self.mappings_taken.fetch_add(more, Ordering::Relaxed);
                Ok(())
            }
            // Too many mappings all the same.
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => Ok(()),
            Err(error) => Err(PagerError::kernel("unregister guest memory")(error)),
        }
    }

    /// Nothing is missing any more: whatever is registered still is not from now on, and the kernel sends no more events.
    fn finish_all(&self) -> Result<(), PagerError> {
        let mut result = Ok(());
        let is_left = |registration: &&Registration| {
            self.space.parts(registration.pages.clone()).any(|(block, _)| self.is_watched(block))
        };
        for registration in self.registrations.iter().filter(is_left) {
            let addresses = self.space.addresses(&registration.pages);
            let userfault = &self.userfaults[registration.shard];
            for done in [userfault.unregister(&addresses), userfault.wake(&addresses)] {
                keep_first(&mut result, done.map_err(PagerError::kernel("unregister guest memory")));
            }
        }
        result
    }
}
