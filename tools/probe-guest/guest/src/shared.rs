//! What vCPUs share: the plan (written once, before anybody else starts), counters, and one mailbox per vCPU through
//! which it asks vCPU 0, the only one that may print, to print a line.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::boot::MAX_CPUS;
use crate::clock::TimeBase;
use crate::memory::Layout;
use crate::options::Options;

/// What vCPU 0 decided before the others began.
#[derive(Clone, Copy)]
pub struct Plan {
    pub options: Options,
    pub layout: Layout,
    pub time: TimeBase,
    pub cpus: usize,
    /// LAPIC timer ticks per ms; zero makes idling spin.
    pub timer_ticks_per_ms: u32,
    /// Differs from start to start, so that what an earlier run left in RAM or on disk is never taken for this one's.
    pub seed: u64,
}

struct PlanCell {
    plan: UnsafeCell<Option<Plan>>,
    published: AtomicBool,
}

// SAFETY: `publish` writes before `published` is set, and `wait` reads only after; see there.
unsafe impl Sync for PlanCell {}

static PLAN: PlanCell = PlanCell { plan: UnsafeCell::new(None), published: AtomicBool::new(false) };

/// Shows the plan to everybody. vCPU 0 calls it, once.
pub fn publish(plan: Plan) {
    assert!(!PLAN.published.load(Ordering::Relaxed), "the plan is made once");
    // SAFETY: nobody reads before `published` is set below, and nobody writes after.
    unsafe { *PLAN.plan.get() = Some(plan) };
    PLAN.published.store(true, Ordering::Release);
}

/// Waits for the plan.
pub fn wait() -> Plan {
    while !PLAN.published.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    // SAFETY: published, so it is written and never changes again.
    let plan = unsafe { *PLAN.plan.get() };
    plan.expect("published plans are there")
}

/// Set when vCPUs shall verify all they have and stop.
pub static STOP: AtomicBool = AtomicBool::new(false);

/// Bytes that all vCPUs together shall write each second from now on, by the console's word; [`RATE_AS_PLANNED`] before that.
pub static RATE: AtomicU64 = AtomicU64::new(RATE_AS_PLANNED);

/// Nobody has asked for another rate than the command line's.
pub const RATE_AS_PLANNED: u64 = u64::MAX;

/// One vCPU's counters; only that vCPU writes them, everybody may read. In a page of their own: there are machines whose vCPUs do not share
/// memory by nature, and then a page is what a line is elsewhere.
#[repr(align(4096))]
pub struct Counters {
    pub written: AtomicU64,
    pub verified: AtomicU64,
    pub corrupt: AtomicU64,
    pub backwards: AtomicU64,
    /// Lines that found the mailbox full.
    pub dropped: AtomicU64,
    pub filled: AtomicBool,
    pub finished: AtomicBool,
    pub stopped: AtomicBool,
}

impl Counters {
    const fn new() -> Self {
        Self {
            written: AtomicU64::new(0),
            verified: AtomicU64::new(0),
            corrupt: AtomicU64::new(0),
            backwards: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            filled: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        }
    }
}

/// Adds to a counter that only the caller writes: cheaper than an atomic addition.
pub fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// Counters by vCPU.
pub static COUNTERS: [Counters; MAX_CPUS] = [const { Counters::new() }; MAX_CPUS];

/// Adds one counter up over vCPUs.
pub fn total(cpus: usize, counter: impl Fn(&Counters) -> &AtomicU64) -> u64 {
    COUNTERS[..cpus].iter().map(|counters| counter(counters).load(Ordering::Relaxed)).sum()
}

/// Whether a flag is set on all vCPUs.
pub fn all(cpus: usize, flag: impl Fn(&Counters) -> &AtomicBool) -> bool {
    COUNTERS[..cpus].iter().all(|counters| flag(counters).load(Ordering::Acquire))
}

const LETTER_BYTES: usize = 320;

/// One line on its way to vCPU 0.
#[repr(align(4096))]
pub struct Mailbox {
    full: AtomicBool,
    letter: UnsafeCell<([u8; LETTER_BYTES], usize)>,
}

// SAFETY: `full` hands the letter over: its vCPU writes only while it is false, vCPU 0 reads only while it is true.
unsafe impl Sync for Mailbox {}

/// Mailboxes by vCPU.
pub static MAILBOXES: [Mailbox; MAX_CPUS] =
    [const { Mailbox { full: AtomicBool::new(false), letter: UnsafeCell::new(([0; LETTER_BYTES], 0)) } }; MAX_CPUS];

impl Mailbox {
    /// Posts a line; false if the last one is still waiting. For the mailbox's own vCPU only.
    pub fn post(&self, line: &[u8]) -> bool {
        if self.full.load(Ordering::Acquire) {
            return false;
        }
        // SAFETY: empty, so vCPU 0 does not look; and only the mailbox's own vCPU posts.
        let (bytes, used) = unsafe { &mut *self.letter.get() };
        *used = line.len().min(LETTER_BYTES);
        bytes[..*used].copy_from_slice(&line[..*used]);
        self.full.store(true, Ordering::Release);
        true
    }

    /// Hands a waiting line to `print` and empties the box. For vCPU 0 only.
    pub fn collect(&self, print: impl FnOnce(&[u8])) {
        if self.full.load(Ordering::Acquire) {
            // SAFETY: full, so its vCPU does not write until the store below.
            let (bytes, used) = unsafe { &*self.letter.get() };
            print(&bytes[..*used]);
            self.full.store(false, Ordering::Release);
        }
    }
}
