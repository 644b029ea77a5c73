//! What was sent and is not known to have arrived. Pure: it is told marks and times.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// The marks of a move's passes, which count from 1 in the order in which they are sent.
#[derive(Debug, Default)]
pub(super) struct OnTheWay {
    last: u64,
    /// The oldest first.
    passes: VecDeque<Pass>,
}

/// What precedes a mark.
#[derive(Debug)]
struct Pass {
    mark: u64,
    /// When it had left this host.
    left: Instant,
    /// A single lost packet of it delays nothing.
    sure: bool,
}

impl OnTheWay {
    /// For the next pass.
    pub(super) const fn next_mark(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Of the last pass; 0 before the first.
    pub(super) const fn last_mark(&self) -> u64 {
        self.last
    }

    /// All that precedes `mark` had left this host `at` that time; if it is `sure`, a single lost packet of it delays nothing.
    pub(super) fn left(&mut self, mark: u64, at: Instant, sure: bool) {
        self.passes.push_back(Pass { mark, left: at, sure });
    }

    /// All that precedes `mark` is in the target's memory.
    pub(super) fn arrived(&mut self, mark: u64) {
        while self.passes.front().is_some_and(|oldest| oldest.mark <= mark) {
            self.passes.pop_front();
        }
    }

    /// Since when the oldest is on its way, seen from `now`; zero when nothing is.
    pub(super) fn longest(&self, now: Instant) -> Duration {
        self.passes.front().map_or(Duration::ZERO, |pass| now.saturating_duration_since(pass.left))
    }

    /// Is nothing on its way but what is sure to arrive in time, and left so short a time before `now` that it cannot have been
    /// answered?
    pub(super) fn is_calm(&self, now: Instant, unanswered: Duration) -> bool {
        self.passes.iter().all(|pass| pass.sure) && self.longest(now) <= unanswered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_that_has_not_arrived_counts() {
        let (mut way, start) = (OnTheWay::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!((way.last_mark(), way.longest(at(5))), (0, Duration::ZERO));
        for ms in [10, 20, 30] {
            let mark = way.next_mark();
            way.left(mark, at(ms), true);
        }
        assert_eq!(way.longest(at(100)), Duration::from_millis(90));
        // Word of a later pass is word of all before.
        way.arrived(2);
        assert_eq!(way.longest(at(100)), Duration::from_millis(70));
        way.arrived(2);
        assert_eq!(way.longest(at(100)), Duration::from_millis(70));
        way.arrived(3);
        assert_eq!((way.last_mark(), way.longest(at(100))), (3, Duration::ZERO));
    }

    #[test]
    fn what_may_be_lost_must_have_arrived_and_what_is_old() {
        let (mut way, start, trip) = (OnTheWay::default(), Instant::now(), Duration::from_millis(100));
        let at = |ms| start + Duration::from_millis(ms);
        assert!(way.is_calm(start, trip));
        for (ms, sure) in [(10, false), (20, true), (30, true)] {
            let mark = way.next_mark();
            way.left(mark, at(ms), sure);
        }
        assert!(!way.is_calm(at(40), trip), "young, but not sure");
        way.arrived(1);
        assert!(way.is_calm(at(40), trip));
        assert!(!way.is_calm(at(121), trip), "sure, but not answered");
        way.arrived(2);
        assert!(way.is_calm(at(121), trip));
    }
}
