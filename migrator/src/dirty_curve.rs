//! How many different pages does the guest write in an interval? A curve through what was seen. Pure.
//!
//! A guest that writes `rate` pages each ms at random over a set of `set` pages has written `set · (1 − e^(−rate·t/set))` different
//! ones after `t` ms: a straight line at first, the whole set in the end. One that writes in order follows the same curve closely enough;
//! one with a hot and a cold part is seen as its hot part until longer intervals say more.

/// Two numbers and what follows from them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct DirtyCurve {
    /// Pages each ms when none has been written yet.
    rate: f64,
    /// Pages among which it writes.
    set: f64,
}

/// Sizes of the set that are tried, from what was seen to all there is, evenly spread by ratio.
const STEPS: u32 = 60;
/// Fits that are worse than the best one by less are as likely: chance of the sample.
const AS_LIKELY: f64 = 1.0;

impl DirtyCurve {
    /// A guest that writes nothing.
    pub(crate) const NONE: Self = Self { rate: 0.0, set: 1.0 };

    /// A curve through `points`, each (ms, different pages), of which each page counted stands for `scale` pages of the guest.
    /// The guest has `ceiling` pages to write to. Of sets that explain the points equally well the middle one is taken.
    #[must_use]
    pub(crate) fn fit(points: &[(f64, f64)], scale: f64, ceiling: f64) -> Self {
        let seen: Vec<(f64, f64)> = points.iter().copied().filter(|(ms, pages)| *ms > 0.0 && *pages > 0.0).collect();
        let Some(&(last_ms, last_pages)) = seen.iter().max_by(|a, b| a.0.total_cmp(&b.0)) else { return Self::NONE };
        let most = seen.iter().map(|(_, pages)| *pages).fold(1.0, f64::max);
        let least = most * 1.001 + 1.0;
        let ratio = (ceiling.max(least) / least).powf(1.0 / f64::from(STEPS));
        let candidates: Vec<(f64, Self)> = (0..=STEPS)
            .filter_map(|step| {
                let set = least * ratio.powi(i32::try_from(step).ok()?);
                // Through the last point exactly: it has seen the most.
                let rate = -set / last_ms * (1.0 - last_pages / set).ln();
                let curve = Self { rate, set };
                let misfit =
                    seen.iter().map(|(ms, pages)| (curve.pages(*ms) - pages).powi(2) / (pages * scale).max(1.0));
                Some((misfit.sum::<f64>(), curve))
            })
            .collect();
        let best = candidates.iter().map(|(misfit, _)| *misfit).fold(f64::INFINITY, f64::min);
        let likely: Vec<&Self> =
            candidates.iter().filter(|(misfit, _)| *misfit <= best + AS_LIKELY).map(|(_, curve)| curve).collect();
        likely.get(likely.len() / 2).map_or(Self::NONE, |curve| **curve)
    }

    /// Different pages written in `ms`.
    #[must_use]
    pub(crate) fn pages(&self, ms: f64) -> f64 {
        self.set * (1.0 - (-self.rate * ms.max(0.0) / self.set).exp())
    }

    /// Different pages written in a round of `ms` that copies `copied` pages: what is to be copied next. A page that is copied in the
    /// round counts only when it is written after that, on average half the round.
    #[must_use]
    pub(crate) fn left_by_round(&self, ms: f64, copied: f64) -> f64 {
        let x = self.rate * ms.max(0.0) / self.set;
        let after_copy = if x < 1e-6 { self.set * x / 2.0 } else { self.set * (1.0 - (1.0 - (-x).exp()) / x) };
        let share = (copied / self.set).min(1.0);
        share * after_copy + (1.0 - share) * self.pages(ms)
    }

    /// Different pages each ms at first.
    #[must_use]
    pub(crate) const fn rate(&self) -> f64 {
        self.rate
    }

    /// Pages among which the guest writes.
    #[must_use]
    pub(crate) const fn set(&self) -> f64 {
        self.set
    }

    /// The same guest, running at `share` of its speed.
    #[must_use]
    pub(crate) fn slowed_to(self, share: f64) -> Self {
        Self { rate: self.rate * share, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_seen_is_nothing_written() {
        assert!(DirtyCurve::fit(&[], 1.0, 1e6).pages(1000.0) < 1e-9);
        assert!(DirtyCurve::fit(&[(300.0, 0.0)], 16.0, 1e6).pages(1000.0) < 1e-9);
    }

    #[test]
    fn a_small_set_is_recognised_and_a_large_one_is_not_taken_for_small() {
        let guest = DirtyCurve { rate: 100.0, set: 8_000.0 };
        let points: Vec<(f64, f64)> = [50.0, 100.0, 200.0, 300.0].map(|ms| (ms, guest.pages(ms))).to_vec();
        let fit = DirtyCurve::fit(&points, 16.0, 262_144.0);
        assert!((6_000.0..11_000.0).contains(&fit.set()), "{fit:?}");
        let guest = DirtyCurve { rate: 25.6, set: 131_072.0 };
        let points: Vec<(f64, f64)> = [50.0, 100.0, 200.0, 300.0].map(|ms| (ms, guest.pages(ms))).to_vec();
        let fit = DirtyCurve::fit(&points, 16.0, 131_072.0);
        assert!(fit.set() > 30_000.0 && (fit.rate() / 25.6 - 1.0).abs() < 0.15, "{fit:?}");
    }

    #[test]
    fn what_is_copied_late_is_written_late() {
        let guest = DirtyCurve { rate: 38.4, set: 117_760.0 };
        // Seen on a guest that writes 150 MiB/s over 460 MiB, in a first round of 3.13 s: 46,115 pages.
        let left = guest.left_by_round(3130.0, 196_608.0);
        assert!((40_000.0..50_000.0).contains(&left), "{left}");
        // What is not copied in the round counts whenever it is written.
        assert!((guest.left_by_round(100.0, 0.0) - guest.pages(100.0)).abs() < 1e-6);
        assert!(DirtyCurve::NONE.left_by_round(1000.0, 100.0) < 1e-9);
    }

    proptest! {
        #[test]
        fn the_fit_goes_through_the_last_point(rate in 0.01f64..2000.0, set in 100.0f64..250_000.0, scale in 1.0f64..16.0) {
            let guest = DirtyCurve { rate, set };
            let points: Vec<(f64, f64)> = [100.0, 200.0, 300.0].map(|ms| (ms, guest.pages(ms))).to_vec();
            let fit = DirtyCurve::fit(&points, scale, 262_144.0);
            prop_assert!((fit.pages(300.0) - guest.pages(300.0)).abs() <= guest.pages(300.0) * 0.01 + 1.0, "{fit:?}");
            prop_assert!(fit.pages(10_000.0) <= fit.set());
        }
    }
}
