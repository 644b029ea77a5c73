//! The model guest as a machine that leaves: paused, frozen, and tracked with the contract of the real trackers.

use super::guest::{ModelGuest, failing, pages_of_its_guest};
use std::{ops::Range, sync::Arc, thread};
use vmotion_dirty_tracking::{DirtyTracker, PageBitmap, TrackError};
use vmotion_migrator::guest::{FrozenGuest, GuestError, GuestPages, PausedGuest, SourceMachine};
use vmotion_model::{DirtySource, MemoryLayout};

/// The source machine: what a move is given.
pub(crate) struct ModelSource(pub(crate) Arc<ModelGuest>);

pages_of_its_guest!(ModelSource);

impl SourceMachine for ModelSource {
    type Paused = ModelPause;

    fn tracker(&self) -> Result<Box<dyn DirtyTracker>, GuestError> {
        if self.0.fault().no_tracker {
            return Err(failing("tracker"));
        }
        Ok(Box::new(ModelTracker(Arc::clone(&self.0))))
    }

    fn pause(&self) -> Result<ModelPause, GuestError> {
        let takes = {
            let mut faults = self.0.fault();
            if faults.pause_fails {
                return Err(failing("pause"));
            }
            faults.pauses_take.pop_front()
        };
        self.0.stand_still();
        thread::sleep(takes.unwrap_or_default());
        let next_stamp = self.0.memory().next_stamp();
        Ok(ModelPause { guest: Some(Arc::clone(&self.0)), next_stamp })
    }
}

/// The guard: dropped, the guest runs.
pub(crate) struct ModelPause {
    guest: Option<Arc<ModelGuest>>,
    next_stamp: u64,
}

impl Drop for ModelPause {
    fn drop(&mut self) {
        if let Some(guest) = &self.guest {
            guest.let_go();
        }
    }
}

impl PausedGuest for ModelPause {
    type Frozen = ModelFrozen;

    fn save(&self) -> Result<Vec<u8>, GuestError> {
        let guest = self.guest.as_ref().unwrap();
        let (takes, fails) = {
            let faults = guest.fault();
            (faults.save_takes, faults.save_fails)
        };
        thread::sleep(takes);
        if fails {
            return Err(failing("save"));
        }
        Ok(guest.memory().registers.save())
    }

    fn settle(&self) -> Result<(), GuestError> {
        let fails = self.guest.as_ref().unwrap().fault().settle_fails;
        if fails { Err(failing("settle")) } else { Ok(()) }
    }

    fn freeze(mut self) -> ModelFrozen {
        ModelFrozen { guest: self.guest.take(), next_stamp: self.next_stamp }
    }
}

/// Dropped, the guest does *not* run.
pub(crate) struct ModelFrozen {
    guest: Option<Arc<ModelGuest>>,
    next_stamp: u64,
}

impl ModelFrozen {
    fn check(&self, guest: &ModelGuest) {
        let now = guest.memory().next_stamp();
        // In a process that was killed the vCPU may have been at work.
        if now != self.next_stamp && !guest.is_dead() {
            guest.witness.complain(format!("{} writes while the guest stood still", now - self.next_stamp));
        }
    }
}

impl FrozenGuest for ModelFrozen {
    fn thaw(mut self) {
        let guest = self.guest.take().unwrap();
        self.check(&guest);
        guest.let_go();
    }
}

impl Drop for ModelFrozen {
    fn drop(&mut self) {
        if let Some(guest) = &self.guest {
            self.check(guest);
        }
    }
}

/// A page stays reported until it is cleared.
struct ModelTracker(Arc<ModelGuest>);

impl DirtyTracker for ModelTracker {
    fn start(&mut self) -> Result<(), TrackError> {
        if self.0.fault().tracker_does_not_start {
            return Err(TrackError::Kvm { action: "start, as scheduled", source: std::io::Error::other("refused") });
        }
        let mut memory = self.0.memory();
        memory.dirty = Some(memory.touched.clone());
        Ok(())
    }

    fn fetch(&mut self, into: &mut PageBitmap) -> Result<u64, TrackError> {
        let fails_at = self.0.fault().fetch_fails_at;
        let mut memory = self.0.memory();
        memory.fetches += 1;
        if fails_at.is_some_and(|number| memory.fetches >= number) {
            return Err(TrackError::Kvm { action: "fetch, as scheduled", source: std::io::Error::other("refused") });
        }
        into.or(memory.dirty.as_ref().ok_or(TrackError::NotStarted)?);
        Ok(into.count())
    }

    fn clear(&mut self, pages: &PageBitmap, range: Range<u64>) -> Result<(), TrackError> {
        self.0.memory().dirty.as_mut().ok_or(TrackError::NotStarted)?.and_not_range(pages, range);
        Ok(())
    }

    fn stop(&mut self) -> Result<(), TrackError> {
        self.0.memory().dirty = None;
        Ok(())
    }

    fn source(&self) -> DirtySource {
        DirtySource::Log
    }
}
