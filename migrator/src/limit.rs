//! The operator's limit on bytes per second, which may change while a move goes on.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

/// A limit not set yet, and none at all.
const UNSET: u64 = u64::MAX;
const NONE: u64 = 0;
/// Longest sleep: a limit that was raised, and the end of the move, are noticed that soon.
const SLICE: Duration = Duration::from_millis(50);

/// Bytes per second that a move may put on the wire.
#[derive(Debug)]
pub struct BandwidthLimit(AtomicU64);

impl Default for BandwidthLimit {
    fn default() -> Self {
        Self(AtomicU64::new(UNSET))
    }
}

impl BandwidthLimit {
    /// What the move began with counts, unless it was changed before.
    pub(crate) fn begin_with(&self, limit: Option<u64>) {
        let _ = self.0.compare_exchange(UNSET, limit.unwrap_or(NONE), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// From now on this; `None` for what the path gives.
    pub fn set(&self, limit: Option<u64>) {
        self.0.store(limit.unwrap_or(NONE), Ordering::Relaxed);
    }

    /// Bytes per second now.
    #[must_use]
    pub fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|limit| ![UNSET, NONE].contains(limit))
    }
}

/// Keeps one flow at or below its share of the limit.
#[derive(Debug)]
pub(crate) struct Pacer {
    next: Instant,
    /// Bytes per second that `next` was reckoned with.
    share: u64,
}

impl Default for Pacer {
    fn default() -> Self {
        Self { next: Instant::now(), share: 1 }
    }
}

impl Pacer {
    /// Waits until `bytes` may go on one of `flows` flows; `false` when told to stop.
    pub(crate) fn wait_for(&mut self, bytes: u64, limit: &BandwidthLimit, flows: u64, stop: &AtomicBool) -> bool {
        loop {
            let Some(limit) = limit.get() else { return true };
            let share = (limit / flows.max(1)).max(1);
            let now = Instant::now();
            let mut left = self.next.saturating_duration_since(now);
            if share != self.share {
                left = left.mul_f64((self.share as f64 / share as f64).min(1e6));
                (self.next, self.share) = (now + left, share);
            }
            if left.is_zero() {
                self.next = self.next.max(now) + Duration::from_secs_f64(bytes as f64 / share as f64);
                return true;
            }
            if stop.load(Ordering::Relaxed) {
                return false;
            }
            thread::sleep(left.min(SLICE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_change_wins_over_the_beginning() {
        let limit = BandwidthLimit::default();
        limit.set(Some(5));
        limit.begin_with(Some(7));
        assert_eq!(limit.get(), Some(5));
        let limit = BandwidthLimit::default();
        limit.begin_with(None);
        assert_eq!(limit.get(), None);
    }

    #[test]
    fn whoever_waits_hears_of_the_end() {
        let limit = BandwidthLimit::default();
        limit.set(Some(1));
        let (mut pacer, stop) = (Pacer::default(), AtomicBool::new(true));
        assert!(pacer.wait_for(1 << 20, &limit, 1, &stop), "nothing is owed yet");
        assert!(!pacer.wait_for(1, &limit, 1, &stop));
    }

    #[test]
    fn what_is_owed_is_reckoned_anew_when_the_limit_rises() {
        let limit = BandwidthLimit::default();
        limit.set(Some(1));
        let (mut pacer, stop) = (Pacer::default(), AtomicBool::new(false));
        assert!(pacer.wait_for(1 << 20, &limit, 1, &stop));
        // Twelve days at the old limit, nothing at the new one.
        limit.set(Some(1 << 40));
        assert!(pacer.wait_for(1, &limit, 1, &stop));
    }
}
