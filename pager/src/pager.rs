//! The pager.

use crate::install::Content;
use crate::shared::Shared;
use crate::state::PageState;
use crate::{FaultQueue, FaultStats, GuestRegion, PagerError, Prepared};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vmotion_dirty_tracking::PageBitmap;
use vmotion_model::PAGE_SIZE;

/// How far from a page its neighbourhood reaches, in pages: 8 MiB each way.
const NEIGHBOURHOOD_PAGES: u64 = 2048;

/// The missing pages of one machine. All calls may be made from several threads at a time, none blocks for anything but the kernel.
///
/// When [`Self::remaining`] is 0 the kernel sends no more events; the userfaultfds are closed when this and the queues are dropped.
#[derive(Debug)]
pub struct Pager {
    pub(crate) shared: Arc<Shared>,
}

impl Pager {
    /// [`Prepared::new`] and [`Prepared::arm`] in one, for whoever has time for the first when the second is due.
    ///
    /// # Errors
    /// [`PagerError`]; the memory is then as it was.
    pub fn arm(
        memfd: &File,
        regions: &[GuestRegion],
        missing: &PageBitmap,
        shards: usize,
    ) -> Result<(Self, Vec<FaultQueue>), PagerError> {
        Prepared::new(memfd, regions, shards)?.arm(missing)
    }

    /// Pages from `first` on arrived: `bytes`, which are whole pages and were verified. Those still missing are written, mapped,
    /// and their waiters woken; for all others nothing happens, so a page may well come twice, and to several threads at a time.
    /// How many were missing.
    ///
    /// # Errors
    /// [`PagerError::Outside`] and [`PagerError::NotPages`] for pages that do not exist; [`PagerError::Abandoned`]; [`PagerError::Kernel`] when a page could not be
    /// written (it is missing still, and a thread that waits for it demands it again) or mapped (it is here, and the next fault
    /// tries again).
    pub fn complete_from(&self, first: u64, bytes: &[u8]) -> Result<u64, PagerError> {
        let (pages, rest) = (bytes.len() as u64 / PAGE_SIZE, bytes.len() as u64 % PAGE_SIZE);
        if rest != 0 {
            return Err(PagerError::NotPages { first, bytes: bytes.len() });
        }
        self.shared.install(self.shared.check(first, pages)?, Content::Bytes(bytes))
    }

    /// The `pages` pages from `first` on turned out to be zero. Like [`Self::complete_from`]: old bytes are cleared; a page that has
    /// none gets memory only when somebody waits for it, and at its first touch otherwise.
    ///
    /// # Errors
    /// As for [`Self::complete_from`].
    pub fn complete_zero(&self, first: u64, pages: u64) -> Result<u64, PagerError> {
        self.shared.install(self.shared.check(first, pages)?, Content::Zero)
    }

    /// Are the bytes of this page still elsewhere? Pages beyond the end are not missing.
    #[must_use]
    pub fn is_missing(&self, index: u64) -> bool {
        !self.shared.states.get(index).is_here()
    }

    /// Pages that are missing.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.shared.remaining.load(Ordering::Acquire)
    }

    /// Pages near `index` that are missing and that nobody asked for, nearest first, at most `max`, at most 8 MiB away. What
    /// [`Self::ask`] was called for does not come again.
    #[must_use]
    pub fn missing_near(&self, index: u64, max: usize) -> Vec<u64> {
        let both = |distance: u64| [index.checked_add(distance), index.checked_sub(distance)];
        let near = (1..=NEIGHBOURHOOD_PAGES).flat_map(both).flatten();
        near.filter(|near| self.shared.states.get(*near) == PageState::Missing).take(max).collect()
    }

    /// The page is fetched though nobody waits for it: whether that is needed. A later fault on it waits, and demands nothing.
    #[must_use]
    pub fn ask(&self, index: u64) -> bool {
        self.shared.states.change(index, |state| Some((state.ask()?, ()))).is_some()
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> FaultStats {
        self.shared.counters.stats()
    }
}
