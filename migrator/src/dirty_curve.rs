//! How many different pages does the guest write in an interval? A curve through what was seen. Pure.
//!
//! A guest that writes `rate` pages each ms at random over a set of `set` pages has written `set · (1 − e^(−rate·t/set))` different
//! ones after `t` ms: a straight line at first, the whole set in the end. One with a hot and a cold part is seen as its hot part until longer
//! intervals say more. A guest that writes one page after the other, and begins again when it has written all, follows a straight line until it
//! meets its end. It never writes again soon what it has just written, and that is what a round has just copied: rounds shrink for it only by
//! being faster than it is.

/// How a guest goes through its set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Any page next.
    Random,
    /// All before one comes again.
    InTurn,
}

/// Two numbers, an order, and what follows from them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct DirtyCurve {
    /// Pages each ms when none has been written yet.
    rate: f64,
    /// Pages among which it writes.
    set: f64,
    order: Order,
}

/// Sizes of the set that are tried, from what was seen to all there is, evenly spread by ratio.
const STEPS: u32 = 60;
/// Fits that are worse than the best one by less are as likely: chance of the sample.
const AS_LIKELY: f64 = 1.0;
/// A guest is taken to write in turn only when that explains what was seen better by this much, and not merely as well.
const CLEARLY: f64 = 4.0;
/// Of a set of which so much was seen all was seen.
const ALL_SEEN: f64 = 0.97;

impl DirtyCurve {
    /// A guest that writes nothing.
    pub(crate) const NONE: Self = Self { rate: 0.0, set: 1.0, order: Order::Random };

    /// A guest that writes `rate` pages each ms at random over `set` pages.
    pub(crate) const fn random(rate: f64, set: f64) -> Self {
        Self { rate, set, order: Order::Random }
    }

    /// A curve through `points`, each (ms, different pages), of which each page counted stands for `scale` pages of the guest.
    /// The guest has `ceiling` pages to write to. Of sets that explain the points equally well the middle one is taken.
    #[must_use]
    pub(crate) fn fit(points: &[(f64, f64)], scale: f64, ceiling: f64) -> Self {
        let seen: Vec<(f64, f64)> = points.iter().copied().filter(|(ms, pages)| *ms > 0.0 && *pages > 0.0).collect();
        let Some(&(last_ms, last_pages)) = seen.iter().max_by(|a, b| a.0.total_cmp(&b.0)) else { return Self::NONE };
        let most = seen.iter().map(|(_, pages)| *pages).fold(1.0, f64::max);
        let misfit = |curve: &Self| -> f64 {
            seen.iter().map(|(ms, pages)| (curve.pages(*ms) - pages).powi(2) / (pages * scale).max(1.0)).sum()
        };
        let least = most * 1.001 + 1.0;
        let ratio = (ceiling.max(least) / least).powf(1.0 / f64::from(STEPS));
        let candidates: Vec<(f64, Self)> = (0..=STEPS)
            .filter_map(|step| {
                let set = least * ratio.powi(i32::try_from(step).ok()?);
                // Through the last point exactly: it has seen the most.
                let rate = -set / last_ms * (1.0 - last_pages / set).ln();
                let curve = Self { rate, set, order: Order::Random };
                Some((misfit(&curve), curve))
            })
            .collect();
        let best = candidates.iter().map(|(misfit, _)| *misfit).fold(f64::INFINITY, f64::min);
        let likely: Vec<&Self> =
            candidates.iter().filter(|(misfit, _)| *misfit <= best + AS_LIKELY).map(|(_, curve)| curve).collect();
        let random = likely.get(likely.len() / 2).map_or(Self::NONE, |curve| **curve);
        match Self::in_turn(&seen, most) {
            Some(in_turn) if misfit(&in_turn) + CLEARLY < best => in_turn,
            _ => random,
        }
    }

    /// A line that ends at `most`, the end of which was seen: without it nobody knows how long the line is.
    fn in_turn(seen: &[(f64, f64)], most: f64) -> Option<Self> {
        let is_open = |point: &&(f64, f64)| point.1 < most * ALL_SEEN;
        let (ms, pages) = seen.iter().filter(is_open).max_by(|a, b| a.0.total_cmp(&b.0))?;
        let full = seen.iter().filter(|point| !is_open(point)).count();
        (full > 1).then_some(Self { rate: pages / ms, set: most, order: Order::InTurn })
    }

    /// Different pages written in `ms`.
    #[must_use]
    pub(crate) fn pages(&self, ms: f64) -> f64 {
        let written = self.rate * ms.max(0.0);
        match self.order {
            Order::Random => self.set * (1.0 - (-written / self.set).exp()),
            Order::InTurn => written.min(self.set),
        }
    }

