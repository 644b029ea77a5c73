//! What the pager and its queues have in common.

use crate::PagerError;
use crate::plan::{Registration, Shards};
use crate::space::Space;
use crate::state::PageStates;
use crate::stats::{Counters, Waiters};
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use vmotion_sys::userfaultfd::{CheckedMapping, ServiceAlias, Userfault};

/// Everything about one machine's memory.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) space: Space,
    /// The memory is made of 2 MiB pages, so that a block is mapped as a whole or not at all.
    pub(crate) whole_blocks: bool,
    pub(crate) shards: Shards,
    /// One per shard.
    pub(crate) userfaults: Vec<Userfault>,
    /// B; byte n of it is byte n of all pages in index order.
    pub(crate) alias: ServiceAlias,
    /// A, one per region.
    pub(crate) mappings: Vec<CheckedMapping>,
    pub(crate) memfd: File,
    pub(crate) states: PageStates,
    /// Missing pages of each block.
    pub(crate) missing_of_block: Box<[AtomicU32]>,
    /// Missing pages of all.
    pub(crate) remaining: AtomicU64,
    pub(crate) registrations: Vec<Registration>,
    /// Which blocks are registered now.
    pub(crate) watched: Box<[AtomicBool]>,
    /// About how many mappings of the process that takes.
    pub(crate) mappings_taken: AtomicI64,
    pub(crate) abandoned: AtomicBool,
    /// One per shard.
    pub(crate) waiters: Vec<Mutex<Waiters>>,
    pub(crate) counters: Counters,
}

impl Shared {
    /// The userfaultfd that watches a block.
    pub(crate) fn userfault_of(&self, block: u64) -> &Userfault {
        &self.userfaults[self.shards.of(block)]
    }

    /// Who waits for pages of a block.
    pub(crate) fn waiters_of(&self, block: u64) -> MutexGuard<'_, Waiters> {
        self.waiters[self.shards.of(block)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Missing pages of a block.
    pub(crate) fn missing_of(&self, block: u64) -> &AtomicU32 {
        &self.missing_of_block[crate::space::to_usize(block)]
    }

    /// Is this block of pages registered now?
    pub(crate) fn is_watched(&self, block: u64) -> bool {
        self.watched.get(crate::space::to_usize(block)).is_some_and(|watched| watched.load(Ordering::Acquire))
    }

    /// Checks pages that a caller names, possibly on behalf of a peer.
    pub(crate) fn check(&self, first: u64, pages: u64) -> Result<Range<u64>, PagerError> {
        let total = self.space.pages();
        let end = first.checked_add(pages).filter(|end| *end <= total);
        let outside = || PagerError::Outside { first, end: first.saturating_add(pages), pages: total };
        end.map(|end| first..end).ok_or_else(outside)
    }

    /// Lets the threads that wait for `run`, pages of one block, try again.
    pub(crate) fn wake(&self, block: u64, run: &Range<u64>) -> Result<(), PagerError> {
        let woken = self.userfault_of(block).wake(&self.space.addresses(run));
        woken.map_err(PagerError::kernel("wake the threads that wait for a page"))
    }
}
