//! The traits of [`crate::guest`] for real machines.

/// Both ends read the same memory in the same way.
macro_rules! pages_of_its_machine {
    ($end:ty) => {
        impl GuestPages for $end {
            fn layout(&self) -> &MemoryLayout {
                self.machine.memory().layout()
            }

            fn read_page(&self, index: u64, into: &mut [u8]) {
                let read = self.machine.memory().read_page(index, into);
                debug_assert!(read.is_ok(), "the engine reads pages of the layout only: {read:?}");
            }

            fn touched(&self) -> Result<PageBitmap, GuestError> {
                Ok(self.machine.memory().allocated()?)
            }
        }
    };
}

mod following;
mod target;

pub use target::KvmTarget;

use crate::guest::{FrozenGuest, GuestError, GuestPages, PausedGuest, Slowdown, SourceMachine};
use std::sync::Arc;
use vmotion_dirty_tracking::{DirtyTracker, PageBitmap};
use vmotion_machine::{Frozen, Machine, MachineError, PauseGuard, Throttle};
use vmotion_model::{DirtySource, MemoryLayout, error_chain};

impl From<MachineError> for GuestError {
    fn from(error: MachineError) -> Self {
        Self(error_chain(&error))
    }
}

/// A running machine that leaves.
#[derive(Debug)]
pub struct KvmSource {
    machine: Arc<Machine>,
}

impl KvmSource {
    /// Wraps `machine`.
    #[must_use]
    pub const fn new(machine: Arc<Machine>) -> Self {
        Self { machine }
    }
}

pages_of_its_machine!(KvmSource);

impl SourceMachine for KvmSource {
    type Paused = PauseGuard;

    fn tracker(&self) -> Result<Box<dyn DirtyTracker>, GuestError> {
        Ok(self.machine.dirty_tracker(DirtySource::Auto)?)
    }

    fn pause(&self) -> Result<PauseGuard, GuestError> {
        Ok(self.machine.pause()?)
    }

    fn throttle(&self, percent: u8) -> Result<Box<dyn Slowdown>, GuestError> {
        Ok(Box::new(self.machine.throttle(percent)?))
    }
}

impl Slowdown for Throttle {
    fn change(&self, percent: u8) {
        Self::change(self, percent);
    }
}

impl PausedGuest for PauseGuard {
    type Frozen = Frozen;

    fn save(&self) -> Result<Vec<u8>, GuestError> {
        Ok(Self::save(self)?)
    }

    fn settle(&self) -> Result<(), GuestError> {
        Ok(Self::settle(self)?)
    }

    fn freeze(self) -> Frozen {
        Self::freeze(self)
    }
}

impl FrozenGuest for Frozen {
    fn thaw(self) {
        Self::thaw(self);
    }
}
