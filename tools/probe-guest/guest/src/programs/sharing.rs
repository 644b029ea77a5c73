//! Programs on a page or two that all vCPUs want.

use core::hint::spin_loop;
use core::sync::atomic::Ordering;

use super::{Each, Outcome, Shared, each, violation};

static COUNT: Shared = Shared::new();
static WORDS: Shared = Shared::new();
static LOCK: Shared = Shared::new();
static GUARDED: Shared = Shared::new();
static RECORD: Shared = Shared::new();
/// A ring's slots are in its producer's page.
static SLOTS: Each = each();
static TAILS: Each = each();
static HEADS: Each = each();

/// Tries before a vCPU that wants the lock does something else.
const LOCK_TRIES: u32 = 200;
/// Words of the record that is read most of the time, behind its sequence number.
const RECORD_WORDS: usize = 32;
/// Reads between two writes of it.
const READS_PER_WRITE: u64 = 20_000;
const RING_SLOTS: u64 = 256;

/// What the counter shows.
pub fn counted() -> u64 {
    COUNT.0[0].load(Ordering::SeqCst)
}

/// What is behind the lock.
pub fn guarded() -> u64 {
    GUARDED.0[0].load(Ordering::SeqCst)
}

#[derive(Default)]
pub struct Count {
    next: u64,
}

impl Count {
    pub fn step(&mut self) -> Outcome {
        let before = COUNT.0[0].fetch_add(1, Ordering::SeqCst);
        if before < self.next {
            return violation("counted-twice", self.next, before);
        }
        self.next = before + 1;
        Outcome::Done(1)
    }
}

pub struct FalseSharing {
    cpu: usize,
    count: u64,
}

impl FalseSharing {
    pub const fn new(cpu: usize) -> Self {
        Self { cpu, count: 0 }
    }

    pub fn step(&mut self) -> Outcome {
        let word = &WORDS.0[self.cpu];
        let found = word.load(Ordering::Acquire);
        if found != self.count {
            let expected = core::mem::replace(&mut self.count, found);
            return violation("own-word-changed", expected, found);
        }
        self.count += 1;
        word.store(self.count, Ordering::Release);
        Outcome::Done(1)
    }
}

pub struct Mutex;

impl Mutex {
    pub fn step(&mut self) -> Outcome {
        let lock = &LOCK.0[0];
        let mut tries = 0;
        while lock.load(Ordering::Acquire) != 0 || lock.swap(1, Ordering::SeqCst) != 0 {
            tries += 1;
            if tries > LOCK_TRIES {
                return Outcome::Waits;
            }
            spin_loop();
        }
        let [first, second, third] = [0, 64, 511].map(|index| &GUARDED.0[index]);
        let value = first.load(Ordering::Acquire);
        let same = second.load(Ordering::Acquire) == value && third.load(Ordering::Acquire) == value;
        for word in [first, second, third] {
            word.store(value + 1, Ordering::Release);
        }
        let found = third.load(Ordering::Acquire);
        lock.store(0, Ordering::Release);
        if !same || found != value + 1 {
            return violation("not-alone-behind-the-lock", value + 1, found);
        }
        Outcome::Done(1)
    }
}

pub struct ReadMostly {
    writes: bool,
    reads: u64,
    newest: u64,
}

impl ReadMostly {
    pub const fn new(cpu: usize) -> Self {
        Self { writes: cpu == 0, reads: 0, newest: 0 }
    }

    pub fn step(&mut self) -> Outcome {
        self.reads += 1;
        let (sequence, words) = (&RECORD.0[0], &RECORD.0[64..64 + RECORD_WORDS]);
        if self.writes && self.reads.is_multiple_of(READS_PER_WRITE) {
            let next = sequence.load(Ordering::Acquire) + 1;
            // Odd while it is being written.
            sequence.store(next, Ordering::Release);
            words.iter().for_each(|word| word.store(next + 1, Ordering::Release));
            sequence.store(next + 1, Ordering::Release);
            return Outcome::Done(1);
        }
        let before = sequence.load(Ordering::Acquire);
        let first = words[0].load(Ordering::Acquire);
        let different = words.iter().map(|word| word.load(Ordering::Acquire)).find(|word| *word != first);
        let after = sequence.load(Ordering::Acquire);
        if before != after || before & 1 == 1 {
            return Outcome::Done(1);
        }
        if let Some(found) = different {
            return violation("torn-record", first, found);
        }
        if first != before || before < self.newest {
            return violation("old-record", before.max(self.newest), first);
        }
        self.newest = before;
        Outcome::Done(1)
    }
}

/// One vCPU's two ends: it produces for the next and consumes from the one before.
pub struct Queue {
    out: usize,
    into: usize,
    sent: u64,
    received: u64,
}

/// What the message `number` of `producer` holds.
fn message(producer: usize, number: u64) -> u64 {
    (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ producer as u64
}

impl Queue {
    pub const fn new(cpu: usize, cpus: usize) -> Self {
        Self { out: cpu, into: (cpu + cpus - 1) % cpus, sent: 0, received: 0 }
    }

    pub fn step(&mut self) -> Outcome {
        if self.sent - HEADS[self.out].0[0].load(Ordering::Acquire) < RING_SLOTS {
            let slot = (self.sent % RING_SLOTS) as usize;
            SLOTS[self.out].0[slot].store(message(self.out, self.sent), Ordering::Release);
            self.sent += 1;
            TAILS[self.out].0[0].store(self.sent, Ordering::Release);
        }
        if TAILS[self.into].0[0].load(Ordering::Acquire) == self.received {
            return Outcome::Waits;
        }
        let slot = (self.received % RING_SLOTS) as usize;
        let found = SLOTS[self.into].0[slot].load(Ordering::Acquire);
        let expected = message(self.into, self.received);
        self.received += 1;
        HEADS[self.into].0[0].store(self.received, Ordering::Release);
        if found == expected { Outcome::Done(1) } else { violation("other-message", expected, found) }
    }
}
