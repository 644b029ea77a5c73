//! Which pages changed since I last asked?
//!
//! ```text
//!   guest writes ── KVM dirty log or rings ─┐
//!                                           ├─ fetch ──► PageBitmap ──► clear (just before the pages are read)
//!   device writes ── the machine's bitmap ──┘
//! ```
//!
//! One trait, [`DirtyTracker`], and one rule both sources keep: **a page stays reported until it is cleared**, and a
//! write that happens after its clear is reported again. So whoever clears a page and then reads it never misses a
//! write. Pages are named by their index in the machine's [`vmotion_model::MemoryLayout`].
#![forbid(unsafe_code)]

mod bitmap;
mod estimate;
mod log;
mod ring;
mod sample;
mod tracker;

pub use bitmap::{PageBitmap, Runs};
pub use estimate::{DirtyEstimate, DirtyEstimator};
pub use log::LogTracker;
pub use ring::{RingCollector, RingTracker};
pub use sample::{DirtySampler, PageReader, SampledUse};
pub use tracker::{DirtyBackend, DirtyTracker, Slot, TrackError};
