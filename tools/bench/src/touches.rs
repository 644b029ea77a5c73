//! How long the guest waited for pages: the difference of two of its histograms.

use crate::stats;
use serde::Serialize;
use std::collections::BTreeMap;
use vmotion_probe_guest::Touches;

/// A touch that took longer waited for something. Writing a page takes a few µs, its first write under a dirty log a few more.
pub(crate) const WAITED_US: u64 = 64;

/// Touches of pages that took [`WAITED_US`] or longer.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Waits {
    pub(crate) count: u64,
    /// Quantiles of those, in µs.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
    /// All together.
    pub(crate) sum_ms: f64,
    /// How many touches there were, waits or not.
    pub(crate) touches: u64,
}

/// What happened between two lines of the guest. A time is taken to be the middle of its bucket.
pub(crate) fn between(before: &Touches, after: &Touches) -> Waits {
    let before: BTreeMap<u64, u64> = before.buckets.iter().copied().collect();
    let passed = after.buckets.iter().map(|(lower, count)| (*lower, count - before.get(lower).copied().unwrap_or(0)));
    let passed: Vec<(u64, u64)> = passed.filter(|(_, count)| *count > 0).collect();
    let waits: Vec<(f64, u64)> =
        passed.iter().filter(|(lower, _)| *lower >= WAITED_US).map(|(lower, count)| (middle(*lower), *count)).collect();
    Waits {
        count: waits.iter().map(|(_, count)| count).sum(),
        p50_us: stats::quantile_of_counted(&waits, 0.5),
        p99_us: stats::quantile_of_counted(&waits, 0.99),
        p999_us: stats::quantile_of_counted(&waits, 0.999),
        max_us: stats::quantile_of_counted(&waits, 1.0),
        sum_ms: waits.iter().map(|(us, count)| us * *count as f64).sum::<f64>() / 1000.0,
        touches: passed.iter().map(|(_, count)| count).sum(),
    }
}

/// Of a bucket that begins at `lower` µs: there are four in each octave.
fn middle(lower: u64) -> f64 {
    let octave = 1u32 << lower.max(1).ilog2();
    lower as f64 + f64::from(octave) / 8.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_happened_between_counts_and_only_what_waited() {
        let line = |buckets: &[(u64, u64)]| Touches { time_us: 0, buckets: buckets.to_vec() };
        let waits = between(&line(&[(0, 5), (64, 1)]), &line(&[(0, 25), (64, 99), (1024, 1)]));
        assert_eq!((waits.count, waits.touches), (99, 119));
        assert!((waits.p50_us - 72.0).abs() < 1e-9 && (waits.max_us - 1152.0).abs() < 1e-9, "{waits:?}");
    }
}
