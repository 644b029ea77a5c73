//! How fast does the guest write? Seen on a sample of its pages while the first round is still being copied.
//!
//! What was sent and written again would mislead: a guest that writes in order writes either among what was sent, or not at all. The
//! sample is spread evenly, and its dirty bits are cleared before the round begins; the round clears and reads those pages like
//! all others later. A round that is cut short has not read all of them, and the tracker no longer reports those: **the sample then
//! counts as dirty**.

use crate::copy::{SharedTracker, lock};
use std::time::Instant;
use vmotion_dirty_tracking::{PageBitmap, TrackError};

/// One page of so many is taken, of a large guest one of more. Single pages, not runs of them: what is written all the time (a stack, a table) lies together, and
/// a run that holds it would stand for sixteen times as much.
const PAGES_PER_TAKEN: u64 = 16;
/// More tell no more, and clearing each is work in the kernel before the first page is copied.
const SAMPLE_PAGES_MAX: u64 = 1 << 16;
/// Which one of each group: another one each time, so that no stride of the guest's falls in with the sample's.
const STEP: u64 = 7;
/// Fewer say little.
const SAMPLE_PAGES_MIN: u64 = 256;
/// Pages cleared at once: KVM holds its lock meanwhile.
const STEP_PAGES: u64 = 32 << 10;

/// The sample, and what it said.
#[derive(Debug)]
pub(super) struct Sample {
    pages: PageBitmap,
    /// Found written so far. Kept, for the round clears what it reads.
    written: PageBitmap,
    /// Pages of the round for each one in the sample.
    scale: f64,
    began: Instant,
    looks: Vec<(f64, f64)>,
}

impl Sample {
    /// Takes a sample of `round`, which nobody has begun to copy. `None` when it is too small to take one.
    pub(super) fn take(tracker: &SharedTracker, round: &PageBitmap) -> Result<Option<Self>, TrackError> {
        let total = round.pages();
        let mut pages = PageBitmap::new(total);
        let size = PAGES_PER_TAKEN.max(total / SAMPLE_PAGES_MAX);
        for group in 0..total / size {
            pages.set(group * size + group * STEP % size);
        }
        pages.and(round);
        let count = pages.count();
        if count < SAMPLE_PAGES_MIN {
            return Ok(None);
        }
        for first in (0..total).step_by(usize::try_from(STEP_PAGES).unwrap_or(usize::MAX)) {
            lock(tracker).clear(&pages, first..(first + STEP_PAGES).min(total))?;
        }
        let scale = round.count() as f64 / count as f64;
        let written = PageBitmap::new(total);
        Ok(Some(Self { pages, written, scale, began: Instant::now(), looks: Vec::new() }))
    }

    /// The pages whose dirty bits were cleared.
    pub(super) const fn pages(&self) -> &PageBitmap {
        &self.pages
    }

    /// Looks once. Waits for the tracker, which the copy threads hold for a moment at a time.
    pub(super) fn look(&mut self, tracker: &SharedTracker) {
        let mut written = PageBitmap::new(self.pages.pages());
        if let Err(error) = lock(tracker).fetch(&mut written) {
            // The round asks for the same, and reports it.
            tracing::debug!(%error, "the sample was not looked at");
            return;
        }
        written.and(&self.pages);
        self.written.or(&written);
        let ms = self.began.elapsed().as_secs_f64() * 1000.0;
        self.looks.push((ms, self.written.count() as f64 * self.scale));
    }

    /// Different pages written by the guest, by time: (ms, pages).
    pub(super) fn looks(&self) -> &[(f64, f64)] {
        &self.looks
    }

    /// Pages of the guest for each one in the sample.
    pub(super) const fn scale(&self) -> f64 {
        self.scale
    }
}
