//! A guest made of a byte vector: a thread that is its vCPU, which reads, checks and stamps pages while it "runs", and waits
//! for those that are missing; pauses that are counted, and a witness that sees every copy that runs.

use super::{
    memory::Memory,
    witness::{Side, Witness},
};
use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};
use vmotion_dirty_tracking::PageBitmap;
use vmotion_migrator::guest::{GuestError, GuestPages};
use vmotion_model::{MemoryLayout, PAGE_SIZE};

/// How the guest writes. For every page it writes it reads another, anywhere.
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
    /// Devices that are loaded look at the first so many pages.
    pub(crate) restore_reads: u64,
    /// Memory cannot follow a guest to this host after all.
    pub(crate) follow_fails: bool,
}

#[derive(Default)]
struct Gate {
    paused: bool,
    /// The vCPU has seen the pause.
    at_rest: bool,
    /// Its process is gone.
    dead: bool,
}

/// The guest at one side.
pub(crate) struct ModelGuest {
    pub(super) side: Side,
    layout: MemoryLayout,
    memory: Mutex<Memory>,
    /// Missing pages came, or the process ended.
    came: Condvar,
    gate: Mutex<Gate>,
    changed: Condvar,
    writing: Writing,
    faults: Mutex<GuestFaults>,
    pub(super) witness: Arc<Witness>,
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
        let mut memory = Memory::new(pages);
        if side == Side::Source {
            (0..pages / 4 * 3).for_each(|page| memory.write(page));
        }
        let guest = Arc::new(Self {
            side,
            layout: MemoryLayout::for_ram(pages * PAGE_SIZE).unwrap(),
            memory: Mutex::new(memory),
            came: Condvar::new(),
            gate: Mutex::new(Gate { paused: true, ..Gate::default() }),
            changed: Condvar::new(),
            writing,
            faults: Mutex::new(faults),
            witness: Arc::clone(witness),
        });
        let vcpu = Arc::clone(&guest);
        thread::spawn(move || vcpu.run_until_dead());
        guest
    }

    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap()
    }

    pub(super) fn fault(&self) -> MutexGuard<'_, GuestFaults> {
        self.faults.lock().unwrap()
    }

    fn run_until_dead(&self) {
        let (mut step, mut dice) = (0u64, 1u64);
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
            for _ in 0..self.writing.burst {
                dice = dice.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                let read = (dice >> 33) % self.layout.total_pages();
                let written = step % self.writing.pages.max(1);
                step += 1;
                if self.read(read).is_none() {
                    return;
                }
                // What is written was read before: it must not be written over by what follows.
                let Some(mut memory) = self.read(written) else { return };
                memory.write(written);
            }
            thread::sleep(self.writing.every);
        }
    }

    /// Touches a page and compares it with what the guest wrote; waits while it is missing. `None` when the process ended.
    pub(super) fn read(&self, page: u64) -> Option<MutexGuard<'_, Memory>> {
        let mut memory = self.memory();
        while memory.is_live() && memory.missing().contains(page) {
            if self.is_dead() {
                return None;
            }
            if memory.ask(page) {
                self.witness.note_demand();
            }
            // Looked at again now and then: the process may have ended just before.
            memory = self.came.wait_timeout(memory, Duration::from_millis(100)).unwrap().0;
        }
        self.witness.note_check();
        if let Err(wrong) = memory.check(page) {
            let wrong = format!("at the {:?} {wrong}", self.side);
            if self.witness.runs(self.side) {
                self.witness.complain(wrong);
            } else {
                // While its state is loaded: it counts if it ever runs.
                memory.spoiled.get_or_insert(wrong);
            }
        }
        Some(memory)
    }

    pub(super) fn wake_waiters(&self) {
        self.came.notify_all();
    }

    /// Compares every page. Whatever runs goes on.
    pub(crate) fn check_all(&self) {
        let mut memory = self.memory();
        if !memory.missing().is_empty() {
            self.witness.complain(format!("at the {:?} {} pages are missing", self.side, memory.missing().count()));
        }
        for page in 0..memory.pages() {
            self.witness.note_check();
            if let Err(wrong) = memory.check(page) {
                self.witness.complain(format!("at the {:?}, in the end, {wrong}", self.side));
            }
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

    pub(super) fn stand_still(&self) {
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
        drop(gate);
        self.came.notify_all();
    }

    pub(super) fn is_dead(&self) -> bool {
        self.gate.lock().unwrap().dead
    }

    pub(crate) fn is_tracked(&self) -> bool {
        self.memory().dirty.is_some()
    }
}

impl GuestPages for ModelGuest {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    fn read_page(&self, page: u64, into: &mut [u8]) {
        into.copy_from_slice(self.memory().page(page));
    }

    fn touched(&self) -> Result<PageBitmap, GuestError> {
        Ok(self.memory().touched.clone())
    }
}

/// Both ends read the same memory in the same way.
macro_rules! pages_of_its_guest {
    ($end:ty) => {
        impl GuestPages for $end {
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
    };
}
pub(super) use pages_of_its_guest;

pub(super) fn failing(what: &str) -> GuestError {
    GuestError(format!("{what} fails, as scheduled"))
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
