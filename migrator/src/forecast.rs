//! What will a move cost, by strategy? The engine's own rules, run against what was measured. Pure.
//!
//! A forecast is not a formula beside the engine: [`Plan`] and its stop rule decide here as they will in the move, about rounds whose
//! length follows from the pace measured and whose remainder follows from the [`DirtyCurve`].

use crate::{
    convergence::{Convergence, RoundReport},
    dirty_curve::DirtyCurve,
    plan::{Decision, Plan, is_hopeless},
    source::state::{Abort, Verdict},
};
use std::time::Duration;
use vmotion_model::{Accuracy, Expected, Forecast, MoveRequest, Outlook, Strategy, Survey};

/// A page that is zero is looked at and named: at 4 GiB/s, in ms.
const ZERO_PAGE_MS: f64 = 0.001;
/// A round costs so much without any page: wake-ups, the bitmap, marks. In ms.
const ROUND_FIXED_MS: f64 = 1.0;
/// What a demanded page costs its waiter on a path shorter than [`SHORT_PATH_MS`]: fault, user space, mapping, wake-up. In ms. See
/// BENCHMARKS.md.
const STALL_FIXED_MS: f64 = 0.12;
/// Least round trip that adds to that, in ms: what is measured below is scheduling.
const SHORT_PATH_MS: f64 = 0.3;
/// Ending in good order: the target's last word, and the session's end. Round trips.
const ROUND_TRIPS_AT_END: f64 = 1.0;
/// Throttling is tried in such steps, in percent.
const THROTTLE_STEP: u8 = 5;

/// What forecasts are made from.
#[derive(Debug, Clone)]
pub(crate) struct Basis {
    /// As reported.
    pub(crate) survey: Survey,
    /// Of the guest.
    pub(crate) curve: DirtyCurve,
    /// Time since the first round began, in ms.
    pub(crate) round_elapsed_ms: f64,
    /// Pages of the first round, done ones included.
    pub(crate) round_pages: u64,
    /// Page payload sent so far.
    pub(crate) sent_bytes: f64,
    /// vCPUs of the guest.
    pub(crate) cpus: u32,
    /// Can memory follow the guest?
    pub(crate) follows: bool,
    /// How far forecasts were off before.
    pub(crate) accuracy: Accuracy,
}

/// What a way through the rules comes to.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Course {
    total_ms: f64,
    downtime_ms: f64,
    wire_bytes: f64,
    /// 0 to 1.
    slowdown: f64,
}

impl Basis {
    /// ms for each page that is not zero.
    fn page_ms(&self) -> f64 {
        1000.0 / self.survey.pages_per_s.max(0.001)
    }

    fn non_zero_left(&self) -> f64 {
        self.survey.pages_left as f64 * (1.0 - self.survey.zero_share)
    }

    /// The rest of the first round, in ms.
    fn rest_ms(&self) -> f64 {
        self.non_zero_left() * self.page_ms() + self.survey.pages_left as f64 * self.survey.zero_share * ZERO_PAGE_MS
    }

    /// The guest writes as fast as the path carries: `auto` hands it over at once.
    pub(crate) fn is_hopeless(&self) -> bool {
        let written = self.curve.pages(self.round_elapsed_ms) / self.round_elapsed_ms.max(1.0) * 1000.0;
        self.survey.pages_left > 0 && is_hopeless(written, self.survey.pages_per_s)
    }

