//! Which way through the state machine: what to do next, by strategy and by what the rounds showed. Pure.
//!
//! Strategies differ in three answers only: whether a first round is copied at all, whether another round pays, and what
//! becomes of a guest that does not converge. Everything else is one path.

use crate::convergence::{Convergence, Decision as Verdict, RoundReport};
use vmotion_model::Strategy;

/// Hybrid goes on with rounds that leave less than this part of what they began with. Each round is traffic that following
/// pages would not be.
const HYBRID_PAYING_RATIO: f64 = 0.5;

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
}

impl Plan {
    /// A plan for a move under `rule`.
    #[must_use]
    pub const fn new(strategy: Strategy, rule: Convergence) -> Self {
        Self { strategy, rule, begun_with: None, handing_over: matches!(strategy, Strategy::Postcopy) }
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
        !matches!(self.strategy, Strategy::Postcopy)
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
        let pages = if self.handing_over { 0 } else { remaining_pages };
        self.rule.predict_pause_ms(pages, rtt)
    }

    /// Takes a round into account and decides. `hopeless` says that the round was cut short because the guest writes as fast as the
    /// path carries.
    pub fn after_round(&mut self, report: &RoundReport, hopeless: bool) -> Decision {
        let before = self.begun_with.replace(report.remaining_pages);
        let predicted_ms = self.rule.predict_pause_ms(0, report.rtt);
        // A hand-over that was taken back is tried again: the reason for it still holds.
        if self.handing_over || hopeless && Self::may_hand_over(self.strategy) {
            return self.hand_over(predicted_ms);
        }
        match (self.rule.after_round(report), self.strategy) {
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

    const fn hand_over(&mut self, predicted_ms: f64) -> Decision {
        self.handing_over = true;
        Decision::HandOver { predicted_ms }
    }
}

/// Does the guest write as fast as the path carries? Asked in the middle of a round, `seconds` after its beginning.
#[must_use]
pub(crate) fn is_hopeless(written_pages_per_s: f64, sent_pages_per_s: f64, seconds: f64) -> bool {
    seconds >= HOPELESS_AFTER_S && sent_pages_per_s > 0.0 && written_pages_per_s > sent_pages_per_s * HOPELESS_RATIO
}

/// Earlier, slow start and scheduling say more than the path.
const HOPELESS_AFTER_S: f64 = 0.5;
/// Rounds shrink by the ratio of writing to sending. Near 1 they take for ever; hand over from here on.
const HOPELESS_RATIO: f64 = 0.8;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn report(pages: u64, remaining_pages: u64) -> RoundReport {
        RoundReport { pages, duration: Duration::from_millis(1000), remaining_pages, rtt: Duration::from_millis(1) }
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
    fn a_guest_that_writes_twice_as_fast_as_the_path_carries_is_hopeless_and_one_at_half_is_not() {
        assert!(is_hopeless(56_000.0, 28_000.0, 1.0));
        assert!(!is_hopeless(14_000.0, 28_000.0, 1.0));
        assert!(!is_hopeless(56_000.0, 28_000.0, 0.1), "too early to tell");
        assert!(!is_hopeless(56_000.0, 0.0, 1.0), "a path that carries nothing yet says nothing");
    }
}
