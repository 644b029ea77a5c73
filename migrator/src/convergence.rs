//! When to stop copying rounds: the stop rule, pure.
//!
//! Each round sends what was dirtied during the one before. With a guest that writes slower than the path carries, what
//! remains shrinks geometrically to a floor set by the fixed cost of a round. The pause is taken at that floor (a local
//! minimum of what remains), provided the pause it predicts is within the limit. A guest for which the prediction never
//! comes within the limit is given up with numbers, not after an eternity.

use std::time::Duration;

/// What a round did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoundReport {
    /// Pages handled, sent or not.
    pub pages: u64,
    /// Time from the first page read to the last one in the target's memory, or, where the next round follows before that is known, on
    /// its way.
    pub duration: Duration,
    /// The end of it, in which nothing was left to be sent and the last page was only on its way.
    pub way: Duration,
    /// Pages that are dirty now: what remains.
    pub remaining_pages: u64,
    /// The time in which they were dirtied; shorter than the round where some were sent again meanwhile.
    pub dirtied_in: Duration,
    /// Least round-trip time of the path.
    pub rtt: Duration,
}

/// What to do after a round.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Another round pays.
    NextRound,
    /// Pause now.
    SwitchOver {
        /// Pause foreseen, in ms.
        predicted_ms: f64,
    },
    /// It will not converge; the text has the numbers.
    GiveUp(String),
}

/// The stop rule and its memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Convergence {
    downtime_ms_max: f64,
    /// What a pause costs without any page.
    pause_fixed_ms: f64,
    rounds_max: u32,
    rounds: u32,
    /// Pages per ms, the best estimate of what the path and both ends carry.
    pages_per_ms: Option<f64>,
    remaining_before: Option<u64>,
    /// Rounds in a row that did not pay. One may be bad luck.
    unpaying_rounds: u32,
    stalled_rounds: u32,
    least_remaining: f64,
    elapsed_ms: f64,
}

/// Pausing, saving, loading, committing, resuming: what a pause costs without any page, until moves have shown what it costs here. Measured; see
/// BENCHMARKS.md.
const PAUSE_FIXED_MS: f64 = 4.0;
/// No host is faster, whatever was measured; and one that was slower for a while is not refused for ever.
const PAUSE_FIXED_LEAST_MS: f64 = 0.5;
const PAUSE_FIXED_MOST_MS: f64 = 100.0;
/// A remainder that takes less than this is not worth another round.
const NEGLIGIBLE_MS: f64 = 0.5;
/// On a long path a round takes a round trip at least, in which the guest writes on: a remainder of less than this part of one is not
/// worth another.
const NEGLIGIBLE_SHARE: f64 = 0.25;
/// A round is not only waiting, however long the path.
const WAY_SHARE_MAX: f64 = 0.5;
/// Another round must bring what remains below this part of what it was. Near 1, because a guest that writes almost as fast
/// as the path carries shrinks slowly but surely: with 0.8 it was paused for 290 ms on 1 Gbit/s, with 0.95 for 20 ms, in the
/// same total time.
const PAYING_RATIO: f64 = 0.95;
/// So many rounds in a row that do not pay are the floor.
const UNPAYING_ROUNDS: u32 = 2;
/// What remains must fall below this part of the least seen, or the round brought nothing.
const PROGRESS_RATIO: f64 = 0.97;
/// Rounds without progress and outside the limit before giving up.
const STALLED_ROUNDS_MAX: u32 = 6;
/// A round that takes so many times what its pages need, and this much more, in ms, has waited for a path that was gone.
const GONE_RATIO: f64 = 4.0;
const GONE_MS: f64 = 1000.0;
/// Rounds smaller than this say more about fixed costs than about the path.
pub(crate) const PAGES_FOR_RATE: u64 = 1024;

/// What takes less than this to send, in ms, is not worth another round on a path of `rtt`.
pub(crate) fn negligible_ms(rtt: Duration) -> f64 {
    NEGLIGIBLE_MS.max(rtt.as_secs_f64() * 1000.0 * NEGLIGIBLE_SHARE)
}

impl Convergence {
    /// A rule for pauses of at most `downtime_ms_max` ms, and `rounds_max` rounds.
    #[must_use]
    pub fn new(downtime_ms_max: u32, rounds_max: u32) -> Self {
        Self {
            downtime_ms_max: f64::from(downtime_ms_max),
            pause_fixed_ms: PAUSE_FIXED_MS,
            rounds_max,
            rounds: 0,
            pages_per_ms: None,
            remaining_before: None,
            unpaying_rounds: 0,
            stalled_rounds: 0,
            least_remaining: f64::INFINITY,
            elapsed_ms: 0.0,
        }
    }

