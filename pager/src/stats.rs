//! What faults cost, and how pages came.

use hdrhistogram::Histogram;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest stall that is told from longer ones, in nanoseconds: ten minutes.
const STALL_NS_MAX: u64 = 600_000_000_000;

/// How long threads waited, of those that go on by now.
///
/// A stall is measured from when its event was read to when the page was mapped and the thread woken. What lies before (the fault
/// itself, and the event's wait for its reader to be scheduled) and after (the thread being scheduled) is not in it: a few µs where
/// the processor is awake, tens of µs where one must be woken, more where processors are short. The example `stall` prints both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stalls {
    /// Stalls that have ended; threads that waited for one page count each.
    pub count: u64,
    /// All of them together: vCPU time lost.
    pub total: Duration,
    /// Half were not longer (all of these to 1 %).
    pub p50: Duration,
    /// 99 of 100 were not longer.
    pub p99: Duration,
    /// 999 of 1000 were not longer.
    pub p999: Duration,
    /// The longest.
    pub max: Duration,
}

/// What a pager has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultStats {
    /// Faults that made a page be fetched.
    pub faults_demanded: u64,
    /// Faults on pages that were on their way.
    pub faults_waiting: u64,
    /// Faults answered at once: the page was here.
    pub faults_local: u64,
    /// Stalls for pages that were fetched.
    pub fetched: Stalls,
    /// Stalls of faults that were answered at once.
    pub local: Stalls,
    /// Missing pages that arrived after somebody had asked for them, zero ones included.
    pub pages_demanded: u64,
    /// Missing pages that arrived before anybody asked, zero ones included.
    pub pages_pushed: u64,
    /// Those of both that were zero.
    pub pages_zero: u64,
    /// Pages that were never missing and were mapped again beside a fault, the touched one included.
    pub pages_mapped: u64,
    /// Pages nobody ever wrote that were given memory at their first touch.
    pub pages_fresh: u64,
}

impl FaultStats {
    /// vCPU time lost to faults that have ended.
    #[must_use]
    pub fn stalled(&self) -> Duration {
        self.fetched.total + self.local.total
    }
}

/// A thread that waits, since when.
#[derive(Debug, Clone, Copy)]
struct Waiter {
    thread: u32,
    since: Instant,
}

/// Who waits for which page.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    by_page: HashMap<u64, Vec<Waiter>>,
}

impl Waiters {
    /// `thread` waits for `page`. A thread that was interrupted and came back has waited all the time.
    pub(crate) fn add(&mut self, page: u64, thread: u32, since: Instant) {
        let waiters = self.by_page.entry(page).or_default();
        if waiters.iter().all(|waiter| waiter.thread != thread) {
            waiters.push(Waiter { thread, since });
        }
    }

    /// Nobody waits for `page` any more; since when they did.
    pub(crate) fn take(&mut self, page: u64) -> impl Iterator<Item = Instant> + use<> {
        self.by_page.remove(&page).unwrap_or_default().into_iter().map(|waiter| waiter.since)
    }
}

/// Makes [`Stalls`] of single ones.
#[derive(Debug)]
pub struct Recorder {
    histogram: Histogram<u64>,
    total: Duration,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Recorder {
    /// Nobody has waited yet.
    #[must_use]
    pub fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, STALL_NS_MAX, 2).expect("the bounds are valid ones");
        Self { histogram, total: Duration::ZERO }
    }

    /// A thread has waited this long.
    pub fn add(&mut self, stall: Duration) {
        self.histogram.saturating_record(u64::try_from(stall.as_nanos()).unwrap_or(u64::MAX));
        self.total += stall;
    }

    /// All of them so far.
    #[must_use]
    pub fn stalls(&self) -> Stalls {
        let at = |quantile| Duration::from_nanos(self.histogram.value_at_quantile(quantile));
        Stalls {
            count: self.histogram.len(),
            total: self.total,
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: Duration::from_nanos(self.histogram.max()),
        }
    }
}

/// Counts as things happen.
#[derive(Debug)]
pub(crate) struct Counters {
    fetched: Mutex<Recorder>,
    local: Mutex<Recorder>,
    pub(crate) faults_demanded: AtomicU64,
    pub(crate) faults_waiting: AtomicU64,
    pub(crate) pages_demanded: AtomicU64,
    pub(crate) pages_pushed: AtomicU64,
    pub(crate) pages_zero: AtomicU64,
    pub(crate) pages_mapped: AtomicU64,
    pub(crate) pages_fresh: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn new() -> Self {
        Self {
            fetched: Mutex::new(Recorder::new()),
            local: Mutex::new(Recorder::new()),
            faults_demanded: AtomicU64::new(0),
            faults_waiting: AtomicU64::new(0),
            pages_demanded: AtomicU64::new(0),
            pages_pushed: AtomicU64::new(0),
            pages_zero: AtomicU64::new(0),
            pages_mapped: AtomicU64::new(0),
            pages_fresh: AtomicU64::new(0),
        }
    }

    /// Threads that waited since `since` for pages that were fetched go on at `now`.
    pub(crate) fn fetched(&self, since: impl Iterator<Item = Instant>, now: Instant) {
        let mut recorder = lock(&self.fetched);
        since.for_each(|since| recorder.add(now.saturating_duration_since(since)));
    }

    /// A fault of `since` was answered at `now`.
    pub(crate) fn local(&self, since: Instant, now: Instant) {
        lock(&self.local).add(now.saturating_duration_since(since));
    }

    pub(crate) fn stats(&self) -> FaultStats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (fetched, local) = (lock(&self.fetched).stalls(), lock(&self.local).stalls());
        FaultStats {
            faults_demanded: of(&self.faults_demanded),
            faults_waiting: of(&self.faults_waiting),
            faults_local: local.count,
            fetched,
            local,
            pages_demanded: of(&self.pages_demanded),
            pages_pushed: of(&self.pages_pushed),
            pages_zero: of(&self.pages_zero),
            pages_mapped: of(&self.pages_mapped),
            pages_fresh: of(&self.pages_fresh),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_are_counted_once_a_thread_and_page() {
        let (mut waiters, counters, start) = (Waiters::default(), Counters::new(), Instant::now());
        let later = start + Duration::from_micros(50);
        waiters.add(7, 1, start);
        waiters.add(7, 1, later);
        waiters.add(7, 2, later);
        waiters.add(8, 1, start);
        counters.fetched(waiters.take(7), start + Duration::from_micros(100));
        assert_eq!(waiters.take(7).count(), 0);
        let fetched = counters.stats().fetched;
        assert_eq!((fetched.count, fetched.total), (2, Duration::from_micros(150)));
        let near = |stall: Duration, expected: f64| (stall.as_secs_f64() * 1e6 / expected - 1.0).abs() < 0.02;
        assert!(near(fetched.p50, 50.0) && near(fetched.max, 100.0), "{fetched:?}");
    }

    #[test]
    fn stalls_beyond_the_histogram_are_the_longest_there_is() {
        let (counters, start) = (Counters::new(), Instant::now());
        counters.local(start, start + Duration::from_secs(7200));
        let local = counters.stats().local;
        assert_eq!((local.count, local.total), (1, Duration::from_secs(7200)));
        assert!(local.max >= Duration::from_secs(590));
    }
}
