//! A prepared machine that arrives.

use super::following::Following;
use crate::guest::{GuestError, GuestPages, TargetMachine};
use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::Notify;
use vmotion_dirty_tracking::PageBitmap;
use vmotion_machine::{Filling, Machine};
use vmotion_model::{FollowReport, MemoryLayout, PAGE_SIZE};
use vmotion_transport::{
    pages::PageSink,
    session::{DemandSource, FEATURE_DELTA, FEATURE_POST_COPY},
};

/// A prepared machine that arrives.
#[derive(Debug)]
pub struct KvmTarget {
    machine: Arc<Machine>,
    /// Present while memory is filled; loading the state ends that.
    filling: RwLock<Option<Filling>>,
    /// One bit a page: written here, so that a zero page has to be written too.
    written: Vec<AtomicU64>,
    /// Pages that follow the guest, as far as the source has said.
    missing: Mutex<PageBitmap>,
    /// Once the guest may run before its memory is there.
    following: OnceLock<Following>,
    /// What went wrong where the sink's interface has no error; reported when the state is loaded.
    failure: Mutex<Option<GuestError>>,
}

/// Shorter runs are not worth a system call that maps them at once.
const POPULATE_PAGES_MIN: u64 = 4;

impl KvmTarget {
    /// Wraps `machine`, which was prepared and never ran.
    ///
    /// # Errors
    /// When it has run.
    pub fn new(machine: Arc<Machine>) -> Result<Self, GuestError> {
        let filling = RwLock::new(Some(machine.fill()?));
        let words = machine.memory().total_pages().div_ceil(64);
        let written = (0..words).map(|_| AtomicU64::new(0)).collect();
        let missing = Mutex::new(PageBitmap::new(machine.memory().total_pages()));
        Ok(Self { machine, filling, written, missing, following: OnceLock::new(), failure: Mutex::new(None) })
    }

    /// What this host can do for an arrival beyond the ordinary.
    #[must_use]
    pub fn features() -> BTreeSet<String> {
        let mut features = BTreeSet::from([FEATURE_DELTA.to_owned()]);
        match vmotion_pager::probe() {
            Ok(()) => drop(features.insert(FEATURE_POST_COPY.to_owned())),
            Err(error) => {
                tracing::info!(error = %vmotion_model::error_chain(&error), "memory cannot follow a guest to this host");
            }
        }
        features
    }

    fn fail(&self, error: GuestError) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// Marks a page written; whether it was before.
    fn mark_written(&self, index: u64) -> bool {
        let bit = 1 << (index % 64);
        usize::try_from(index / 64)
            .ok()
            .and_then(|word| self.written.get(word))
            .is_some_and(|word| word.fetch_or(bit, Ordering::Relaxed) & bit != 0)
    }

    fn was_written(&self, index: u64) -> bool {
        usize::try_from(index / 64)
            .ok()
            .and_then(|word| self.written.get(word))
            .is_some_and(|word| word.load(Ordering::Relaxed) & (1 << (index % 64)) != 0)
    }

    /// A run across the hole between two regions has no single view: through a copy. Happens at most once a round.
    fn with_split_pages(&self, first: u64, pages: u64, use_bytes: &mut dyn FnMut(&mut [u8])) -> Result<(), GuestError> {
        let length = usize::try_from(pages * PAGE_SIZE).map_err(|error| GuestError(error.to_string()))?;
        let mut copy = vec![0; length];
        let ram = self.machine.memory();
        let failed = |error: vmotion_machine::OutsideRam| GuestError(error.to_string());
        ram.read_run(first, pages, &mut copy).map_err(failed)?;
        use_bytes(&mut copy);
        ram.write_run(first, &copy).map_err(failed)
    }
}

impl PageSink for KvmTarget {
    fn total_pages(&self) -> u64 {
        self.machine.memory().total_pages()
    }

    fn with_pages(&self, first: u64, pages: u64, use_bytes: &mut dyn FnMut(&mut [u8])) {
        let filling = self.filling.read().unwrap_or_else(PoisonError::into_inner);
        let Some(filling) = filling.as_ref() else {
            self.fail(GuestError("pages arrived after the machine was complete".to_owned()));
            return;
        };
        if filling.with_run_mut(first, pages, &mut *use_bytes).is_err()
            && let Err(error) = self.with_split_pages(first, pages, use_bytes)
        {
            self.fail(error);
        }
    }

    fn expect_pages(&self, first: u64, pages: u64) {
        let mut fresh = 0;
        for index in first..first + pages {
            fresh += u64::from(!self.mark_written(index));
        }
        if fresh >= POPULATE_PAGES_MIN {
            // One system call instead of a fault a page. When it fails, the faults decide.
            let _ = self.machine.memory().populate(first..first + pages);
        }
    }

    fn missing_pages(&self, first: u64, pages: u64) {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).set_range(first..first + pages);
    }

    fn is_live(&self) -> bool {
        self.following.get().is_some()
    }

    fn place_verified(&self, first: u64, bytes: &[u8]) {
        if let Some(following) = self.following.get()
            && let Err(error) = following.complete_from(first, bytes)
        {
            self.fail(error);
        }
    }

    fn zero_pages(&self, first: u64, pages: u64) {
        if let Some(following) = self.following.get() {
            if let Err(error) = following.complete_zero(first, pages) {
                self.fail(error);
            }
            return;
        }
        for index in (first..first + pages).filter(|index| self.was_written(*index)) {
            self.with_pages(index, 1, &mut |bytes| bytes.fill(0));
        }
    }
}

pages_of_its_machine!(KvmTarget);

impl TargetMachine for KvmTarget {
    fn restore(&self, state: &[u8]) -> Result<(), GuestError> {
        drop(self.filling.write().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(failure) = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(failure);
        }
        Ok(self.machine.restore(state)?)
    }

    fn resume(&self) -> Result<(), GuestError> {
        Ok(self.machine.resume()?)
    }

    fn follow(&self, all_here: Arc<Notify>) -> Result<Box<dyn DemandSource>, GuestError> {
        // Views of memory that the guest maps would wait for pages themselves.
        drop(self.filling.write().unwrap_or_else(PoisonError::into_inner).take());
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let (following, faults) = Following::start(&self.machine, &missing, all_here)?;
        drop(missing);
        self.following.set(following).map_err(|_| GuestError("memory follows already".to_owned()))?;
        Ok(faults)
    }

    fn forget_missing(&self) {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).clear_all();
    }

    fn followed(&self) -> FollowReport {
        self.following.get().map_or_else(FollowReport::default, Following::report)
    }

    fn abandon(&self) {
        if let Some(following) = self.following.get() {
            following.abandon();
        }
    }
}
