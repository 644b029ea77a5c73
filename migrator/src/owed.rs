//! What the source owes a guest that runs elsewhere already: each page is sent once, by whoever takes it first.

use std::{
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use vmotion_dirty_tracking::PageBitmap;

const WORD: u64 = 64;
const NOWHERE: u64 = u64::MAX;

/// Pages that are missing at the target and have not been sent.
#[derive(Debug)]
pub(crate) struct OwedPages {
    words: Vec<AtomicU64>,
    pages: u64,
    left: AtomicU64,
    /// The page demanded last: its neighbours are likely to be next.
    near: AtomicU64,
}

impl OwedPages {
    pub(crate) fn new(missing: &PageBitmap) -> Self {
        Self {
            words: missing.words().iter().map(|word| AtomicU64::new(*word)).collect(),
            pages: missing.pages(),
            left: AtomicU64::new(missing.count()),
            near: AtomicU64::new(NOWHERE),
        }
    }

    /// Takes page `index`; true for the first to ask, who must send it.
    pub(crate) fn take(&self, index: u64) -> bool {
        let bit = 1 << (index % WORD);
        let word = usize::try_from(index / WORD).ok().and_then(|word| self.words.get(word));
        let taken = word.is_some_and(|word| word.fetch_and(!bit, Ordering::AcqRel) & bit != 0);
        if taken {
            self.left.fetch_sub(1, Ordering::Relaxed);
        }
        taken
    }

    /// Is anything of the pages from `first` on still owed? Both are multiples of 64.
    pub(crate) fn any_in(&self, first: u64, pages: u64) -> bool {
        let end = (first + pages).min(self.pages).div_ceil(WORD);
        let words = usize::try_from(first / WORD).unwrap_or(usize::MAX)..usize::try_from(end).unwrap_or(usize::MAX);
        self.words.get(words).is_some_and(|words| words.iter().any(|word| word.load(Ordering::Relaxed) != 0))
    }

    /// Pages not sent yet.
    pub(crate) fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    /// A vCPU waited for page `index`.
    pub(crate) fn note_demand(&self, index: u64) {
        self.near.store(index, Ordering::Relaxed);
    }

    /// The page demanded last, if any was.
    pub(crate) fn near(&self) -> Option<u64> {
        Some(self.near.load(Ordering::Relaxed)).filter(|page| *page != NOWHERE)
    }
}

/// How far one flow may push ahead of what the target has placed. Without it whole windows of pushed pages would lie between a
/// demanded page and the vCPU that waits for it.
#[derive(Debug, Default)]
pub(crate) struct PushWindow {
    placed: Mutex<Option<u64>>,
    changed: Condvar,
}

impl PushWindow {
    /// The target has placed everything before mark `mark`.
    pub(crate) fn placed(&self, mark: u64) {
        let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        *placed = (*placed).max(Some(mark));
        self.changed.notify_all();
    }

    /// Waits until mark `mark` is placed, or `patience` is over.
    pub(crate) fn wait_for(&self, mark: u64, patience: Duration) -> bool {
        let placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        let result = self.changed.wait_timeout_while(placed, patience, |placed| placed.is_none_or(|at| at < mark));
        result.map_or_else(|poisoned| !poisoned.into_inner().1.timed_out(), |(_, timeout)| !timeout.timed_out())
    }
}

/// How many pages one flow pushes at a time: what the path carries in a millisecond. More would be a queue in front of demanded pages,
/// on a bottleneck that both share; fewer would not fill the path.
#[derive(Debug)]
pub(crate) struct PushPace {
    pages: f64,
    last: Instant,
}

const PUSH_TIME: Duration = Duration::from_millis(1);
const PUSH_PAGES: std::ops::RangeInclusive<f64> = 8.0..=64.0;

impl PushPace {
    pub(crate) fn new() -> Self {
        Self { pages: 16.0, last: Instant::now() }
    }

    /// Pages of the next batch.
    pub(crate) const fn pages(&self) -> u64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 8 and 64")]
        let pages = self.pages as u64;
        pages
    }

    /// A batch went out, `now`, after waiting for the target or not.
    pub(crate) fn pushed(&mut self, waited: bool, now: Instant) {
        let took = now.saturating_duration_since(std::mem::replace(&mut self.last, now));
        let ratio = PUSH_TIME.as_secs_f64() / took.as_secs_f64().max(1e-6);
        // Without a wait the target keeps up; with one, its pace is the path's. Half-way each time: single times are noise.
        let factor = if waited { ratio.clamp(0.5, 2.0).sqrt() } else { 1.1 };
        self.pages = (self.pages * factor).clamp(*PUSH_PAGES.start(), *PUSH_PAGES.end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_become_what_the_path_carries_in_a_millisecond() {
        let mut pace = PushPace::new();
        let mut now = Instant::now();
        for _ in 0..50 {
            // 28 pages a millisecond.
            now += Duration::from_secs_f64(pace.pages() as f64 / 28_000.0);
            pace.pushed(true, now);
        }
        assert!((25..=30).contains(&pace.pages()), "{pace:?}");
        for _ in 0..50 {
            pace.pushed(false, now);
        }
        assert_eq!(pace.pages(), 64);
    }

    #[test]
    fn a_page_is_taken_once() {
        let mut missing = PageBitmap::new(200);
        missing.set_range(60..130);
        let owed = OwedPages::new(&missing);
        assert!(!owed.take(59) && owed.take(60) && !owed.take(60) && !owed.take(1 << 40));
        assert_eq!(owed.left(), 69);
        assert!(owed.any_in(64, 64) && !owed.any_in(192, 512));
        owed.note_demand(61);
        assert_eq!(owed.near(), Some(61));
    }

    #[test]
    fn a_window_opens_when_its_mark_is_placed() {
        let window = PushWindow::default();
        assert!(!window.wait_for(0, Duration::from_millis(1)));
        window.placed(3);
        window.placed(1);
        assert!(window.wait_for(3, Duration::from_millis(1)));
        assert!(!window.wait_for(4, Duration::from_millis(1)));
    }
}
