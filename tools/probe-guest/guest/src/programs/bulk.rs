//! Programs on the whole working set.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use super::{Barrier, Each, Outcome, Shared, Words, each, violation};
use crate::boot::MAX_CPUS;
use crate::content::next_random;
use crate::memory::Layout;
use crate::shared::Plan;

const PAGE_WORDS: u64 = 512;
/// Pages filled before vCPU 0 looks at its duties again.
const FILL_PAGES: u64 = 64;
/// Pages that are sorted at once.
const BLOCK_PAGES: u64 = 16;
const BLOCK_WORDS: usize = (BLOCK_PAGES * PAGE_WORDS) as usize;

/// Passes whose sums are put into the total at once: what is done between is a vCPU's own.
const PASSES_A_TOTAL: u64 = 64;

static TOTAL: Shared = Shared::new();
/// Of what each vCPU put in: how many, their sum. And of what it found.
static SUMS: Each = each();

/// What word `index` of page `page` holds.
fn word(page: u64, index: u64) -> u64 {
    (page * PAGE_WORDS + index).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn sum_of(page: u64) -> u64 {
    let first = page * PAGE_WORDS;
    let indices = (first + first + PAGE_WORDS - 1) * PAGE_WORDS / 2;
    indices.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A part of the working set, to be filled first.
struct Filling {
    layout: Layout,
    next: u64,
    end: u64,
}

impl Filling {
    fn new(plan: &Plan, cpu: usize) -> Self {
        let (pages, cpus, cpu) = (plan.layout.pages, plan.cpus as u64, cpu as u64);
        Self { layout: plan.layout, next: pages * cpu / cpus, end: pages * (cpu + 1) / cpus }
    }

    /// Fills a little; true when it is full.
    fn go_on(&mut self) -> bool {
        let until = self.end.min(self.next + FILL_PAGES);
        for page in self.next..until {
            let words = self.layout.words(page);
            (0..).zip(words).for_each(|(index, place)| place.store(word(page, index), Ordering::Release));
        }
        self.next = until;
        self.next == self.end
    }
}

fn add_up(words: &Words) -> u64 {
    words.iter().fold(0, |sum: u64, word| sum.wrapping_add(word.load(Ordering::Relaxed)))
}

/// Each adds up its own part, and all of them what they found.
pub struct Sum {
    filling: Filling,
    first: u64,
    at: u64,
    found: u64,
    /// Of whole passes, and not in the total yet.
    mine: u64,
    passes: u64,
}

impl Sum {
    pub fn new(plan: &Plan, cpu: usize) -> Self {
        let filling = Filling::new(plan, cpu);
        Self { first: filling.next, at: filling.next, found: 0, mine: 0, passes: 0, filling }
    }

    pub fn fill(&mut self) -> bool {
        self.filling.go_on()
    }

    pub fn step(&mut self) -> Outcome {
        if self.at == self.filling.end {
            let expected = (self.first..self.filling.end).fold(0, |sum: u64, page| sum.wrapping_add(sum_of(page)));
            let found = core::mem::take(&mut self.found);
            self.at = self.first;
            self.passes += 1;
            self.mine = self.mine.wrapping_add(found);
            if self.passes.is_multiple_of(PASSES_A_TOTAL) {
                TOTAL.0[0].fetch_add(core::mem::take(&mut self.mine), Ordering::SeqCst);
            }
            return if found == expected { Outcome::Done(1) } else { violation("sum", expected, found) };
        }
        let found = add_up(self.filling.layout.words(self.at));
        let expected = sum_of(self.at);
        self.at += 1;
        self.found = self.found.wrapping_add(found);
        if found == expected { Outcome::Done(1) } else { violation("page-sum", expected, found) }
    }
}

/// Each reads everything.
pub struct Scan {
    filling: Filling,
    pages: u64,
    at: u64,
}

impl Scan {
    pub fn new(plan: &Plan, cpu: usize) -> Self {
        let filling = Filling::new(plan, cpu);
        // Not all at the same place.
        Self { pages: plan.layout.pages, at: filling.next, filling }
    }

    pub fn fill(&mut self) -> bool {
        self.filling.go_on()
    }

    pub fn step(&mut self) -> Outcome {
        if self.pages == 0 {
            return Outcome::Done(1);
        }
        let page = self.at % self.pages;
        self.at += 1;
        let (found, expected) = (add_up(self.filling.layout.words(page)), sum_of(page));
        if found == expected { Outcome::Done(1) } else { violation("page-sum", expected, found) }
    }
}

/// Where a vCPU sorts two blocks.
#[repr(C, align(4096))]
struct Scratch(UnsafeCell<[u64; 2 * BLOCK_WORDS]>);

// SAFETY: each vCPU uses its own only, and makes one `Sort`.
unsafe impl Sync for Scratch {}

static SCRATCH: [Scratch; MAX_CPUS] = [const { Scratch(UnsafeCell::new([0; 2 * BLOCK_WORDS])) }; MAX_CPUS];

enum Stage {
    Generate,
    /// Neighbouring blocks are merged, in turn those that begin at an even and at an odd one: after as many turns as there are blocks all is
    /// sorted.
    Merge(u64),
    Verify,
    Compare,
}

/// All sort the working set: each pair of neighbouring blocks by one vCPU, in turns that all wait for.
pub struct Sort {
    layout: Layout,
    cpu: usize,
    cpus: usize,
    blocks: u64,
    random: u64,
    stage: Stage,
    /// The next block of this stage that is this vCPU's.
    next: u64,
    barrier: Barrier,
    sums: [u64; 2],
}

impl Sort {
    pub fn new(plan: &Plan, cpu: usize) -> Self {
        Self {
            layout: plan.layout,
            cpu,
            cpus: plan.cpus,
            blocks: plan.layout.pages / BLOCK_PAGES,
            random: plan.seed ^ (cpu as u64) << 32,
            stage: Stage::Generate,
            next: cpu as u64,
            barrier: Barrier { phase: 1 << 32, arrived: false },
            sums: [0; 2],
        }
    }

    fn words(&self, block: u64) -> impl Iterator<Item = &'static AtomicU64> + use<> {
        let layout = self.layout;
        (block * BLOCK_PAGES..(block + 1) * BLOCK_PAGES).flat_map(move |page| layout.words(page))
    }

    pub fn step(&mut self) -> Outcome {
        let end = match self.stage {
            Stage::Generate | Stage::Verify => self.blocks,
            Stage::Merge(turn) => (self.blocks - (turn & 1).min(self.blocks)) / 2,
            Stage::Compare => 0,
        };
        if self.next >= end {
            return self.end_stage();
        }
        let mine = self.next;
        self.next += self.cpus as u64;
        match self.stage {
            Stage::Generate => {
                for place in self.words(mine) {
                    let value = next_random(&mut self.random);
                    self.sums[0] = self.sums[0].wrapping_add(value);
                    place.store(value, Ordering::Release);
                }
            }
            Stage::Merge(turn) => self.merge(mine * 2 + (turn & 1)),
            Stage::Verify => return self.verify(mine),
            Stage::Compare => {}
        }
        Outcome::Done(1)
    }

    fn merge(&self, block: u64) {
        // SAFETY: this vCPU's scratch, of which nobody else has a reference.
        let scratch = unsafe { &mut *SCRATCH[self.cpu].0.get() };
        let both = || self.words(block).chain(self.words(block + 1));
        scratch.iter_mut().zip(both()).for_each(|(value, place)| *value = place.load(Ordering::Acquire));
        scratch.sort_unstable();
        scratch.iter().zip(both()).for_each(|(value, place)| place.store(*value, Ordering::Release));
    }

    fn verify(&mut self, block: u64) -> Outcome {
        let before = if block == 0 { None } else { self.words(block - 1).last() };
        let mut last = before.map_or(0, |word| word.load(Ordering::Acquire));
        for place in self.words(block) {
            let value = place.load(Ordering::Acquire);
            if value < last {
                return violation("not-sorted", last, value);
            }
            last = value;
            self.sums[1] = self.sums[1].wrapping_add(value);
        }
        Outcome::Done(1)
    }

    fn end_stage(&mut self) -> Outcome {
        let shared = &SUMS[self.cpu].0;
        if matches!(self.stage, Stage::Verify) {
            (0..).zip(self.sums).for_each(|(index, sum): (usize, u64)| shared[index].store(sum, Ordering::Release));
        }
        if !self.barrier.pass(self.cpu, self.cpus) {
            return Outcome::Waits;
        }
        self.next = self.cpu as u64;
        self.stage = match self.stage {
            // One block alone is sorted by nobody.
            Stage::Generate if self.blocks > 1 => Stage::Merge(0),
            Stage::Merge(turn) if turn < self.blocks => Stage::Merge(turn + 1),
            Stage::Merge(_) => Stage::Verify,
            Stage::Verify => Stage::Compare,
            Stage::Generate | Stage::Compare => {
                self.sums = [0; 2];
                Stage::Generate
            }
        };
        if !matches!(self.stage, Stage::Compare) {
            return Outcome::Done(1);
        }
        let total = |index: usize| {
            let sums = SUMS[..self.cpus].iter().map(|page| page.0[index].load(Ordering::Acquire));
            sums.fold(0, u64::wrapping_add)
        };
        let [expected, found] = [total(0), total(1)];
        if found == expected { Outcome::Done(1) } else { violation("sorted-others", expected, found) }
    }
}
