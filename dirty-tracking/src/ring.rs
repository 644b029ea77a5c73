//! KVM's dirty rings: one per vCPU, collected all the time, so that no scan of a bitmap is ever needed in the kernel.
//!
//! ```text
//!   vCPU 0 ring ─┐            reaper thread, every few ms ─┐
//!   vCPU 1 ring ─┼─ collect ◄ vCPU thread on a full ring ──┤ one lock around collect + reset + the pending bitmap
//!   ...         ─┘            fetch and clear ─────────────┘
//! ```
//!
//! Invariant: collecting and `KVM_RESET_DIRTY_RINGS` happen under one lock, so a page is in `pending` before its
//! write-protection is back, and removing it from `pending` after a reset cannot lose a write.

use crate::log::check;
use crate::{DirtyBackend, DirtyTracker, PageBitmap, Slot, TrackError};
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use vmotion_model::DirtySource;
use vmotion_sys::kvm::{DirtyRing, reset_dirty_rings};

/// How often rings are emptied, in milliseconds: often enough that a ring of 16 Ki entries fills only above 3 million pages a second.
const REAP_EVERY_MS: u64 = 5;

/// All rings of a machine and what was collected from them. The vCPU threads share it, to empty a full ring at once.
#[derive(Debug)]
pub struct RingCollector {
    vm: OwnedFd,
    slots: Vec<Slot>,
    state: Mutex<Collected>,
}

#[derive(Debug)]
struct Collected {
    rings: Vec<DirtyRing>,
    /// Entries collected of each ring so far.
    written: Vec<u64>,
    pending: PageBitmap,
}

impl RingCollector {
    /// A collector for `rings` of the machine `vm` (a duplicate of its fd).
    #[must_use]
    pub fn new(vm: OwnedFd, slots: Vec<Slot>, rings: Vec<DirtyRing>) -> Self {
        let pages = slots.iter().map(|slot| slot.pages).sum();
        let written = vec![0; rings.len()];
        let state = Mutex::new(Collected { rings, written, pending: PageBitmap::new(pages) });
        Self { vm, slots, state }
    }

    fn lock(&self) -> MutexGuard<'_, Collected> {
        // A panic while collecting leaves at worst a page counted as written, which is safe.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Empties all rings into the pending pages; how many entries there were.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn reap(&self) -> io::Result<u64> {
        self.reap_locked(&mut self.lock())
    }

    /// Pages that each vCPU has written since the machine began, as far as they were collected; a page counts each time it was
    /// collected.
    #[must_use]
    pub fn written(&self) -> Vec<u64> {
        self.lock().written.clone()
    }

    fn reap_locked(&self, state: &mut Collected) -> io::Result<u64> {
        let Collected { rings, written, pending } = state;
        let mut entries = 0;
        for (ring, written) in rings.iter_mut().zip(written) {
            let collected = ring.collect(|page| {
                let slot = self.slots.iter().find(|slot| slot.id == page.slot && page.offset < slot.pages);
                if let Some(slot) = slot {
                    pending.set(slot.first + page.offset);
                }
            });
            *written += collected;
            entries += collected;
        }
        if entries > 0 {
            reset_dirty_rings(&self.vm)?;
        }
        Ok(entries)
    }
}

/// [`DirtyTracker`] on dirty rings.
pub struct RingTracker {
    backend: Arc<dyn DirtyBackend>,
    collector: Arc<RingCollector>,
    /// Pages written that no ring knows of, and not cleared yet: device writes, and what was there at the start.
    device: PageBitmap,
    reaper: Option<(Sender<()>, JoinHandle<()>)>,
}

impl RingTracker {
    /// A tracker, not started.
    #[must_use]
    pub fn new(backend: Arc<dyn DirtyBackend>, collector: Arc<RingCollector>) -> Self {
        let pages = backend.slots().iter().map(|slot| slot.pages).sum();
        Self { backend, collector, device: PageBitmap::new(pages), reaper: None }
    }

    fn check(&self, bitmap: &PageBitmap) -> Result<(), TrackError> {
        check(self.reaper.is_some(), self.device.pages(), bitmap)
    }

    fn end_reaper(&mut self) {
        if let Some((stop, thread)) = self.reaper.take() {
            drop(stop);
            // A reaper that panicked has nothing more to give; pages it took are in the collector.
            let _ = thread.join();
        }
    }
}

fn start_reaper(collector: Arc<RingCollector>) -> io::Result<(Sender<()>, JoinHandle<()>)> {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let every = Duration::from_millis(REAP_EVERY_MS);
    let body = move || {
        while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
            if collector.reap().is_err() {
                // Fetch and clear reap too, and report the error to whoever tracks.
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("dirty-ring".to_owned()).spawn(body)?;
    Ok((stop, thread))
}

impl DirtyTracker for RingTracker {
    fn start(&mut self) -> Result<(), TrackError> {
        if self.reaper.is_some() {
            return Ok(());
        }
        // What an earlier round of tracking left in the rings.
        self.collector.reap().map_err(TrackError::kvm("empty the dirty rings"))?;
        self.collector.lock().pending.clear_all();
        self.backend.set_logging(true).map_err(TrackError::kvm("start the dirty rings"))?;
        let all = PageBitmap::full(self.device.pages());
        self.device = self.backend.touched(&all).map_err(TrackError::kvm("tell which pages hold data"))?;
        let reaper = start_reaper(Arc::clone(&self.collector)).map_err(TrackError::kvm("start the ring reaper"))?;
        self.reaper = Some(reaper);
        Ok(())
    }

    fn fetch(&mut self, into: &mut PageBitmap) -> Result<u64, TrackError> {
        self.check(into)?;
        self.backend.take_device_writes(&mut self.device);
        let mut written = self.device.clone();
        let mut state = self.collector.lock();
        self.collector.reap_locked(&mut state).map_err(TrackError::kvm("empty the dirty rings"))?;
        written.or(&state.pending);
        drop(state);
        into.or(&written);
        Ok(written.count())
    }

    fn clear(&mut self, pages: &PageBitmap, range: Range<u64>) -> Result<(), TrackError> {
        self.check(pages)?;
        self.backend.take_device_writes(&mut self.device);
        self.device.and_not_range(pages, range.clone());
        let mut state = self.collector.lock();
        self.collector.reap_locked(&mut state).map_err(TrackError::kvm("empty the dirty rings"))?;
        state.pending.and_not_range(pages, range);
        Ok(())
    }

    fn stop(&mut self) -> Result<(), TrackError> {
        self.end_reaper();
        self.backend.set_logging(false).map_err(TrackError::kvm("stop the dirty rings"))?;
        self.collector.reap().map_err(TrackError::kvm("empty the dirty rings")).map(drop)
    }

    fn source(&self) -> DirtySource {
        DirtySource::Ring
    }
}

impl Drop for RingTracker {
    fn drop(&mut self) {
        if self.reaper.is_some() {
            // A tracker that is dropped must leave no slowdown behind; a machine that is gone has none.
            let _ = self.stop();
        }
    }
}
