//! What to do about a fault.

use crate::queue::Fault;
use crate::shared::Shared;
use crate::state::FaultMeans;
use crate::stats::count;
use crate::{Pager, PagerError};
use std::ops::Range;
use std::sync::atomic::Ordering;

/// What became of a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// The page was here; the thread goes on.
    Answered,
    /// These pages, by index, must be fetched for it, the page that was touched among them. Said once for each page (and again
    /// only when writing its bytes failed). One page; of memory made of 2 MiB pages, all missing ones of the touched one.
    Demand(Vec<Range<u64>>),
    /// What it needs was demanded before, or is arriving.
    Waiting,
}

impl Pager {
    /// Answers a fault, or says what must be fetched. After that the thread goes on as soon as its page is complete.
    ///
    /// # Errors
    /// [`PagerError::Kernel`] when the kernel could not map a page that is here; the thread waits on. [`PagerError::Abandoned`] when
    /// the page was given up; the thread gets an error.
    pub fn resolve(&self, fault: &Fault) -> Result<Resolution, PagerError> {
        let shared = &*self.shared;
        let block = shared.space.block_of(fault.index);
        // Those who wait are woken where they were poisoned, after the flag was set.
        if shared.abandoned.load(Ordering::Acquire) && self.is_missing(fault.index) {
            return Err(PagerError::Abandoned);
        }
        let resolution =
            if shared.whole_blocks { shared.resolve_block(block, fault) } else { shared.resolve_page(block, fault) };
        match resolution {
            Resolution::Answered => shared.answer(block, fault)?,
            Resolution::Demand(_) => count(&shared.counters.faults_demanded, 1),
            Resolution::Waiting => count(&shared.counters.faults_waiting, 1),
        }
        Ok(resolution)
    }
}

impl Shared {
    fn resolve_page(&self, block: u64, fault: &Fault) -> Resolution {
        let index = fault.index;
        if self.states.get(index).is_here() {
            return Resolution::Answered;
        }
        // The lock, so that whoever completes the page either sees this waiter or lets it see a page that is here.
        let mut waiters = self.waiters_of(block);
        let means = self.states.change(index, |state| Some(state.fault())).unwrap_or(FaultMeans::Local);
        if means != FaultMeans::Local {
            waiters.add(index, fault.thread, fault.read_at);
        }
        match means {
            FaultMeans::Local => Resolution::Answered,
            FaultMeans::Demand => Resolution::Demand(std::iter::once(index..index + 1).collect()),
            FaultMeans::Wait => Resolution::Waiting,
        }
    }

    /// For memory made of 2 MiB pages: the block is mapped when all of it has arrived, so all of it is demanded.
    fn resolve_block(&self, block: u64, fault: &Fault) -> Resolution {
        let mut waiters = self.waiters_of(block);
        if self.missing_of(block).load(Ordering::Acquire) == 0 {
            return Resolution::Answered;
        }
        let pages = self.space.block_pages(block);
        waiters.add(pages.start, fault.thread, fault.read_at);
        let mut demanded: Vec<Range<u64>> = Vec::new();
        for index in pages {
            if self.states.change(index, |state| Some(state.fault())) == Some(FaultMeans::Demand) {
                match demanded.last_mut() {
                    Some(run) if run.end == index => run.end += 1,
                    _ => demanded.push(index..index + 1),
                }
            }
        }
        if demanded.is_empty() { Resolution::Waiting } else { Resolution::Demand(demanded) }
    }
}
