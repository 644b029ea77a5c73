//! When a host that does not answer is called again.

use std::{
    hash::{BuildHasher, RandomState},
    time::{Duration, Instant},
};

const FIRST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);
/// A connection that lived as long was a good one.
const GOOD: Duration = Duration::from_secs(1);

/// Doubles with each failure, and differs between hosts, so that they do not all call one host at the same moment.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    random: RandomState,
}

impl Backoff {
    /// When to call again after a failure.
    pub(super) fn next(&mut self, now: Instant) -> Instant {
        let longest = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        // Between half of it and all of it.
        let part = u32::try_from(self.random.hash_one(self.failures) % 512).unwrap_or_default();
        now + longest / 2 + longest / 1024 * part
    }

    /// When to call again after the loss of a connection that lived since `since`, or the failure of a call.
    pub(super) fn after(&mut self, since: Option<Instant>, now: Instant) -> Instant {
        if since.is_some_and(|since| now.saturating_duration_since(since) >= GOOD) {
            self.failures = 0;
        }
        self.next(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_make_it_longer_up_to_a_limit_and_a_good_connection_short_again() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        let waits: Vec<Duration> = (0..40).map(|_| backoff.next(now) - now).collect();
        assert!(waits[0] >= FIRST / 2 && waits[0] <= FIRST, "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= LONGEST), "{waits:?}");
        assert!(waits[39] >= LONGEST / 2, "{waits:?}");
        assert!(backoff.after(Some(now), now) - now >= LONGEST / 2, "it was lost at once");
        assert!(backoff.after(Some(now), now + GOOD) - (now + GOOD) <= FIRST);
    }
}