    /// Guest handed over with pages to follow: `uncopied` that were never copied, and `rewritten` that were, here and there.
    fn following(&self, mut course: Course, curve: &DirtyCurve, plan: &Plan, uncopied: f64, rewritten: f64) -> Course {
        let rtt = Duration::from_secs_f64(self.survey.rtt_ms / 1000.0);
        let missing = uncopied + rewritten;
        let non_zero = missing - uncopied * self.survey.zero_share;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "pages, and positive")]
        let scattered = rewritten as u64;
        course.downtime_ms = plan.predict_hand_over_ms(scattered, rtt);
        let follow_ms = non_zero * self.page_ms() + (missing - non_zero) * ZERO_PAGE_MS + self.survey.rtt_ms;
        course.total_ms += course.downtime_ms + follow_ms;
        course.wire_bytes += non_zero * self.survey.bytes_per_page;
        // Of what the guest writes a part is missing, and ever less; each page that is costs its waiter a round trip.
        let missing_share = (missing / curve.set()).min(1.0);
        let demanded = (curve.rate() * follow_ms * missing_share / 2.0).min(missing);
        let stalled = demanded * (STALL_FIXED_MS + (self.survey.rtt_ms - SHORT_PATH_MS).max(0.0));
        // Who waits touches nothing meanwhile: waiting for as long as it runs, a guest loses half of its speed.
        let waits = stalled / (follow_ms.max(1.0) * f64::from(self.cpus.max(1)));
        course.slowdown = (waits / (1.0 + waits)).max(course.slowdown);
        course
    }

    /// Runs the rules of `plan` to their end; an error is the engine's own refusal.
    fn run(&self, mut plan: Plan, throttle: f64) -> Result<Course, String> {
        let curve = self.curve.slowed_to(1.0 - throttle);
        let survey = &self.survey;
        let rtt = Duration::from_secs_f64(survey.rtt_ms / 1000.0);
        let fixed_ms = ROUND_FIXED_MS + survey.rtt_ms;
        let mut course = Course {
            total_ms: survey.elapsed_ms,
            wire_bytes: self.sent_bytes,
            slowdown: throttle,
            ..Course::default()
        };
        if !plan.goes_on_copying() {
            let copied = self.round_pages.saturating_sub(survey.pages_left) as f64;
            let share = copied / (self.round_pages as f64).max(1.0);
            let rewritten = curve.left_by_round(self.round_elapsed_ms, self.round_pages as f64) * share;
            return Ok(self.following(course, &curve, &plan, survey.pages_left as f64, rewritten));
        }
        let mut pages = self.round_pages as f64;
        let mut round_ms = self.round_elapsed_ms + self.rest_ms() + survey.rtt_ms;
        course.total_ms += self.rest_ms() + survey.rtt_ms;
        course.wire_bytes += self.non_zero_left() * survey.bytes_per_page;
        loop {
            let remaining = curve.left_by_round(round_ms, pages);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "pages, and positive")]
            let report = RoundReport {
                pages: pages as u64,
                duration: Duration::from_secs_f64(round_ms / 1000.0),
                way: rtt,
                dirtied_in: Duration::from_secs_f64(round_ms / 1000.0),
                remaining_pages: remaining as u64,
                rtt,
            };
            match plan.after_round(&report, false) {
                Decision::NextRound => {}
                Decision::SwitchOver { predicted_ms } => {
                    course.downtime_ms = predicted_ms;
                    course.total_ms += predicted_ms + survey.rtt_ms * ROUND_TRIPS_AT_END;
                    course.wire_bytes += remaining * survey.bytes_per_page;
                    return Ok(course);
                }
                Decision::HandOver { .. } => return Ok(self.following(course, &curve, &plan, 0.0, remaining)),
                Decision::GiveUp(reason) => return Err(reason),
            }
            pages = remaining;
            round_ms = fixed_ms + remaining * self.page_ms();
            course.total_ms += round_ms;
            course.wire_bytes += remaining * survey.bytes_per_page;
        }
    }

    /// Of `strategy`, with as little throttling as does it.
    pub(crate) fn forecast(&self, strategy: Strategy, request: &MoveRequest) -> Forecast {
        let allowed = request.slowdown_percent_max.unwrap_or(0);
        let mut percent = 0;
        loop {
            let forecast = self.forecast_throttled(strategy, request, percent);
            let helps = Plan::throttles(strategy) && percent < allowed;
            if forecast.refused.is_none() || !helps {
                return forecast;
            }
            percent = (percent + THROTTLE_STEP).min(allowed);
        }
    }

    fn forecast_throttled(&self, strategy: Strategy, request: &MoveRequest, percent: u8) -> Forecast {
        let rule = Convergence::new(request.downtime_ms_max, request.rounds_max)
            .with_pause_fixed_ms(self.accuracy.pause_fixed_ms);
        // One that cannot hand over only ends at the deadline; how long it would have taken is what the operator wants to know.
        let deadline = request.deadline_ms.filter(|_| Plan::may_hand_over(strategy));
        let mut plan = Plan::new(strategy, rule).by_deadline(deadline);
        if strategy == Strategy::Auto && self.is_hopeless() && percent == 0 {
            plan = plan.hopeless();
        }
        let (course, refused) = match self.run(plan, f64::from(percent) / 100.0) {
            Ok(course) => (course, None),
            Err(reason) => (Course { wire_bytes: self.sent_bytes, ..Course::default() }, Some(reason)),
        };
        let Accuracy { total, downtime, wire_bytes, .. } = self.accuracy;
        let slowdown_percent = course.slowdown * 100.0;
        let mut forecast = Forecast {
            strategy,
            total_ms: Expected::within(course.total_ms, total.p80),
            downtime_ms: Expected::within(course.downtime_ms, downtime.p80),
            wire_bytes: Expected::within(course.wire_bytes, wire_bytes.p80),
            slowdown_percent: Expected::within(slowdown_percent, 0.5),
            throttle_percent: percent,
            refused,
        };
        if forecast.refused.is_none() {
            forecast.refused = contradiction(&forecast, request);
        }
        forecast
    }

    /// Every strategy's forecast, and the one to take: the first of those that do what was asked, the safest first.
    pub(crate) fn outlook(&self, request: &MoveRequest) -> Outlook {
        let forecasts: Vec<Forecast> =
            candidates(request, self.follows).into_iter().map(|strategy| self.forecast(strategy, request)).collect();
        let chosen = forecasts.iter().find(|forecast| forecast.refused.is_none()).map(|forecast| forecast.strategy);
        Outlook { survey: self.survey.clone(), forecasts, chosen }
    }
}