    /// Different pages written in a round of `ms` that copies `copied` pages: what is to be copied next. A page that is copied in the
    /// round counts only when it is written after that, on average half the round.
    #[must_use]
    pub(crate) fn left_by_round(&self, ms: f64, copied: f64) -> f64 {
        let copied = copied.min(self.set);
        let others = self.set - copied;
        match self.order {
            Order::Random => {
                let x = self.rate * ms.max(0.0) / self.set;
                let after_copy = if x < 1e-6 { x / 2.0 } else { 1.0 - (1.0 - (-x).exp()) / x };
                copied * after_copy + others / self.set * self.pages(ms)
            }
            // What is copied was written last, so it comes after all others.
            Order::InTurn => {
                let written = self.rate * ms.max(0.0);
                let again = (written - others).max(0.0);
                let after_copy = if again <= copied { again / 2.0 } else { copied * (1.0 - copied / again / 2.0) };
                written.min(others) + after_copy
            }
        }
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
        let guest = DirtyCurve { rate: 100.0, set: 8_000.0, order: Order::Random };
        let points: Vec<(f64, f64)> = [50.0, 100.0, 200.0, 300.0].map(|ms| (ms, guest.pages(ms))).to_vec();
        let fit = DirtyCurve::fit(&points, 16.0, 262_144.0);
        assert!((6_000.0..11_000.0).contains(&fit.set()), "{fit:?}");
        let guest = DirtyCurve { rate: 25.6, set: 131_072.0, order: Order::Random };
        let points: Vec<(f64, f64)> = [50.0, 100.0, 200.0, 300.0].map(|ms| (ms, guest.pages(ms))).to_vec();
        let fit = DirtyCurve::fit(&points, 16.0, 131_072.0);
        assert!(fit.set() > 30_000.0 && (fit.rate() / 25.6 - 1.0).abs() < 0.15, "{fit:?}");
    }

    #[test]
    fn what_is_copied_late_is_written_late() {
        let guest = DirtyCurve { rate: 38.4, set: 117_760.0, order: Order::Random };
        // Seen on a guest that writes 150 MiB/s over 460 MiB, in a first round of 3.13 s: 46,115 pages.
        let left = guest.left_by_round(3130.0, 196_608.0);
        assert!((40_000.0..50_000.0).contains(&left), "{left}");
        // What is not copied in the round counts whenever it is written.
        assert!((guest.left_by_round(100.0, 0.0) - guest.pages(100.0)).abs() < 1e-6);
        assert!(DirtyCurve::NONE.left_by_round(1000.0, 100.0) < 1e-9);
    }

    #[test]
    fn a_guest_that_begins_again_is_known_by_its_end() {
        // 150 MiB/s over 25 MiB, looked at every 20 ms, one page in 16, give or take a few.
        let seen = |ms: f64| ((ms * 38.4).min(6400.0) / 16.0).round() * 16.0;
        let points: Vec<(f64, f64)> = (1..=20).map(|look| f64::from(look) * 20.0).map(|ms| (ms, seen(ms))).collect();
        let fit = DirtyCurve::fit(&points, 16.0, 32_768.0);
        assert_eq!(fit.order, Order::InTurn);
        assert!((fit.rate() - 38.4).abs() < 1.0 && (fit.set() - 6400.0).abs() < 1.0, "{fit:?}");
        // Of a short round all that was written is left; of a first one that takes all of its time, a half.
        assert!((fit.left_by_round(50.0, 1920.0) - 1920.0).abs() < 50.0);
        assert!((fit.left_by_round(6400.0 / 38.4, 6400.0) - 3200.0).abs() < 100.0);
        assert!(fit.left_by_round(1e6, 100.0) <= fit.set());
    }

    #[test]
    fn a_line_without_an_end_is_no_sign_of_an_order() {
        let points: Vec<(f64, f64)> = (1..=20).map(|look| f64::from(look) * 20.0).map(|ms| (ms, ms * 2.0)).collect();
        assert_eq!(DirtyCurve::fit(&points, 16.0, 32_768.0).order, Order::Random);
    }

    proptest! {
        #[test]
        fn what_is_left_is_never_more_than_was_written(rate in 0.01f64..2000.0, set in 100.0f64..250_000.0, ms in 0.0f64..1e5, copied in 0.0f64..1e6) {
            for order in [Order::Random, Order::InTurn] {
                let guest = DirtyCurve { rate, set, order };
                let (left, written) = (guest.left_by_round(ms, copied), guest.pages(ms));
                prop_assert!((0.0..=written * 1.000_001 + 1e-6).contains(&left), "{left} of {written}, {order:?}");
                prop_assert!(written <= set * 1.000_001);
            }
        }

        #[test]
        fn the_fit_goes_through_the_last_point(rate in 0.01f64..2000.0, set in 100.0f64..250_000.0, scale in 1.0f64..16.0) {
            let guest = DirtyCurve { rate, set, order: Order::Random };
            let points: Vec<(f64, f64)> = [100.0, 200.0, 300.0].map(|ms| (ms, guest.pages(ms))).to_vec();
            let fit = DirtyCurve::fit(&points, scale, 262_144.0);
            prop_assert!((fit.pages(300.0) - guest.pages(300.0)).abs() <= guest.pages(300.0) * 0.01 + 1.0, "{fit:?}");
            prop_assert!(fit.pages(10_000.0) <= fit.set());
        }
    }
}
