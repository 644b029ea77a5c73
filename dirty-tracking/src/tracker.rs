//! The trait that copies of a running machine are built on, and what a tracker needs from the machine.

use crate::PageBitmap;
use std::io;
use std::ops::Range;
use vmotion_model::DirtySource;

/// Tells which pages of a running machine were written.
///
/// The order that never misses a write: `start`; then, again and again, `fetch` the candidates, `clear` some of them,
/// and only then read those. A page stays reported until it is cleared.
pub trait DirtyTracker: Send {
    /// From now on every write is seen. Every page that holds data counts as written until its first clear, so the first
    /// fetch is the first round of a copy: pages it does not report are zero. (That is also what lets KVM write-protect
    /// pages at their first clear and not all of them here, which would stall the guest for milliseconds per GiB.)
    ///
    /// # Errors
    /// [`TrackError`] when the host refuses; nothing is tracked then.
    fn start(&mut self) -> Result<(), TrackError>;

    /// Adds to `into` every page written (by vCPUs or devices) and not cleared since; how many those are, including
    /// ones `into` already had.
    ///
    /// # Errors
    /// [`TrackError`] when the host refuses or tracking was not started.
    fn fetch(&mut self, into: &mut PageBitmap) -> Result<u64, TrackError>;

    /// Forgets that the pages of `pages` within `range` were written, so that the next write to each is reported
    /// again. Read them after this, never before. Cheap enough to be called for every batch.
    ///
    /// # Errors
    /// [`TrackError`] when the host refuses or tracking was not started.
    fn clear(&mut self, pages: &PageBitmap, range: Range<u64>) -> Result<(), TrackError>;

    /// Nothing is tracked any more, and no slowdown is left. Harmless when tracking was not started.
    ///
    /// # Errors
    /// [`TrackError`] when the host refuses.
    fn stop(&mut self) -> Result<(), TrackError>;

    /// Which facility this is; never [`DirtySource::Auto`].
    fn source(&self) -> DirtySource;
}

/// Why tracking failed.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    /// Fetch or clear before start.
    #[error("Dirty tracking was not started")]
    NotStarted,
    /// A bitmap of another machine's size.
    #[error("Bitmap of {given} pages does not fit a machine of {machine}")]
    WrongSize {
        /// Pages of the bitmap.
        given: u64,
        /// Pages of the machine.
        machine: u64,
    },
    /// The kernel refused.
    #[error("KVM could not {action}")]
    Kvm {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl TrackError {
    pub(crate) fn kvm(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Kvm { action, source }
    }
}

/// A KVM memory slot and where its pages lie in the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// KVM's number for it.
    pub id: u32,
    /// Layout index of its first page; a multiple of 64.
    pub first: u64,
    /// Its length in pages.
    pub pages: u64,
}

impl Slot {
    /// Layout indices of the slot.
    #[must_use]
    pub const fn range(&self) -> Range<u64> {
        self.first..self.first + self.pages
    }
}

/// What a tracker needs from a machine.
pub trait DirtyBackend: Send + Sync {
    /// The machine's memory slots, ascending.
    fn slots(&self) -> &[Slot];

    /// Does KVM begin with every page counted as written, and protect each at its first clear?
    fn initially_all_written(&self) -> bool;

    /// Those of the pages `among` that were ever touched; the others are zero.
    ///
    /// # Errors
    /// What the kernel says.
    fn touched(&self, among: &PageBitmap) -> io::Result<PageBitmap>;

    /// Turns KVM's tracking of all slots on or off.
    ///
    /// # Errors
    /// What the kernel says.
    fn set_logging(&self, on: bool) -> io::Result<()>;

    /// Copies the dirty log of `slot` into `words`, without clearing it.
    ///
    /// # Errors
    /// What the kernel says.
    fn read_log(&self, slot: &Slot, words: &mut [u64]) -> io::Result<()>;

    /// Clears `mask` in the log of `slot`, from the slot's page `first` on, `pages` pages.
    ///
    /// # Errors
    /// What the kernel says.
    fn clear_log(&self, slot: &Slot, first: u64, pages: u32, mask: &[u64]) -> io::Result<()>;

    /// Moves the record of device writes since the last call into `into`.
    fn take_device_writes(&self, into: &mut PageBitmap);
}
