//! How fast does the machine write, and how large is what it writes to? Pure arithmetic on what fetches reported; the
//! caller brings the clock.

use std::time::Duration;

/// Weight of the newest interval in the moving averages, per second of its length.
const WEIGHT_PER_SECOND: f64 = 2.0;

/// What is known about a machine's writing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DirtyEstimate {
    /// Distinct pages written per second, as seen at the lengths of the intervals fed (a page written often counts once an interval).
    pub pages_per_second: f64,
    /// Distinct pages written in the last interval.
    pub unique_pages: u64,
    /// Length of that interval, in seconds.
    pub interval_s: f64,
    /// Largest number of distinct pages seen in any interval since the start: at least this much is the working set.
    pub working_set_pages: u64,
}

/// Feeds on (interval, distinct pages written in it).
#[derive(Debug, Clone, Default)]
pub struct DirtyEstimator {
    estimate: DirtyEstimate,
    fed: bool,
}

impl DirtyEstimator {
    /// Knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// `unique_pages` distinct pages were written in `interval`. An empty interval says nothing and is ignored.
    pub fn feed(&mut self, interval: Duration, unique_pages: u64) {
        let seconds = interval.as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "page counts are far below 2^52")]
        let rate = unique_pages as f64 / seconds;
        let weight = if self.fed { 1.0 - (-WEIGHT_PER_SECOND * seconds).exp() } else { 1.0 };
        let estimate = &mut self.estimate;
        estimate.pages_per_second += weight * (rate - estimate.pages_per_second);
        estimate.unique_pages = unique_pages;
        estimate.interval_s = seconds;
        estimate.working_set_pages = estimate.working_set_pages.max(unique_pages);
        self.fed = true;
    }

    /// What is known, if anything was fed.
    #[must_use]
    pub fn estimate(&self) -> Option<DirtyEstimate> {
        self.fed.then_some(self.estimate)
    }

    /// Pages expected to be written in `interval`: the rate times the interval, but never more than the working set
    /// once an interval at least as long was seen, since a page written twice is still one page.
    #[must_use]
    pub fn expected_pages(&self, interval: Duration) -> Option<f64> {
        let estimate = self.estimate()?;
        let linear = estimate.pages_per_second * interval.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "page counts are far below 2^52")]
        let ceiling = estimate.working_set_pages as f64;
        Some(if interval.as_secs_f64() <= estimate.interval_s { linear.min(ceiling) } else { linear })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_fed_means_nothing_known() {
        let mut estimator = DirtyEstimator::new();
        estimator.feed(Duration::ZERO, 5);
        assert_eq!(estimator.estimate(), None);
        assert_eq!(estimator.expected_pages(Duration::from_secs(1)), None);
    }

    #[test]
    fn steady_rate_is_found_and_change_is_followed() {
        let mut estimator = DirtyEstimator::new();
        for _ in 0..10 {
            estimator.feed(Duration::from_millis(100), 1_000);
        }
        let steady = estimator.estimate().unwrap();
        assert!((steady.pages_per_second - 10_000.0).abs() < 1.0);
        assert_eq!(steady.working_set_pages, 1_000);
        for _ in 0..30 {
            estimator.feed(Duration::from_millis(100), 10);
        }
        assert!(estimator.estimate().unwrap().pages_per_second < 200.0);
    }
}
