//! What the source owes a guest that runs elsewhere already: each page is sent once, by whoever takes it first.

use crate::push_pace::{Heard, PushPace};
use std::{
    collections::VecDeque,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
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
    pace: PushPace,
}

impl OwedPages {
    pub(crate) fn new(missing: &PageBitmap) -> Self {
        Self {
            words: missing.words().iter().map(|word| AtomicU64::new(*word)).collect(),
            pages: missing.pages(),
            left: AtomicU64::new(missing.count()),
            near: AtomicU64::new(NOWHERE),
            pace: PushPace::new(Instant::now()),
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

    /// Of all flows together.
    pub(crate) const fn pace(&self) -> &PushPace {
        &self.pace
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

/// What one flow has pushed and the target has not placed.
#[derive(Debug, Default)]
pub(crate) struct PushWindow {
    state: Mutex<Window>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Window {
    placed: Option<u64>,
    /// Mark, pages before it, and when they were sent.
    sent: VecDeque<(u64, u64, Instant)>,
    heard: Heard,
}

impl PushWindow {
    fn lock(&self) -> MutexGuard<'_, Window> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A batch of `pages` is about to be sent, and `mark` behind it.
    pub(crate) fn sent(&self, mark: u64, pages: u64, now: Instant) {
        self.lock().sent.push_back((mark, pages, now));
    }

    /// The target has placed everything before mark `mark`.
    pub(crate) fn placed(&self, mark: u64) {
        let (mut window, now) = (self.lock(), Instant::now());
        let Window { placed, sent, heard } = &mut *window;
        *placed = (*placed).max(Some(mark));
        let arrived = sent.iter().take_while(|(of, ..)| *of <= mark).count();
        for (_, pages, at) in sent.drain(..arrived) {
            heard.pages += pages;
            heard.least = heard.least.into_iter().chain([now.saturating_duration_since(at)]).min();
        }
        drop(window);
        self.changed.notify_all();
    }

    /// Batches that were sent and are not placed.
    pub(crate) fn on_the_way(&self) -> usize {
        self.lock().sent.len()
    }

    /// What was placed since this was asked last.
    pub(crate) fn heard(&self) -> Heard {
        std::mem::take(&mut self.lock().heard)
    }

    /// Waits until mark `mark` is placed, or `patience` is over.
    pub(crate) fn wait_for(&self, mark: u64, patience: Duration) -> bool {
        let not_yet = |window: &mut Window| window.placed.is_none_or(|at| at < mark);
        let result = self.changed.wait_timeout_while(self.lock(), patience, not_yet);
        result.map_or_else(|poisoned| !poisoned.into_inner().1.timed_out(), |(_, timeout)| !timeout.timed_out())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_window_tells_what_was_placed_once() {
        let (window, now) = (PushWindow::default(), Instant::now());
        (0..4).for_each(|mark| window.sent(mark, 16, now));
        window.placed(2);
        assert_eq!(window.on_the_way(), 1);
        let Heard { pages, least } = window.heard();
        assert!(pages == 48 && least.is_some());
        assert_eq!(window.heard(), Heard::default());
    }
}
