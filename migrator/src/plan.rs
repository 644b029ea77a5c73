//! Which way through the state machine: what to do next, by strategy and by what the rounds showed. Pure.
//!
//! Strategies differ in three answers only: whether a first round is copied at all, whether another round pays, and what
//! becomes of a guest that does not converge. Everything else is one path.

use crate::convergence::{Convergence, Decision as Verdict, RoundReport};
use vmotion_model::Strategy;

/// Hybrid goes on with rounds that leave less than this part of what they began with. Each round is traffic that following
/// pages would not be.
const HYBRID_PAYING_RATIO: f64 = 0.5;

/// A hand-over has more to do than a switch-over: userfaultfds, the demand lane. Measured, in ms.
const HAND_OVER_FIXED_MS: f64 = 2.0;
/// Declaring one missing page and unmapping it at the target, in ms. Measured: 26 ms for 72,000 pages here and there, 4 for 48,000 in a row.
const MISSING_PAGE_MS: f64 = 3.5e-4;
/// The part of the time that is planned with; the rest is for what cannot be foreseen.
const DEADLINE_SHARE: f64 = 0.9;

/// What to do after a round.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Another round pays.
    NextRound,
    /// Pause, send what remains, switch over.
    SwitchOver {
        /// Pause foreseen, in ms.
        predicted_ms: f64,
    },
    /// Pause, hand the guest over, let what remains follow.
    HandOver {
        /// Pause foreseen, in ms.
        predicted_ms: f64,
    },
    /// It will not converge; the text has the numbers.
    GiveUp(String),
}

/// A strategy, and what its rounds showed.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    strategy: Strategy,
    rule: Convergence,
    begun_with: Option<u64>,
    handing_over: bool,
    deadline_ms: Option<u64>,
    /// Some of memory is copied first even where none of it needs to be: what the path and the guest do must be seen.
    surveys: bool,
    /// An offer that was not heard can be taken back, and the move goes on.
    renews: bool,
}

impl Plan {
    /// A plan for a move under `rule`.
    #[must_use]
    pub const fn new(strategy: Strategy, rule: Convergence) -> Self {
        let handing_over = matches!(strategy, Strategy::Postcopy);
        Self { strategy, rule, begun_with: None, handing_over, deadline_ms: None, surveys: false, renews: false }
    }

    /// The same, to be over `deadline_ms` after its beginning.
    #[must_use]
    pub const fn by_deadline(self, deadline_ms: Option<u64>) -> Self {
        Self { deadline_ms, ..self }
    }

    /// The same, which looks at path and guest first.
    #[must_use]
    pub const fn with_survey(self, surveys: bool) -> Self {
        Self { surveys, ..self }
    }

    /// The same, with a target that understands that an offer is taken back and the move goes on.
    #[must_use]
    pub const fn with_renewal(self, renews: bool) -> Self {
        Self { renews, ..self }
    }

    /// Can an offer that was not heard be taken back, and the move go on?
    #[must_use]
    pub const fn renews(&self) -> bool {
        self.renews
    }

    /// The same for a guest that writes as fast as the path carries: it is handed over.
    #[must_use]
    pub const fn hopeless(self) -> Self {
        Self { handing_over: Self::may_hand_over(self.strategy), ..self }
    }

    /// The same rounds, on the way by `strategy`.
    #[must_use]
    pub const fn by(self, strategy: Strategy) -> Self {
        Self { strategy, handing_over: self.handing_over || matches!(strategy, Strategy::Postcopy), ..self }
    }

    /// Does slowing the guest down help this strategy?
    #[must_use]
    pub const fn throttles(strategy: Strategy) -> bool {
        matches!(strategy, Strategy::Precopy | Strategy::Auto)
    }

    /// Is there more to copy before the pause, in the middle of the first round?
    #[must_use]
    pub const fn goes_on_copying(&self) -> bool {
        !self.handing_over
    }

    /// The target cannot run a guest before its memory is there.
    #[must_use]
    pub fn without_following(self) -> Self {
        match self.strategy {
            Strategy::Auto => Self { strategy: Strategy::Precopy, ..self },
            Strategy::Precopy | Strategy::Postcopy | Strategy::Hybrid => self,
        }
    }

