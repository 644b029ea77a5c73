//! How fast memory is pushed to a guest that runs elsewhere: as fast as the path and the target take it without a queue, because what
//! somebody waits for would stand in that queue too.
//!
//! ```text
//! batch ─▶ path ─▶ placed ─▶ mark ─▶ here       the shortest such loop of a slice of time, less the shortest of all: what stands
//! ```
//! in the queue all the time. Single loops say nothing: either host may have been busy with something else. A rate, and not a number of
//! batches on the way, because a mark that is late must not leave the path idle.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Loops are judged this often, or once in the shortest of them.
const SLICE: Duration = Duration::from_millis(20);
/// A queue that stands longer is too long, by an eighth of the shortest loop and by a batch: loops differ by as much without one.
const STANDING_MAX: Duration = Duration::from_micros(1000);
/// Pages per second to begin with: half of 1 Gbit/s.
const RATE_FIRST: f64 = 16_000.0;
const RATE_MIN: f64 = 500.0;
/// What a batch takes on the path: a demanded page waits for no more than one.
const BATCH_TIME: Duration = Duration::from_micros(700);
const BATCH_PAGES: std::ops::RangeInclusive<f64> = 8.0..=64.0;
/// Time not used that may be made up for: about what a thread oversleeps on a busy host.
const LATE_MAX: Duration = Duration::from_millis(2);
/// Time used in advance that is remembered: who need not wait for his turn may be far ahead of it.
const EARLY_MAX: Duration = Duration::from_millis(3);
/// Batches of a flow that may be on the way whatever the rate is: where loops are long because hosts are busy, going slower helps nobody.
pub(crate) const ALWAYS_AHEAD: usize = 3;
/// Factors of a slice: before the first queue, after it, and against one.
const FASTER_FIRST: f64 = 1.6;
const FASTER: f64 = 1.02;
const SLOWER: f64 = 0.92;
/// Against a queue no slower than this part of what was placed lately. When that does not help, the queue is not ours.
const KEPT: f64 = 0.85;
/// Slices that "lately" means.
const LATELY: usize = 50;
/// A slice in which less than this part of the rate was placed says nothing about a faster one.
const USED_MIN: f64 = 0.8;

/// What the target placed since it was asked last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) pages: u64,
    /// Shortest time between sending a batch and hearing that it was placed.
    pub(crate) least: Option<Duration>,
}

/// Shared by the flows of a move.
#[derive(Debug)]
pub(crate) struct PushPace(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Pages per second.
    rate: f64,
    /// No queue was met yet.
    first: bool,
    next: Instant,
    slice_began: Instant,
    slice: Heard,
    least: Option<Duration>,
    /// Pages per second placed in each of the last slices, in a ring.
    placed: Vec<f64>,
    slices: usize,
}

impl PushPace {
    pub(crate) fn new(now: Instant) -> Self {
        let slice = Heard::default();
        let state = State {
            rate: RATE_FIRST,
            first: true,
            next: now,
            slice_began: now,
            slice,
            least: None,
            placed: Vec::new(),
            slices: 0,
        };
        Self(Mutex::new(state))
    }

    /// Pages of a batch at the present rate.
    pub(crate) fn batch_pages(&self) -> u64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 8 and 64")]
        let pages = self.with(|state| pages_of_batch(state.rate)) as u64;
        pages
    }

    /// Takes note of what was placed, and of `pages` that are to be sent: how long they have to wait.
    pub(crate) fn reserve(&self, pages: u64, heard: Heard, now: Instant) -> Duration {
        self.with(|state| {
            state.hear(heard, now);
            let takes = Duration::from_secs_f64(pages as f64 / state.rate);
            let turn = state.next.clamp(now.checked_sub(LATE_MAX).unwrap_or(now), now + EARLY_MAX.max(takes * 2));
            state.next = turn + takes;
            turn.saturating_duration_since(now)
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn pages_of_batch(rate: f64) -> f64 {
    (rate * BATCH_TIME.as_secs_f64()).clamp(*BATCH_PAGES.start(), *BATCH_PAGES.end())
}

impl State {
    fn hear(&mut self, heard: Heard, now: Instant) {
        self.slice.pages += heard.pages;
        self.slice.least = self.slice.least.into_iter().chain(heard.least).min();
        let (Some(shortest), Some(took)) = (self.slice.least, now.checked_duration_since(self.slice_began)) else {
            return;
        };
        let least = self.least.map_or(shortest, |least| least.min(shortest));
        self.least = Some(least);
        if took < SLICE.max(least) {
            return;
        }
        let placed = self.slice.pages as f64 / took.as_secs_f64();
        (self.slice, self.slice_began) = (Heard::default(), now);
        if self.placed.len() < LATELY {
            self.placed.push(placed);
        } else {
            self.placed[self.slices % LATELY] = placed;
        }
        self.slices += 1;
        let batch = Duration::from_secs_f64(pages_of_batch(self.rate) / self.rate);
        if shortest - least > STANDING_MAX + least / 8 + batch {
            // The median: marks that come late come together, and then look like a path that is faster than it is.
            let mut lately = self.placed.clone();
            lately.sort_by(f64::total_cmp);
            let kept = lately[lately.len() / 2] * KEPT;
            // The first rates were guesses: what was placed is known.
            self.rate = if self.first { placed * KEPT } else { (self.rate * SLOWER).max(kept) };
            self.first = false;
        } else if placed > self.rate * USED_MIN {
            self.rate *= if self.first { FASTER_FIRST } else { FASTER };
        }
        self.rate = self.rate.max(RATE_MIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes for `time` over a path of `rate` pages/s whose shortest loop is `base`; pages per second placed in the second half, and
    /// the longest queue then.
    fn push(rate: f64, base: Duration, time: Duration) -> (f64, Duration) {
        let start = Instant::now();
        let pace = PushPace::new(start);
        let (mut now, mut free, mut pages, mut longest) = (start, start, 0, Duration::ZERO);
        let mut on_the_way: std::collections::VecDeque<(Instant, u64, Duration)> = std::collections::VecDeque::new();
        while now < start + time {
            let mut heard = Heard::default();
            let arrived = on_the_way.iter().take_while(|(at, ..)| *at <= now).count();
            for (_, batch, took) in on_the_way.drain(..arrived) {
                heard.pages += batch;
                heard.least = heard.least.into_iter().chain([took]).min();
            }
            let batch = pace.batch_pages();
            now += pace.reserve(batch, heard, now);
            free = free.max(now) + Duration::from_secs_f64(batch as f64 / rate);
            let here = free + base;
            on_the_way.push_back((here, batch, here - now));
            if now > start + time / 2 {
                pages += batch;
                longest = longest.max(free - now);
            }
            now += Duration::from_micros(20);
        }
        (pages as f64 / (time / 2).as_secs_f64(), longest)
    }

    #[test]
    fn the_path_is_used_and_no_queue_stands() {
        for (rate, base_ms) in [(28_000.0, 0.5), (28_000.0, 20.0), (120_000.0, 0.3), (2_800.0, 1.0)] {
            let (placed, queue) = push(rate, Duration::from_secs_f64(base_ms / 1000.0), Duration::from_secs(6));
            assert!(placed > rate * 0.93 && placed < rate * 1.01, "{rate} pages/s after {base_ms} ms: {placed}");
            let batch = Duration::from_secs_f64(16.0 / rate);
            let most = Duration::from_millis(8) + batch + Duration::from_secs_f64(base_ms / 2000.0);
            assert!(queue < most, "{rate} pages/s after {base_ms} ms: {queue:?}");
        }
    }
}