    /// The same rule where moves have shown what a pause costs without any page, in ms.
    #[must_use]
    pub fn with_pause_fixed_ms(self, seen: Option<f64>) -> Self {
        let pause_fixed_ms = seen.unwrap_or(PAUSE_FIXED_MS).clamp(PAUSE_FIXED_LEAST_MS, PAUSE_FIXED_MOST_MS);
        Self { pause_fixed_ms, ..self }
    }

    /// What a pause costs without any page, in ms.
    #[must_use]
    pub const fn pause_fixed_ms(&self) -> f64 {
        self.pause_fixed_ms
    }

    /// The longest pause allowed, in ms.
    #[must_use]
    pub const fn downtime_ms_max(&self) -> f64 {
        self.downtime_ms_max
    }

    /// The pause foreseen when `pages` remain, in ms.
    #[must_use]
    pub fn predict_pause_ms(&self, pages: u64, rtt: Duration) -> f64 {
        let copying = self.copying_ms(pages);
        // Pages and offer go out together; the answer comes back once.
        copying + rtt.as_secs_f64() * 1000.0 + self.pause_fixed_ms
    }

    /// Sending `pages` as fast as it went so far, in ms.
    #[must_use]
    pub fn copying_ms(&self, pages: u64) -> f64 {
        self.pages_per_ms.map_or(0.0, |rate| pages as f64 / rate)
    }

    /// Sending one page as fast as it went so far, in ms; `None` before the first round.
    #[must_use]
    pub fn page_ms(&self) -> Option<f64> {
        self.pages_per_ms.map(|rate| 1.0 / rate)
    }

    /// All rounds so far, in ms.
    #[must_use]
    pub const fn elapsed_ms(&self) -> f64 {
        self.elapsed_ms
    }

    /// Takes a round into account and decides.
    pub fn after_round(&mut self, round: &RoundReport) -> Decision {
        self.rounds += 1;
        let ms = (round.duration.as_secs_f64() * 1000.0).max(0.001);
        self.elapsed_ms += ms;
        if self.pages_per_ms.is_some() && ms > GONE_MS + GONE_RATIO * self.copying_ms(round.pages) {
            // What was dirtied meanwhile is no sign of a guest that does not converge: rounds shrink anew from here.
            self.remaining_before = None;
            (self.unpaying_rounds, self.stalled_rounds, self.least_remaining) = (0, 0, f64::INFINITY);
        }
        if round.pages > 0 && (round.pages >= PAGES_FOR_RATE || self.pages_per_ms.is_none()) {
            // The last page's way is not the path's pace.
            let way_ms = (round.way.as_secs_f64() * 1000.0).min(ms * WAY_SHARE_MAX);
            let sample = round.pages as f64 / (ms - way_ms);
            self.pages_per_ms = Some(self.pages_per_ms.map_or(sample, |rate| (rate + sample) / 2.0));
        }
        let predicted_ms = self.predict_pause_ms(round.remaining_pages, round.rtt);
        let before = self.remaining_before.replace(round.remaining_pages);
        let copying_ms = self.copying_ms(round.remaining_pages);
        let pays = before.is_none_or(|before| (round.remaining_pages as f64) < before as f64 * PAYING_RATIO);
        self.unpaying_rounds = if pays { 0 } else { self.unpaying_rounds + 1 };
        let floor = self.unpaying_rounds >= UNPAYING_ROUNDS || copying_ms < negligible_ms(round.rtt);
        if predicted_ms <= self.downtime_ms_max && floor {
            return Decision::SwitchOver { predicted_ms };
        }
        let progresses = (round.remaining_pages as f64) < self.least_remaining * PROGRESS_RATIO;
        self.stalled_rounds = if progresses { 0 } else { self.stalled_rounds + 1 };
        self.least_remaining = self.least_remaining.min(round.remaining_pages as f64);
        if self.rounds >= self.rounds_max || self.stalled_rounds >= STALLED_ROUNDS_MAX {
            if predicted_ms <= self.downtime_ms_max {
                return Decision::SwitchOver { predicted_ms };
            }
            return Decision::GiveUp(self.does_not_converge(round, predicted_ms));
        }
        Decision::NextRound
    }

    fn does_not_converge(&self, round: &RoundReport, predicted_ms: f64) -> String {
        let ms = (round.dirtied_in.as_secs_f64() * 1000.0).max(0.001);
        // Pages per ms to MiB per s.
        let mib_s = |pages_per_ms: f64| pages_per_ms * 4096.0 / 1048.576;
        format!(
            "the guest dirties {:.0} MiB/s and the path carries {:.0} MiB/s: after {} rounds {} pages remain, \
             a pause of {predicted_ms:.0} ms where {:.0} ms are allowed",
            mib_s(round.remaining_pages as f64 / ms),
            mib_s(self.pages_per_ms.unwrap_or(0.0)),
            self.rounds,
            round.remaining_pages,
            self.downtime_ms_max,
        )
    }

