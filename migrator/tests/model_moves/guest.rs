//! A guest made of a byte vector: a thread that stamps pages while it "runs", a dirty tracker with the contract of the
//! real ones, pauses that are counted, and a witness that sees every copy that runs.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};
use vmotion_dirty_tracking::{DirtyTracker, PageBitmap, TrackError};
use vmotion_migrator::guest::{FrozenGuest, GuestError, GuestPages, PausedGuest, SourceMachine, TargetMachine};
use vmotion_model::{DirtySource, MemoryLayout, PAGE_SIZE};
use vmotion_transport::pages::PageSink;

const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PAGE_SIZE);

/// One end of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    Source,
    Target,
}

impl Side {
    pub(crate) const BOTH: [Self; 2] = [Self::Source, Self::Target];
    const fn index(self) -> usize {
        self as usize
    }
}

/// Sees which copies run.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    state: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    running: [bool; 2],
    starts: [u32; 2],
    both: bool,
}

impl Witness {
    fn set(&self, side: Side, running: bool) {
        let mut seen = self.state.lock().unwrap();
        seen.starts[side.index()] += u32::from(running && !seen.running[side.index()]);
        seen.running[side.index()] = running;
        seen.both |= seen.running == [true; 2];
    }

    pub(crate) fn runs(&self, side: Side) -> bool {
        self.state.lock().unwrap().running[side.index()]
    }

    /// How often a copy began to run; the first time at the source is its life before the move.
    pub(crate) fn starts(&self, side: Side) -> u32 {
        self.state.lock().unwrap().starts[side.index()]
    }

    /// Did both copies ever run at the same moment?
    pub(crate) fn saw_both(&self) -> bool {
        self.state.lock().unwrap().both
    }
}

/// How the guest writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writing {
    /// Pages it writes, from the first on.
    pub(crate) pages: u64,
    /// Pages written in one go.
    pub(crate) burst: u64,
    /// Time between two bursts.
    pub(crate) every: Duration,
}

/// What goes wrong at a guest.
#[derive(Debug, Clone, Default)]
pub(crate) struct GuestFaults {
    /// The host has no tracker, or it does not start.
    pub(crate) no_tracker: bool,
    pub(crate) tracker_does_not_start: bool,
    /// The fetch of this number (from 1) and all later ones fail.
    pub(crate) fetch_fails_at: Option<u32>,
    pub(crate) pause_fails: bool,
    /// How long each pause takes; those beyond the list take no time.
    pub(crate) pauses_take: VecDeque<Duration>,
    pub(crate) save_takes: Duration,
    pub(crate) save_fails: bool,
    pub(crate) settle_fails: bool,
    pub(crate) restore_fails: bool,
}

struct Memory {
    bytes: Vec<u8>,
    touched: PageBitmap,
    /// Written and not cleared; `None` while nothing is tracked.
    dirty: Option<PageBitmap>,
    fetches: u32,
    /// Number of the next stamp: the guest's registers, carried in the saved state.
    next_stamp: u64,
}

#[derive(Default)]
struct Gate {
    paused: bool,
    /// The writer has seen the pause.
    at_rest: bool,
    /// Its process is gone.
    dead: bool,
}

/// The guest at one side.
pub(crate) struct ModelGuest {
    side: Side,
    layout: MemoryLayout,
    memory: Mutex<Memory>,
    gate: Mutex<Gate>,
    changed: Condvar,
    writing: Writing,
    faults: Mutex<GuestFaults>,
    witness: Arc<Witness>,
    /// All memory, at the source when it was last paused, at the target when the state was loaded.
    snapshot: Mutex<Option<Vec<u8>>>,
}

impl ModelGuest {
    /// A guest that stands still. The source's memory has data in all but its last quarter.
    pub(crate) fn new(
        side: Side,
        pages: u64,
        writing: Writing,
        faults: GuestFaults,
        witness: &Arc<Witness>,
    ) -> Arc<Self> {
        let mut memory = Memory {
            bytes: vec![0; index(pages) * PAGE],
            touched: PageBitmap::new(pages),
            dirty: None,
            fetches: 0,
            next_stamp: 1,
        };
        if side == Side::Source {
            (0..pages / 4 * 3).for_each(|page| memory.write(page));
        }
        let guest = Arc::new(Self {
            side,
            layout: MemoryLayout::for_ram(pages * PAGE_SIZE).unwrap(),
            memory: Mutex::new(memory),
            gate: Mutex::new(Gate { paused: true, ..Gate::default() }),
            changed: Condvar::new(),
            writing,
            faults: Mutex::new(faults),
            witness: Arc::clone(witness),
            snapshot: Mutex::new(None),
        });
        let writer = Arc::clone(&guest);
        thread::spawn(move || writer.write_until_dead());
        guest
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap()
    }