/// Strategies that `request` leaves open, the one to prefer first. `auto` by itself is a way too: it is the one that is taken where
/// nothing more was asked.
fn candidates(request: &MoveRequest, follows: bool) -> Vec<Strategy> {
    let all = match request.strategy {
        Strategy::Auto if request.verify => vec![Strategy::Precopy],
        Strategy::Auto => vec![Strategy::Auto, Strategy::Precopy, Strategy::Hybrid, Strategy::Postcopy],
        one => vec![one],
    };
    all.into_iter().filter(|strategy| follows || !Plan::needs_following(*strategy)).collect()
}

/// What of the request the forecast does not do.
fn contradiction(forecast: &Forecast, request: &MoveRequest) -> Option<String> {
    let s = |ms: f64| ms / 1000.0;
    let allowed_ms = f64::from(request.downtime_ms_max);
    if forecast.downtime_ms.likely > allowed_ms {
        return Some(format!("a pause of {:.0} ms, {allowed_ms:.0} ms are allowed", forecast.downtime_ms.likely));
    }
    #[expect(clippy::cast_precision_loss, reason = "a deadline in ms")]
    let deadline = request.deadline_ms.map(|ms| ms as f64).filter(|deadline| forecast.total_ms.likely > *deadline);
    if let Some(deadline) = deadline {
        return Some(format!("{:.1} s in all, the deadline is {:.1} s", s(forecast.total_ms.likely), s(deadline)));
    }
    let allowed = request.slowdown_percent_max.filter(|most| forecast.slowdown_percent.likely > f64::from(*most));
    allowed.map(|most| format!("a guest slowed by {:.0} %, {most} % are allowed", forecast.slowdown_percent.likely))
}

/// What follows from what was measured. Where the operator asked for nothing that could be contradicted, nothing is refused: rounds tell
/// more than any forecast.
pub(crate) fn conclude(basis: &Basis, request: &MoveRequest) -> (Outlook, Verdict) {
    let mut outlook = basis.outlook(request);
    let verdict = if request.survey {
        Verdict::End(Abort::Surveyed)
    } else if let Some(strategy) = outlook.chosen {
        let now = strategy == Strategy::Postcopy || strategy == Strategy::Auto && basis.follows && basis.is_hopeless();
        if now { Verdict::HandOver(strategy) } else { Verdict::GoOn(strategy) }
    } else if request.has_intent() {
        Verdict::End(Abort::Failed(impossible(&outlook)))
    } else {
        outlook.chosen = Some(request.strategy);
        Verdict::GoOn(request.strategy)
    };
    (outlook, verdict)
}

