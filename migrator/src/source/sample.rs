//! How fast does the guest write? Seen on a sample of its pages while the first round is still being copied.
//!
//! What was sent and written again would mislead: a guest that writes in order writes either among what was sent, or not at all. The
//! sample is spread evenly, and its dirty bits are cleared before the round begins; the round clears and reads those pages like
//! all others later. A round that is cut short has not read all of them, and the tracker no longer reports those: **the sample then
//! counts as dirty**.

use crate::copy::{SharedTracker, lock};
use std::time::{Duration, Instant};
use vmotion_dirty_tracking::{PageBitmap, TrackError};

/// Pages of one group, and how many groups there are for each that is taken.
const GROUP_PAGES: u64 = 64;
const GROUPS_PER_TAKEN: usize = 16;
/// Fewer say little.
const SAMPLE_PAGES_MIN: u64 = 256;
/// Pages cleared at once: KVM holds its lock meanwhile.
const STEP_PAGES: u64 = 32 << 10;
/// When the sample is looked at.
const LOOK_AFTER: Duration = Duration::from_millis(300);

/// The sample, and what it said.
#[derive(Debug)]
pub(super) struct Sample {
    pages: PageBitmap,
    /// Of all pages in the round.
    per_page: f64,
    began: Instant,
    written_per_s: Option<f64>,
}

impl Sample {
    /// Takes a sample of `round`, which nobody has begun to copy. `None` when it is too small to take one.
    pub(super) fn take(tracker: &SharedTracker, round: &PageBitmap) -> Result<Option<Self>, TrackError> {
        let total = round.pages();
        let mut pages = PageBitmap::new(total);
        for group in (0..total.div_ceil(GROUP_PAGES)).step_by(GROUPS_PER_TAKEN) {
            pages.set_range(group * GROUP_PAGES..((group + 1) * GROUP_PAGES).min(total));
        }
        pages.and(round);
        let count = pages.count();
        if count < SAMPLE_PAGES_MIN {
            return Ok(None);
        }
        for first in (0..total).step_by(usize::try_from(STEP_PAGES).unwrap_or(usize::MAX)) {
            lock(tracker).clear(&pages, first..(first + STEP_PAGES).min(total))?;
        }
        let per_page = round.count() as f64 / count as f64;
        Ok(Some(Self { pages, per_page, began: Instant::now(), written_per_s: None }))
    }

    /// The pages whose dirty bits were cleared.
    pub(super) const fn pages(&self) -> &PageBitmap {
        &self.pages
    }

    /// Different pages that the guest writes each second; `None` until that is known. Asks the tracker once.
    pub(super) fn written_per_s(&mut self, tracker: &SharedTracker) -> Option<f64> {
        if self.written_per_s.is_none() && self.began.elapsed() >= LOOK_AFTER {
            let mut written = PageBitmap::new(self.pages.pages());
            // Whoever holds the tracker is busy copying; the next look is soon.
            tracker.try_lock().ok()?.fetch(&mut written).ok()?;
            written.and(&self.pages);
            // Those the round has reached meanwhile were cleared again: an estimate from below.
            self.written_per_s = Some(written.count() as f64 * self.per_page / self.began.elapsed().as_secs_f64());
        }
        self.written_per_s
    }
}