    /// Is memory copied before the pause at all? If not, dirty pages need no tracking.
    #[must_use]
    pub const fn copies_first(&self) -> bool {
        self.surveys || !matches!(self.strategy, Strategy::Postcopy)
    }

    /// Will what remains at the pause follow the guest?
    #[must_use]
    pub const fn hands_over(&self) -> bool {
        self.handing_over
    }

    /// Does `strategy` make no sense when memory cannot follow the guest?
    #[must_use]
    pub const fn needs_following(strategy: Strategy) -> bool {
        matches!(strategy, Strategy::Postcopy | Strategy::Hybrid)
    }

    /// May memory follow the guest at all?
    #[must_use]
    pub const fn may_hand_over(strategy: Strategy) -> bool {
        !matches!(strategy, Strategy::Precopy)
    }

    /// The stop rule.
    #[must_use]
    pub const fn rule(&self) -> &Convergence {
        &self.rule
    }

    /// The pause foreseen for `remaining_pages`, in ms.
    #[must_use]
    pub fn predict_pause_ms(&self, remaining_pages: u64, rtt: std::time::Duration) -> f64 {
        if self.handing_over {
            return self.predict_hand_over_ms(remaining_pages, rtt);
        }
        self.rule.predict_pause_ms(remaining_pages, rtt)
    }

    /// The pause foreseen when the guest is handed over and `scattered` pages here and there are missing, in ms. Memory of which nothing
    /// was copied costs nothing: it is one range.
    #[must_use]
    pub fn predict_hand_over_ms(&self, scattered: u64, rtt: std::time::Duration) -> f64 {
        self.rule.predict_pause_ms(0, rtt) + HAND_OVER_FIXED_MS + scattered as f64 * MISSING_PAGE_MS
    }

    /// Takes a round into account and decides. `hopeless` says that the round was cut short because the guest writes as fast as the
    /// path carries.
    pub fn after_round(&mut self, report: &RoundReport, hopeless: bool) -> Decision {
        let before = self.begun_with.replace(report.remaining_pages);
        let predicted_ms = self.predict_hand_over_ms(if hopeless { 0 } else { report.remaining_pages }, report.rtt);
        // A hand-over that was taken back is tried again: the reason for it still holds.
        if self.handing_over || hopeless && Self::may_hand_over(self.strategy) {
            return self.hand_over(predicted_ms);
        }
        let verdict = self.rule.after_round(report);
        if self.lacks_time(report) {
            if Self::may_hand_over(self.strategy) {
                return self.hand_over(predicted_ms);
            }
            if let Some(end) = self.end_in_time(report) {
                return end;
            }
        }
        match (verdict, self.strategy) {
            (Verdict::SwitchOver { predicted_ms }, _) => Decision::SwitchOver { predicted_ms },
            (Verdict::GiveUp(_), Strategy::Auto | Strategy::Hybrid) => self.hand_over(predicted_ms),
            (Verdict::GiveUp(reason), _) => Decision::GiveUp(reason),
            (Verdict::NextRound, Strategy::Hybrid) => {
                let began = before.unwrap_or(report.pages);
                if report.remaining_pages as f64 > began as f64 * HYBRID_PAYING_RATIO {
                    return self.hand_over(predicted_ms);
                }
                Decision::NextRound
            }
            (Verdict::NextRound, _) => Decision::NextRound,
        }
    }

    /// Would another round, and what that leaves, end after the deadline?
    fn lacks_time(&self, report: &RoundReport) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "a deadline in ms")]
        let deadline = self.deadline_ms.map(|ms| ms as f64 * DEADLINE_SHARE);
        let twice = 2.0 * self.rule.copying_ms(report.remaining_pages) + self.rule.predict_pause_ms(0, report.rtt);
        deadline.is_some_and(|deadline| self.rule.elapsed_ms() + twice > deadline)
    }

    /// Without handing over: the pause now if it is short enough, the end if the deadline has passed.
    fn end_in_time(&self, report: &RoundReport) -> Option<Decision> {
        let predicted_ms = self.rule.predict_pause_ms(report.remaining_pages, report.rtt);
        if predicted_ms <= self.rule.downtime_ms_max() {
            return Some(Decision::SwitchOver { predicted_ms });
        }
        let deadline = self.deadline_ms?;
        #[expect(clippy::cast_precision_loss, reason = "a deadline in ms")]
        let over = self.rule.elapsed_ms() > deadline as f64;
        over.then(|| {
            Decision::GiveUp(format!(
                "the deadline of {:.1} s has passed, and a pause would take {predicted_ms:.0} ms where {:.0} ms are allowed",
                deadline as f64 / 1000.0,
                self.rule.downtime_ms_max()
            ))
        })
    }

    const fn hand_over(&mut self, predicted_ms: f64) -> Decision {
        self.handing_over = true;
        Decision::HandOver { predicted_ms }
    }
}

