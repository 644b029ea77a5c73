//! Which page comes next, and how fast.

use crate::content::next_random;

/// How pages are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// One after the other.
    Sequential,
    /// Each equally likely.
    Uniform,
    /// Few pages most of the time: the density falls with rank^-0.8, hot pages scattered over the working set.
    Zipf,
    /// Writes to an eighth of the pages only; nine reads of any page per write.
    ReadMostly,
}

/// Chooses pages of one vCPU's part.
pub struct Picker {
    pattern: Pattern,
    pages: u64,
    cursor: u64,
    random: u64,
}

impl Picker {
    /// A picker for `pages` pages, which must not be zero.
    pub fn new(pattern: Pattern, pages: u64, seed: u64) -> Self {
        Self { pattern, pages, cursor: 0, random: seed }
    }

    /// The next page to write.
    pub fn next_write(&mut self) -> u64 {
        match self.pattern {
            Pattern::Sequential => {
                let page = self.cursor;
                self.cursor = if page + 1 == self.pages { 0 } else { page + 1 };
                page
            }
            Pattern::Uniform => self.below(self.pages),
            Pattern::Zipf => self.zipf(),
            Pattern::ReadMostly => self.below(self.pages.div_ceil(8)) * 8 % self.pages,
        }
    }

    /// Pages to read after each write.
    pub fn reads_per_write(&self) -> u64 {
        if self.pattern == Pattern::ReadMostly { 9 } else { 0 }
    }

    /// Any page.
    pub fn next_read(&mut self) -> u64 {
        self.below(self.pages)
    }

    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(next_random(&mut self.random)) * u128::from(bound)) >> 64) as u64
    }

    fn zipf(&mut self) -> u64 {
        // A prime above any number of pages, so multiplying by it permutes them.
        const SCATTER: u64 = 2_654_435_761;
        let uniform = (next_random(&mut self.random) >> 11) as f64 / (1_u64 << 53) as f64;
        let squared = uniform * uniform;
        let rank = (self.pages as f64 * squared * squared * uniform) as u64;
        rank.min(self.pages - 1) * SCATTER % self.pages
    }
}

/// A budget of events per second that never saves up more than 20 ms of them, so a jump of the clock causes no burst.
pub struct Budget {
    /// `None`: unlimited.
    per_second: Option<u64>,
    /// Millionths of an event.
    credit: u64,
    credit_max: u64,
    last_us: u64,
}

const EVENT: u64 = 1_000_000;

impl Budget {
    /// A budget; `None` is unlimited, zero is never.
    pub fn new(per_second: Option<u64>) -> Self {
        let rate = per_second.unwrap_or(0);
        Self { per_second, credit: 0, credit_max: (rate * (EVENT / 50)).max(EVENT), last_us: 0 }
    }

    /// Takes one event if there is credit for it.
    pub fn take(&mut self, now_us: u64) -> bool {
        let Some(rate) = self.per_second else { return true };
        let passed_us = now_us.saturating_sub(self.last_us).min(1_000_000);
        self.last_us = now_us;
        self.credit = (self.credit + passed_us * rate).min(self.credit_max);
        if rate == 0 || self.credit < EVENT {
            return false;
        }
        self.credit -= EVENT;
        true
    }

    /// µs until the next event, as of the last [`Budget::take`].
    pub fn wait_us(&self) -> u64 {
        match self.per_second {
            None => 0,
            Some(0) => u64::MAX,
            Some(rate) => (EVENT.saturating_sub(self.credit)).div_ceil(rate),
        }
    }
}