    fn fault(&self) -> MutexGuard<'_, GuestFaults> {
        self.faults.lock().unwrap()
    }

    fn write_until_dead(&self) {
        let mut at = 0;
        loop {
            {
                let mut gate = self.gate.lock().unwrap();
                while gate.paused && !gate.dead {
                    gate.at_rest = true;
                    self.changed.notify_all();
                    gate = self.changed.wait(gate).unwrap();
                }
                if gate.dead {
                    return;
                }
                gate.at_rest = false;
            }
            let mut memory = self.memory();
            for _ in 0..self.writing.burst {
                memory.write(at % self.writing.pages.max(1));
                at += 1;
            }
            drop(memory);
            thread::sleep(self.writing.every);
        }
    }

    /// Lets the guest run.
    pub(crate) fn let_go(&self) {
        let mut gate = self.gate.lock().unwrap();
        if !gate.dead {
            self.witness.set(self.side, true);
            gate.paused = false;
            self.changed.notify_all();
        }
    }

    fn stand_still(&self) {
        let mut gate = self.gate.lock().unwrap();
        gate.paused = true;
        while !gate.at_rest && !gate.dead {
            gate = self.changed.wait(gate).unwrap();
        }
        drop(gate);
        self.witness.set(self.side, false);
    }

    /// Its process is gone: it never runs again.
    pub(crate) fn kill(&self) {
        let mut gate = self.gate.lock().unwrap();
        gate.dead = true;
        self.changed.notify_all();
        self.witness.set(self.side, false);
    }

    pub(crate) fn is_tracked(&self) -> bool {
        self.memory().dirty.is_some()
    }

    /// All memory at the decisive moment.
    pub(crate) fn snapshot(&self) -> Option<Vec<u8>> {
        self.snapshot.lock().unwrap().clone()
    }

    fn take_snapshot(&self) {
        let bytes = self.memory().bytes.clone();
        *self.snapshot.lock().unwrap() = Some(bytes);
    }
}

const fn index(page: u64) -> usize {
    page as usize
}

impl Memory {
    /// Stamps a page. Marked as dirty after it was written, so that whoever clears the mark sees what was written.
    fn write(&mut self, page: u64) {
        let stamp = self.next_stamp;
        self.next_stamp += 1;
        let bytes = &mut self.bytes[index(page) * PAGE..][..PAGE];
        match stamp % 7 {
            // Back to zero, now and then.
            0 => bytes.fill(0),
            // Compressible.
            1..=3 => bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&stamp.to_le_bytes())),
            // Not compressible.
            _ => {
                let mut state = stamp.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                for word in bytes.chunks_exact_mut(8) {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    word.copy_from_slice(&state.to_le_bytes());
                }
            }
        }
        self.touched.set(page);
        if let Some(dirty) = &mut self.dirty {
            dirty.set(page);
        }
    }
}

impl GuestPages for ModelGuest {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    fn read_page(&self, page: u64, into: &mut [u8]) {
        into.copy_from_slice(&self.memory().bytes[index(page) * PAGE..][..PAGE]);
    }

    fn touched(&self) -> Result<PageBitmap, GuestError> {
        Ok(self.memory().touched.clone())
    }
}

fn failing(what: &str) -> GuestError {
    GuestError(format!("{what} fails, as scheduled"))
}

/// The source machine: what a move is given.
pub(crate) struct ModelSource(pub(crate) Arc<ModelGuest>);

impl GuestPages for ModelSource {
    fn layout(&self) -> &MemoryLayout {
        self.0.layout()
    }
    fn read_page(&self, page: u64, into: &mut [u8]) {
        self.0.read_page(page, into);
    }
    fn touched(&self) -> Result<PageBitmap, GuestError> {
        self.0.touched()
    }
}

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
        self.0.take_snapshot();
        Ok(ModelPause { guest: Some(Arc::clone(&self.0)) })
    }
}

/// The guard: dropped, the guest runs.
pub(crate) struct ModelPause {
    guest: Option<Arc<ModelGuest>>,
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
        let GuestFaults { save_takes, save_fails, .. } = guest.fault().clone();
        thread::sleep(save_takes);
        if save_fails {
            return Err(failing("save"));
        }
        Ok(guest.memory().next_stamp.to_le_bytes().to_vec())
    }

    fn settle(&self) -> Result<(), GuestError> {
        let fails = self.guest.as_ref().unwrap().fault().settle_fails;
        if fails { Err(failing("settle")) } else { Ok(()) }
    }

    fn freeze(mut self) -> ModelFrozen {
        let guest = self.guest.take().unwrap();
        assert_eq!(
            guest.snapshot().as_ref(),
            Some(&guest.memory().bytes),
            "nothing writes while the guest stands still"
        );
        ModelFrozen(guest)
    }
}

/// Dropped, the guest does *not* run.
pub(crate) struct ModelFrozen(Arc<ModelGuest>);

impl FrozenGuest for ModelFrozen {
    fn thaw(self) {
        self.0.let_go();
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

/// The target machine: filled while it stands still.
pub(crate) struct ModelTarget(pub(crate) Arc<ModelGuest>);

impl GuestPages for ModelTarget {
    fn layout(&self) -> &MemoryLayout {
        self.0.layout()
    }
    fn read_page(&self, page: u64, into: &mut [u8]) {
        self.0.read_page(page, into);
    }
    fn touched(&self) -> Result<PageBitmap, GuestError> {
        self.0.touched()
    }
}

impl PageSink for ModelTarget {
    fn total_pages(&self) -> u64 {
        self.0.layout.total_pages()
    }

    fn with_pages(&self, first: u64, pages: u64, use_bytes: &mut dyn FnMut(&mut [u8])) {
        let mut memory = self.0.memory();
        memory.touched.set_range(first..first + pages);
        use_bytes(&mut memory.bytes[index(first) * PAGE..index(first + pages) * PAGE]);
    }

    fn zero_pages(&self, first: u64, pages: u64) {
        self.0.memory().bytes[index(first) * PAGE..index(first + pages) * PAGE].fill(0);
    }
}

impl TargetMachine for ModelTarget {
    fn restore(&self, state: &[u8]) -> Result<(), GuestError> {
        if self.0.fault().restore_fails {
            return Err(failing("restore"));
        }
        let stamp = state.try_into().map_err(|_| GuestError("state of another guest".to_owned()))?;
        self.0.memory().next_stamp = u64::from_le_bytes(stamp);
        self.0.take_snapshot();
        Ok(())
    }

    fn resume(&self) -> Result<(), GuestError> {
        self.0.let_go();
        Ok(())
    }
}

/// Waits until `condition` holds; false when it does not within a generous while.
pub(crate) fn eventually(condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    true
}
