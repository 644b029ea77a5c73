//! Litmus tests: what x86 forbids one processor to see of others. Names and outcomes are those of Sewell et al., *x86-TSO* (2010), and Intel's
//! white paper on memory ordering.
//!
//! Two by two vCPUs race through rounds of store buffering and load buffering; a round is a word in each of two pages, and results are compared
//! when both have run through all words. Meanwhile vCPU 0 and 1 write two words in ascending order, each in a page of its own, and the others
//! look at them: words are only ever seen to grow (`CoRR`), the second of two writes not before the first (`MP`), and no two vCPUs disagree
//! about which of two writers was first (`IRIW`). What is counted as an operation is a round, or for a vCPU without a partner a look.

use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering, fence};

use super::{Each, Outcome, Shared, each, violation};
use crate::serial::Line;

/// Words that one run of a racing pair uses.
const ROUNDS: u64 = 512;

static DATA: Shared = Shared::new();
static FLAG: Shared = Shared::new();
static OTHER: Shared = Shared::new();
/// What a vCPU saw last of the two writers: 32 bits of each.
static SEEN: Each = each();
/// Per pair, in the page of its first vCPU: the words that race.
static LEFT: Each = each();
static RIGHT: Each = each();
/// What each saw in each round, and in which run.
static RESULTS: Each = each();
static RUNS: Each = each();
/// Tests that were made, by vCPU and test.
static MADE: Each = each();

/// Tests, as they are counted.
#[derive(Clone, Copy)]
enum Test {
    StoreBuffering,
    LoadBuffering,
    MessagePassing,
    Coherence,
    IndependentReads,
}

const TESTS: [(Test, &str); 5] = [
    (Test::StoreBuffering, "SB"),
    (Test::LoadBuffering, "LB"),
    (Test::MessagePassing, "MP"),
    (Test::Coherence, "CoRR"),
    (Test::IndependentReads, "IRIW"),
];

/// What was made of each test, all vCPUs together.
pub fn summary(cpus: usize, line: &mut Line) {
    for (test, name) in TESTS {
        let made: u64 = MADE[..cpus].iter().map(|page| page.0[test as usize].load(Ordering::Relaxed)).sum();
        let _ = write!(line, " {name}={made}");
    }
}

/// A vCPU's half of a racing pair.
struct Pair {
    cpu: usize,
    partner: usize,
    /// Whose pages the racing words are in.
    pages: usize,
    /// Odd runs buffer stores, even ones loads.
    run: u64,
    round: u64,
    waits: bool,
}

/// One vCPU's part in all of them.
pub struct Litmus {
    cpu: usize,
    written: u64,
    newest: u64,
    pair: Option<Pair>,
    turn: u64,
}

fn made(cpu: usize, test: Test, count: u64) {
    let counter = &MADE[cpu].0[test as usize];
    counter.store(counter.load(Ordering::Relaxed) + count, Ordering::Relaxed);
}

impl Litmus {
    pub fn new(cpu: usize, cpus: usize) -> Self {
        let partner = cpu ^ 1;
        let pair = Pair { cpu, partner, pages: cpu & !1, run: 1, round: 0, waits: false };
        Self { cpu, written: 0, newest: 0, pair: (partner < cpus).then_some(pair), turn: 0 }
    }

    pub fn step(&mut self) -> Outcome {
        self.turn += 1;
        if let Some(pair) = self.pair.as_mut().filter(|_| self.turn & 1 == 0)
            && let Some(outcome) = pair.step()
        {
            return outcome;
        }
        match self.observe() {
            Outcome::Done(_) if self.pair.is_some() => Outcome::Done(0),
            outcome => outcome,
        }
    }

    fn observe(&mut self) -> Outcome {
        match self.cpu {
            0 => {
                self.written += 1;
                DATA.0[0].store(self.written, Ordering::Release);
                FLAG.0[0].store(self.written, Ordering::Release);
                return Outcome::Done(1);
            }
            1 => {
                self.written += 1;
                OTHER.0[0].store(self.written, Ordering::Release);
            }
            _ => {}
        }
        let flag = FLAG.0[0].load(Ordering::Acquire);
        let data = DATA.0[0].load(Ordering::Acquire);
        made(self.cpu, Test::MessagePassing, 1);
        if data < flag {
            return violation("MP", flag, data);
        }
        let again = DATA.0[0].load(Ordering::Acquire);
        made(self.cpu, Test::Coherence, 1);
        if again < data || data < self.newest {
            return violation("CoRR", data.max(self.newest), again.min(data));
        }
        self.newest = again;
        match self.cpu {
            0 | 1 => Outcome::Done(1),
            even if even & 1 == 0 => {
                let first = DATA.0[0].load(Ordering::Acquire);
                let second = OTHER.0[0].load(Ordering::Acquire);
                SEEN[self.cpu].0[0].store(first << 32 | second & 0xffff_ffff, Ordering::Release);
                Outcome::Done(1)
            }
            _ => self.compare(),
        }
    }

