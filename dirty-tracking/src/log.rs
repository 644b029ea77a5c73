//! KVM's dirty log with manual protection: one bitmap per slot, read without clearing, cleared in batches.
//!
//! `KVM_DIRTY_LOG_INITIALLY_SET` is not used: with it every page counts as written until its first clear, which
//! would make the first fetch useless to a standby that restarts tracking. What it saves, write-protecting all pages at
//! start, is measured in the crate's documentation of `start` and is small beside the first round of a copy.

use crate::{DirtyBackend, DirtyTracker, PageBitmap, Slot, TrackError};
use std::ops::Range;
use std::sync::Arc;
use vmotion_model::DirtySource;

#[cfg(test)]
mod tests;

const WORD: u64 = 64;

/// [`DirtyTracker`] on `KVM_GET_DIRTY_LOG` and `KVM_CLEAR_DIRTY_LOG`.
pub struct LogTracker {
    backend: Arc<dyn DirtyBackend>,
    /// Device writes taken from the machine and not cleared yet.
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
        // Device writes of before: their pages are read after this point by whoever asked to start.
        self.backend.take_device_writes(&mut self.device);
        self.device.clear_all();
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