    /// Milliseconds until the pause, as a geometric series of what remains; `None` when it does not shrink.
    #[must_use]
    pub fn eta_ms(&self, remaining_pages: u64, dirty_pages_per_s: f64) -> Option<u64> {
        let rate = self.pages_per_ms?;
        let ratio = dirty_pages_per_s / 1000.0 / rate;
        if ratio >= 0.99 {
            return None;
        }
        let ms = remaining_pages as f64 / rate / (1.0 - ratio);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and saturates")]
        Some(ms as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs the rule against a guest that dirties `dirty` pages/ms at random over a set of `set` pages, on a path of
    /// `rate` pages/ms with `fixed` ms a round.
    fn simulate(dirty: f64, set: f64, rate: f64, fixed: f64, limit: u32) -> (Decision, f64, u32) {
        let mut rule = Convergence::new(limit, 60);
        let mut pages = 262_144.0;
        for round in 1.. {
            let ms = fixed + pages / rate;
            let remaining = set * (1.0 - (-dirty * ms / set).exp());
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let report = RoundReport {
                pages: pages as u64,
                duration: Duration::from_secs_f64(ms / 1000.0),
                way: Duration::ZERO,
                dirtied_in: Duration::from_secs_f64(ms / 1000.0),
                remaining_pages: remaining as u64,
                rtt: Duration::ZERO,
            };
            match rule.after_round(&report) {
                Decision::NextRound => pages = remaining,
                end => return (end, remaining, round),
            }
        }
        unreachable!("the rule is bounded by rounds_max")
    }

    #[test]
    fn a_guest_slower_than_the_path_is_paused_at_the_floor() {
        // 100 MiB/s of 512 MiB on a path of 1 GiB/s: 25.6 and 262 pages/ms; a round costs 1 ms.
        let (decision, remaining, rounds) = simulate(25.6, 131_072.0, 262.0, 1.0, 300);
        assert!(matches!(decision, Decision::SwitchOver { predicted_ms } if predicted_ms < 5.0), "{decision:?}");
        assert!(remaining < 60.0 && rounds < 10, "{remaining} pages after {rounds} rounds");
    }

    #[test]
    fn a_guest_faster_than_the_path_is_given_up_with_numbers() {
        let (decision, ..) = simulate(500.0, 131_072.0, 26.0, 1.0, 300);
        let Decision::GiveUp(text) = decision else { panic!("{decision:?}") };
        assert!(text.contains("MiB/s") && text.contains("300 ms are allowed"), "{text}");
    }

    #[test]
    fn a_small_hot_set_is_paused_although_it_never_shrinks() {
        let (decision, ..) = simulate(1000.0, 2_000.0, 26.0, 1.0, 300);
        assert!(matches!(decision, Decision::SwitchOver { .. }), "{decision:?}");
    }

    #[test]
    fn an_idle_guest_is_paused_after_one_round() {
        assert_eq!(simulate(0.0, 1.0, 262.0, 1.0, 300).2, 1);
    }

    proptest! {
        #[test]
        fn the_rule_always_ends_and_never_pauses_beyond_the_limit(
            dirty in 0.0f64..2000.0, set in 1.0f64..250_000.0, rate in 1.0f64..1000.0, fixed in 0.1f64..50.0, limit in 4u32..1000,
        ) {
            let (decision, ..) = simulate(dirty, set, rate, fixed, limit);
            if let Decision::SwitchOver { predicted_ms } = decision {
                prop_assert!(predicted_ms <= f64::from(limit));
            }
        }
    }

    #[test]
    fn a_path_that_was_gone_for_a_while_is_no_reason_to_give_up() {
        let mut rule = Convergence::new(300, 60);
        let round = |pages, ms, remaining_pages| RoundReport {
            pages,
            duration: Duration::from_millis(ms),
            way: Duration::ZERO,
            dirtied_in: Duration::from_millis(ms),
            remaining_pages,
            rtt: Duration::from_millis(1),
        };
        // At the floor for long, then ten seconds without a path.
        rule.after_round(&round(24_000, 4000, 1000));
        for _ in 0..5 {
            rule.after_round(&round(12, 3, 12));
        }
        assert_eq!(rule.after_round(&round(12, 15_000, 4000)), Decision::NextRound);
        assert_eq!(rule.after_round(&round(4000, 700, 180)), Decision::NextRound);
    }
}