    /// This vCPU looks at the two words in the other order than the one before it did.
    fn compare(&self) -> Outcome {
        let second = OTHER.0[0].load(Ordering::Acquire) & 0xffff_ffff;
        let first = DATA.0[0].load(Ordering::Acquire) & 0xffff_ffff;
        let seen = SEEN[self.cpu - 1].0[0].load(Ordering::Acquire);
        let (their_first, their_second) = (seen >> 32, seen & 0xffff_ffff);
        made(self.cpu, Test::IndependentReads, 1);
        // They saw the first writer's word before the second's; here it was the other way round.
        if their_second < second && first < their_first {
            return violation("IRIW", their_first, first);
        }
        Outcome::Done(1)
    }
}

impl Pair {
    /// `None`: the partner is not ready.
    fn step(&mut self) -> Option<Outcome> {
        if self.waits {
            return self.finish();
        }
        let slot = self.round as usize;
        // Every run has a value of its own: what the run before left counts as nothing.
        let (left, right) = (&LEFT[self.pages].0[slot], &RIGHT[self.pages].0[slot]);
        let (mine, theirs) = if self.cpu == self.pages { (left, right) } else { (right, left) };
        let saw =
            if self.run & 1 == 1 { self.store_then_load(mine, theirs) } else { self.load_then_store(mine, theirs) };
        RESULTS[self.cpu].0[slot].store(self.run << 1 | u64::from(saw), Ordering::Release);
        self.round += 1;
        if self.round == ROUNDS {
            RUNS[self.cpu].0[0].store(self.run, Ordering::Release);
            self.waits = true;
        }
        Some(Outcome::Done(1))
    }

    /// Of two that do this, at least one sees the other's store.
    fn store_then_load(&self, mine: &AtomicU64, theirs: &AtomicU64) -> bool {
        mine.store(self.run, Ordering::Release);
        fence(Ordering::SeqCst);
        theirs.load(Ordering::Acquire) == self.run
    }

    /// Of two that do this, at most one sees the other's store.
    fn load_then_store(&self, mine: &AtomicU64, theirs: &AtomicU64) -> bool {
        let saw = theirs.load(Ordering::Acquire) == self.run;
        mine.store(self.run, Ordering::Release);
        saw
    }

    /// Both have run through all words, and the first compares.
    fn finish(&mut self) -> Option<Outcome> {
        if RUNS[self.partner].0[0].load(Ordering::Acquire) < self.run {
            return None;
        }
        let compares = self.cpu == self.pages;
        let checked = &RUNS[self.pages].0[1];
        if !compares && checked.load(Ordering::Acquire) < self.run {
            return None;
        }
        let outcome = if compares { self.compare() } else { Outcome::Done(1) };
        if compares {
            checked.store(self.run, Ordering::Release);
        }
        (self.run, self.round, self.waits) = (self.run + 1, 0, false);
        Some(outcome)
    }

    fn compare(&self) -> Outcome {
        let buffers_stores = self.run & 1 == 1;
        made(self.cpu, if buffers_stores { Test::StoreBuffering } else { Test::LoadBuffering }, ROUNDS);
        for slot in 0..ROUNDS as usize {
            let [ours, theirs] = [self.cpu, self.partner].map(|cpu| RESULTS[cpu].0[slot].load(Ordering::Acquire));
            let forbidden = if buffers_stores { self.run << 1 } else { self.run << 1 | 1 };
            if ours >> 1 != self.run || theirs >> 1 != self.run {
                return violation("old-result", self.run, ours.min(theirs) >> 1);
            }
            if ours == forbidden && theirs == forbidden {
                return violation(if buffers_stores { "SB" } else { "LB" }, self.run, slot as u64);
            }
        }
        Outcome::Done(1)
    }
}