/// Why nothing does what was asked, for the operator.
fn impossible(outlook: &Outlook) -> String {
    let Survey { bytes_per_page, pages_per_s, dirty_pages_per_s, rtt_ms, pages_left, .. } = &outlook.survey;
    let mib_s = |bytes: f64| bytes / f64::from(1 << 20);
    let ways: Vec<String> = outlook
        .forecasts
        .iter()
        .filter_map(|forecast| Some(format!("{}: {}", forecast.strategy, forecast.refused.as_ref()?)))
        .collect();
    format!(
        "impossible: {}. Measured: {:.0} MiB left, {:.0} MiB/s of guest memory copied ({:.0} MiB/s on the wire), {:.0} MiB/s dirtied, round \
         trip {rtt_ms:.1} ms. Allow a longer pause, deadline or slowdown, or more bandwidth",
        ways.join("; "),
        *pages_left as f64 * 4096.0 / f64::from(1 << 20),
        mib_s(pages_per_s * 4096.0),
        mib_s(pages_per_s * bytes_per_page),
        mib_s(dirty_pages_per_s * 4096.0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{prop_assert, proptest};

    /// 1 GiB, 300 ms into a first round on a path of `mib_s`, with a guest that dirties `dirty` MiB/s of `set` MiB.
    fn basis(mib_s: f64, dirty: f64, set: f64) -> Basis {
        let pages_per_s = mib_s * 256.0;
        let points: Vec<(f64, f64)> = [100.0, 200.0, 300.0]
            .map(|ms: f64| (ms, set * 256.0 * (1.0 - (-dirty * ms / 1000.0 / set).exp())))
            .to_vec();
        let curve = DirtyCurve::fit(&points, 16.0, set * 256.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let pages_left = 262_144u64.saturating_sub((pages_per_s * 0.3) as u64);
        Basis {
            survey: Survey {
                elapsed_ms: 310.0,
                pages_left,
                zero_share: 0.0,
                bytes_per_page: 4096.0,
                pages_per_s,
                rtt_ms: 0.2,
                dirty_curve: points,
                dirty_pages_per_s: curve.rate() * 1000.0,
                working_set_pages: curve.set(),
            },
            curve,
            round_elapsed_ms: 300.0,
            round_pages: 262_144,
            sent_bytes: pages_per_s * 0.3 * 4096.0,
            cpus: 2,
            follows: true,
            accuracy: Accuracy::default(),
        }
    }

    fn of(outlook: &Outlook, strategy: Strategy) -> &Forecast {
        outlook.forecasts.iter().find(|forecast| forecast.strategy == strategy).unwrap()
    }

    #[test]
    fn an_idle_guest_takes_its_memory_divided_by_the_path() {
        let outlook = basis(100.0, 0.0, 512.0).outlook(&MoveRequest::default());
        let precopy = of(&outlook, Strategy::Precopy);
        assert!((10_200.0..10_400.0).contains(&precopy.total_ms.likely), "{precopy:?}");
        assert!(precopy.downtime_ms.likely < 10.0);
        assert_eq!(outlook.chosen, Some(Strategy::Auto));
    }

    #[test]
    fn a_guest_that_outruns_the_path_is_refused_precopy_and_can_be_handed_over() {
        let outlook = basis(100.0, 200.0, 1000.0).outlook(&MoveRequest::default());
        assert!(
            of(&outlook, Strategy::Precopy).refused.as_ref().is_some_and(|why| why.contains("MiB/s")),
            "{outlook:?}"
        );
        let postcopy = of(&outlook, Strategy::Postcopy);
        assert!(postcopy.refused.is_none() && (10_000.0..12_000.0).contains(&postcopy.total_ms.likely), "{postcopy:?}");
    }

    #[test]
    fn what_no_strategy_does_is_refused_with_the_numbers_of_each() {
        let request = MoveRequest { deadline_ms: Some(2000), ..MoveRequest::default() };
        let outlook = basis(100.0, 10.0, 512.0).outlook(&request);
        assert_eq!(outlook.chosen, None);
        let text = impossible(&outlook);
        for part in ["precopy: 1", "postcopy: 1", "deadline is 2.0 s", "100 MiB/s"] {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
    }

    #[test]
    fn a_deadline_takes_the_way_that_keeps_it() {
        // Rounds would take 10.5 s and then some; handed over it is 10.5 s.
        let request = MoveRequest { deadline_ms: Some(12_000), strategy: Strategy::Auto, ..MoveRequest::default() };
        let outlook = basis(100.0, 70.0, 1000.0).outlook(&request);
        let expected = outlook.expected().unwrap();
        assert!(expected.total_ms.likely <= 12_000.0, "{outlook:?}");
        assert!(of(&outlook, Strategy::Precopy).refused.is_some(), "{outlook:?}");
    }

    #[test]
    fn throttling_makes_precopy_converge_where_it_is_allowed() {
        let request = |percent| MoveRequest {
            slowdown_percent_max: Some(percent),
            strategy: Strategy::Precopy,
            ..MoveRequest::default()
        };
        let basis = basis(100.0, 150.0, 1000.0);
        assert!(basis.outlook(&request(5)).chosen.is_none());
        let outlook = basis.outlook(&request(80));
        let slowed = of(&outlook, Strategy::Precopy).slowdown_percent.likely;
        assert!((20.0..=80.0).contains(&slowed), "{outlook:?}");
    }

    proptest! {
        #[test]
        fn forecasts_end_and_what_is_chosen_does_what_was_asked(
            mib_s in 1.0f64..3000.0, dirty in 0.0f64..2000.0, set in 1.0f64..1024.0,
            deadline in proptest::option::of(500u64..60_000), slowdown in proptest::option::of(0u8..95), downtime in 4u32..400,
        ) {
            let request = MoveRequest {
                deadline_ms: deadline, slowdown_percent_max: slowdown, downtime_ms_max: downtime, ..MoveRequest::default()
            };
            let outlook = basis(mib_s, dirty, set).outlook(&request);
            if let Some(expected) = outlook.expected() {
                prop_assert!(expected.downtime_ms.likely <= f64::from(downtime));
                prop_assert!(deadline.is_none_or(|ms| expected.total_ms.likely <= ms as f64));
                prop_assert!(slowdown.is_none_or(|most| expected.slowdown_percent.likely <= f64::from(most) + 1e-6));
            } else {
                prop_assert!(impossible(&outlook).len() > 50);
            }
        }
    }
}
