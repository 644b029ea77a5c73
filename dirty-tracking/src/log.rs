//! KVM's dirty log with manual protection: one bitmap per slot, read without clearing, cleared in batches.
//!
//! `KVM_DIRTY_LOG_INITIALLY_SET` is used where KVM has it: without, turning the log on write-protects every page at
//! once, under the lock that the guest's page faults need (6 ms for 512 MiB were measured, and a guest that beat every
//! millisecond missed beats). With it every page counts as written until its first clear, which protects it, batch by
//! batch. Pages that hold nothing are cleared at the start, so that they are only reported when they are written.

use crate::{DirtyBackend, DirtyTracker, PageBitmap, Slot, TrackError};
use std::ops::Range;
use std::sync::Arc;
use vmotion_model::DirtySource;

#[cfg(test)]
mod tests;

const WORD: u64 = 64;
/// Pages cleared at once at the start: 128 MiB, well below a millisecond.
const UNTOUCHED_STEP_PAGES: usize = 32 << 10;

/// [`DirtyTracker`] on `KVM_GET_DIRTY_LOG` and `KVM_CLEAR_DIRTY_LOG`.
pub struct LogTracker {
    backend: Arc<dyn DirtyBackend>,
    /// Pages written that KVM's log does not know of, and not cleared yet: device writes, and what was there at the start.
    device: PageBitmap,
    scratch: Vec<u64>,
    started: bool,
}

impl LogTracker {
    /// A tracker, not started.
    #[must_use]
    pub fn new(backend: Arc<dyn DirtyBackend>) -> Self {
        let pages = backend.slots().iter().map(|slot| slot.pages).sum();
        Self { backend, device: PageBitmap::new(pages), scratch: Vec::new(), started: false }
    }

    /// Clears the log of pages that hold nothing. Bounded steps: KVM holds its lock during each.
    fn clear_untouched(&mut self) -> Result<(), TrackError> {
        let pages = self.device.pages();
        let mut untouched = PageBitmap::full(pages);
        untouched.and_not(&self.touched(&untouched)?);
        for first in (0..pages).step_by(UNTOUCHED_STEP_PAGES) {
            self.clear_log(&untouched, first..(first + UNTOUCHED_STEP_PAGES as u64).min(pages))?;
        }
        // Touched after we asked and perhaps before we cleared.
        self.device.or(&self.touched(&untouched)?);
        Ok(())
    }

    fn touched(&self, among: &PageBitmap) -> Result<PageBitmap, TrackError> {
        self.backend.touched(among).map_err(TrackError::kvm("tell which pages hold data"))
    }

    fn clear_log(&self, pages: &PageBitmap, range: Range<u64>) -> Result<(), TrackError> {
        for slot in self.backend.slots() {
            let Some(run) = words_of_slot(slot, &range) else { continue };
            let inside = range.start.max(slot.first)..range.end.min(slot.first + slot.pages);
            let mask = pages.masked_words(inside);
            if mask.iter().all(|word| *word == 0) {
                continue;
            }
            // One call takes at most 2^32 - 1 pages; slots are at most 2^28 (1 TiB).
            let length = u32::try_from(run.end - run.start).unwrap_or(u32::MAX);
            self.backend.clear_log(slot, run.start, length, &mask).map_err(TrackError::kvm("clear the dirty log"))?;
        }
        Ok(())
    }

    fn check(&self, bitmap: &PageBitmap) -> Result<(), TrackError> {
        check(self.started, self.device.pages(), bitmap)
    }
}

pub(crate) fn check(started: bool, machine: u64, bitmap: &PageBitmap) -> Result<(), TrackError> {
    if !started {
        return Err(TrackError::NotStarted);
    }
    if bitmap.pages() != machine {
        return Err(TrackError::WrongSize { given: bitmap.pages(), machine });
    }
    Ok(())
}

/// The part of `range` in `slot`, in pages of the slot, its start rounded down and its end up to whole words.
fn words_of_slot(slot: &Slot, range: &Range<u64>) -> Option<Range<u64>> {
    let start = range.start.max(slot.first);
    let end = range.end.min(slot.first + slot.pages);
    if start >= end {
        return None;
    }
    let first = (start - slot.first) / WORD * WORD;
    let last = (end - slot.first).next_multiple_of(WORD).min(slot.pages);
    Some(first..last)
}

impl DirtyTracker for LogTracker {
    fn start(&mut self) -> Result<(), TrackError> {
        self.backend.set_logging(true).map_err(TrackError::kvm("start the dirty log"))?;
        self.device.clear_all();
        if self.backend.initially_all_written() {
            self.clear_untouched()?;
        } else {
            self.device = self.touched(&PageBitmap::full(self.device.pages()))?;
        }
        self.started = true;
        Ok(())
    }

    fn fetch(&mut self, into: &mut PageBitmap) -> Result<u64, TrackError> {
        self.check(into)?;
        self.backend.take_device_writes(&mut self.device);
        let mut written = self.device.clone();
        for slot in self.backend.slots() {
            let words = usize::try_from(slot.pages.div_ceil(WORD)).unwrap_or(usize::MAX);
            self.scratch.resize(words, 0);
            self.backend.read_log(slot, &mut self.scratch).map_err(TrackError::kvm("read the dirty log"))?;
            written.or_words(slot.first, &self.scratch);
        }
        into.or(&written);
        Ok(written.count())
    }

    fn clear(&mut self, pages: &PageBitmap, range: Range<u64>) -> Result<(), TrackError> {
        self.check(pages)?;
        self.backend.take_device_writes(&mut self.device);
        self.device.and_not_range(pages, range.clone());
        self.clear_log(pages, range)
    }

    fn stop(&mut self) -> Result<(), TrackError> {
        self.started = false;
        self.backend.set_logging(false).map_err(TrackError::kvm("stop the dirty log"))
    }

    fn source(&self) -> DirtySource {
        DirtySource::Log
    }
}

impl Drop for LogTracker {
    fn drop(&mut self) {
        if self.started {
            // A tracker that is dropped must leave no slowdown behind; a machine that is gone has none.
            let _ = self.stop();
        }
    }
}