/// Does the guest write as fast as the path carries?
#[must_use]
pub(crate) fn is_hopeless(written_pages_per_s: f64, sent_pages_per_s: f64) -> bool {
    sent_pages_per_s > 0.0 && written_pages_per_s > sent_pages_per_s * HOPELESS_RATIO
}

/// Rounds shrink by the ratio of writing to sending. Near 1 they take for ever; hand over from here on.
const HOPELESS_RATIO: f64 = 0.8;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn report(pages: u64, remaining_pages: u64) -> RoundReport {
        let duration = Duration::from_millis(1000);
        RoundReport {
            pages,
            duration,
            way: Duration::ZERO,
            dirtied_in: duration,
            remaining_pages,
            rtt: Duration::from_millis(1),
        }
    }

    fn plan(strategy: Strategy) -> Plan {
        Plan::new(strategy, Convergence::new(50, 60))
    }

    #[test]
    fn postcopy_copies_nothing_first() {
        assert!(!plan(Strategy::Postcopy).copies_first());
        assert!(plan(Strategy::Postcopy).hands_over());
        assert!(plan(Strategy::Hybrid).copies_first());
    }

    #[test]
    fn hybrid_hands_over_as_soon_as_a_round_brings_little() {
        let mut plan = plan(Strategy::Hybrid);
        assert_eq!(plan.after_round(&report(100_000, 30_000), false), Decision::NextRound);
        assert!(matches!(plan.after_round(&report(30_000, 20_000), false), Decision::HandOver { .. }));
        assert!(plan.hands_over());
    }

    #[test]
    fn auto_hands_over_what_does_not_converge_where_precopy_gives_up() {
        for (strategy, hands_over) in [(Strategy::Auto, true), (Strategy::Precopy, false)] {
            let mut plan = plan(strategy);
            let end = loop {
                match plan.after_round(&report(100_000, 100_000), false) {
                    Decision::NextRound => {}
                    end => break end,
                }
            };
            assert_eq!(matches!(end, Decision::HandOver { .. }), hands_over, "{end:?}");
            assert_eq!(matches!(end, Decision::GiveUp(_)), !hands_over, "{end:?}");
        }
    }

    #[test]
    fn a_hopeless_round_ends_in_a_hand_over_where_that_is_allowed() {
        assert!(matches!(plan(Strategy::Auto).after_round(&report(10, 90_000), true), Decision::HandOver { .. }));
        assert!(!matches!(plan(Strategy::Precopy).after_round(&report(10, 90_000), true), Decision::HandOver { .. }));
    }

    #[test]
    fn a_deadline_ends_the_rounds_in_time() {
        let mut auto = plan(Strategy::Auto).by_deadline(Some(3000));
        // A second for 100,000 pages, and another 95,000 after that: two more rounds of nearly a second each do not fit.
        assert!(matches!(auto.after_round(&report(100_000, 95_000), false), Decision::HandOver { .. }));
        let mut precopy = plan(Strategy::Precopy).by_deadline(Some(900));
        let end = precopy.after_round(&report(100_000, 50_000), false);
        assert!(matches!(&end, Decision::GiveUp(why) if why.contains("deadline of 0.9 s")), "{end:?}");
        let mut precopy = plan(Strategy::Precopy).by_deadline(Some(1100));
        assert!(matches!(precopy.after_round(&report(100_000, 4_000), false), Decision::SwitchOver { .. }));
    }

    #[test]
    fn a_guest_that_writes_twice_as_fast_as_the_path_carries_is_hopeless_and_one_at_half_is_not() {
        assert!(is_hopeless(56_000.0, 28_000.0));
        assert!(!is_hopeless(14_000.0, 28_000.0));
        assert!(!is_hopeless(56_000.0, 0.0), "a path that carries nothing yet says nothing");
    }
}
