//! From what was measured of a machine to what it will ask for: smoothed, with the shape of its days once there is one, and how far it is
//! off from that. The same for a live site and a simulated one.
//!
//! The one invariant: silence is never idleness. Without news the last that is known stands, and is less and less certain.

use crate::site::{Demand, SLOT_S, SLOTS};

/// What is shorter than so many times the policy's hold is not concluded from.
const HOLDS: f64 = 3.0;
/// How long deviations are remembered, in s.
const REMEMBER_S: f64 = 6.0 * 3600.0;
/// Of an hour of the day, the newest day counts so much.
const NEWEST_DAY: f32 = 0.4;
/// What today is above or below its usual shape is so much less an hour ahead.
const DRIFT_KEPT: f32 = 0.75;
/// News that is older, in s, makes what is known uncertain.
const STALE_S: u64 = 900;
/// By so much for each hour without news: a part of what is known, and of a processor.
const STALE_PER_HOUR: f64 = 0.25;

/// What was measured of one machine, in bounded memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct History {
    profile: [f32; SLOTS],
    days: [u8; SLOTS],
    sum: f32,
    count: u32,
    level: f32,
    variance: f32,
    first_s: u64,
    last_s: u64,
}

impl History {
    /// Begins with the first measurement: processors that are busy with the machine at `at_s`, in s of any clock whose days begin together
    /// with those of its users.
    #[must_use]
    pub fn begin(at_s: u64, cpus: f32) -> Self {
        let cpus = sane(cpus);
        Self {
            profile: [0.0; SLOTS],
            days: [0; SLOTS],
            sum: cpus,
            count: 1,
            level: cpus,
            variance: 0.0,
            first_s: at_s,
            last_s: at_s,
        }
    }

    /// Takes a measurement into account; one that is not newer than the last is not news. What is shorter than some `hold_s` is smoothed
    /// away: the policy's, in s.
    pub fn record(&mut self, at_s: u64, cpus: f32, hold_s: u32) {
        if at_s <= self.last_s {
            return;
        }
        let (cpus, passed) = (sane(cpus), (at_s - self.last_s) as f64);
        let expected = self.expected(at_s, 0);
        let keeps = |of: f64| weight((-passed / of).exp());
        let off = cpus - expected;
        let keep = keeps(REMEMBER_S);
        self.variance = self.variance * keep + off * off * (1.0 - keep);
        let keep = keeps(HOLDS * f64::from(hold_s.max(1)));
        self.level = self.level * keep + cpus * (1.0 - keep);
        if at_s / SLOT_S != self.last_s / SLOT_S {
            self.close_hour();
        }
        self.sum += cpus;
        self.count += 1;
        self.last_s = at_s;
    }

    fn close_hour(&mut self) {
        let hour = hour(self.last_s);
        let mean = self.sum / self.count.max(1) as f32;
        let known = self.days[hour] > 0;
        self.profile[hour] = if known { self.profile[hour] + NEWEST_DAY * (mean - self.profile[hour]) } else { mean };
        self.days[hour] = self.days[hour].saturating_add(1);
        (self.sum, self.count) = (0.0, 0);
    }

    /// So many slots after `now_s`.
    fn expected(&self, now_s: u64, ahead: usize) -> f32 {
        let usual = |at_s: u64| {
            let hour = hour(at_s);
            (self.days[hour] > 0).then(|| self.profile[hour])
        };
        let then = usual(now_s + ahead as u64 * SLOT_S);
        // Between two hours the shape goes from one to the next.
        let now = usual(now_s);
        match (then, now) {
            (Some(then), Some(now)) => {
                let drift = (self.level - now) * DRIFT_KEPT.powi(i32::try_from(ahead).unwrap_or(i32::MAX));
                (then + drift).max(0.0)
            }
            (Some(then), None) if ahead > 0 => then,
            _ => self.level,
        }
    }

    /// What is to be expected from `now_s` on.
    #[must_use]
    pub fn demand(&self, now_s: u64) -> Demand {
        let mut cpus = [0.0; SLOTS];
        for (ahead, cpus) in cpus.iter_mut().enumerate() {
            *cpus = self.expected(now_s, ahead);
        }
        let silent_h = (self.stale_s(now_s).saturating_sub(STALE_S) as f64) / 3600.0;
        let unknown = weight(STALE_PER_HOUR * silent_h) * (self.level + 1.0);
        let deviation = (self.variance + unknown * unknown).sqrt();
        let seen_s = u32::try_from(self.last_s - self.first_s).unwrap_or(u32::MAX);
        Demand { cpus, deviation, seen_s }
    }

    /// Age of the last measurement, in s.
    #[must_use]
    pub const fn stale_s(&self, now_s: u64) -> u64 {
        now_s.saturating_sub(self.last_s)
    }
}

fn sane(cpus: f32) -> f32 {
    if cpus.is_finite() { cpus.max(0.0) } else { 0.0 }
}

#[expect(clippy::cast_possible_truncation, reason = "a weight")]
const fn weight(weight: f64) -> f32 {
    weight as f32
}

fn hour(at_s: u64) -> usize {
    usize::try_from(at_s / SLOT_S % SLOTS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(hours: u64, cpus: impl Fn(u64) -> f32) -> History {
        let mut history = History::begin(0, cpus(0));
        (1..hours * 12).for_each(|five| history.record(five * 300, cpus(five * 300), 300));
        history
    }

    #[test]
    fn a_steady_machine_goes_on_as_it_is() {
        let demand = watched(3, |_| 2.0).demand(3 * 3600);
        assert!(demand.cpus.iter().all(|cpus| (cpus - 2.0).abs() < 1e-3), "{demand:?}");
        assert!(demand.deviation < 1e-3 && demand.seen_s > 10_000, "{demand:?}");
    }

    #[test]
    fn a_peak_passes_and_a_step_stays() {
        let mut history = watched(3, |_| 1.0);
        history.record(3 * 3600, 8.0, 300);
        assert!(history.demand(3 * 3600).cpus[0] < 4.0);
        (1..12).for_each(|five| history.record(3 * 3600 + five * 300, 8.0, 300));
        assert!(history.demand(4 * 3600).cpus[0] > 7.0);
    }

    #[test]
    fn after_a_day_the_shape_of_days_is_known() {
        let day = |at_s: u64| if (9..17).contains(&(at_s / 3600 % 24)) { 6.0 } else { 1.0 };
        let demand = watched(49, day).demand(2 * 86_400 + 3600);
        assert!((demand.cpus[0] - 1.0).abs() < 0.5 && (demand.cpus[10] - 6.0).abs() < 0.5, "{demand:?}");
    }

    #[test]
    fn silence_is_not_idleness() {
        let history = watched(3, |_| 4.0);
        let (now, later) = (history.demand(3 * 3600), history.demand(6 * 3600));
        assert!(later.cpus[0] > 3.9 && later.deviation > now.deviation + 1.0, "{later:?}");
        assert_eq!(history.stale_s(6 * 3600), 3 * 3600 + 300);
        let mut odd = history;
        odd.record(3 * 3600, f32::NAN, 300);
        assert!(odd.demand(3 * 3600).cpus[0].is_finite());
    }
}
