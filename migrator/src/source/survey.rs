//! What is measured while the first pages are copied, so that the move can be foreseen before anything is decided.
//!
//! The first round *is* the measurement: what it copies is needed anyway, and no probe tells more truly how fast both ends and the path
//! are together.

use super::sample::Sample;
use crate::{
    convergence::RoundReport,
    copy::{Counters, SharedTracker},
    dirty_curve::DirtyCurve,
    forecast::Basis,
    guest::GuestPages,
};
use std::time::{Duration, Instant};
use vmotion_dirty_tracking::PageBitmap;
use vmotion_model::{Accuracy, PAGE_SIZE, Survey};

/// How long is measured. Where the operator's wishes decide about the move it may take longer.
const MEASURE: Duration = Duration::from_millis(400);
const MEASURE_FOR_INTENT: Duration = Duration::from_millis(900);
/// A path shows its pace only after some round trips.
const ROUND_TRIPS: u32 = 12;
/// Longest anything is measured.
const MEASURE_MAX: Duration = Duration::from_secs(5);
/// Pages go in batches; fewer than these say more about the batches than about the path. Where they take longer than this, the path is
/// slow, and that is known.
const PAGES_FOR_PACE: f64 = 12_288.0;
const PART_FOR_PACE: f64 = 0.125;
const MEASURE_SLOW: Duration = Duration::from_millis(1500);
/// Pages of the rest that are looked at, evenly spread: are they zero?
const PAGES_LOOKED_AT: u64 = 256;
/// The pace is that of the last part of the time: at first buffers fill, and congestion windows open.
const SETTLED_PART: f64 = 0.5;

/// What is known about the move besides.
#[derive(Debug, Clone)]
pub(super) struct Around {
    pub(super) cpus: u32,
    pub(super) follows: bool,
    pub(super) accuracy: Accuracy,
    /// Does anything depend on it?
    pub(super) intent: bool,
}

/// A survey of the first round.
#[derive(Debug)]
pub(super) struct Surveyor {
    sample: Option<Sample>,
    round: PageBitmap,
    count: u64,
    began: Instant,
    /// What was counted before: pages never touched.
    untouched: u64,
    readings: Vec<Reading>,
    around: Around,
}

/// What had been copied at one time.
#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    ms: f64,
    pages: f64,
    zero: f64,
    bytes: f64,
}

impl Surveyor {
    /// Begins with the first round, which is to copy `round`; `sample` was taken of it.
    pub(super) fn begin(round: &PageBitmap, sample: Option<Sample>, counters: &Counters, around: Around) -> Self {
        let count = round.count();
        let untouched = counters.pages().total();
        let (began, readings) = (Instant::now(), vec![Reading::default()]);
        Self { sample, round: round.clone(), count, began, untouched, readings, around }
    }

    /// Looks; `true` once enough was seen.
    pub(super) fn look(&mut self, tracker: Option<&SharedTracker>, counters: &Counters, rtt: Duration) -> bool {
        if let (Some(sample), Some(tracker)) = (&mut self.sample, tracker) {
            sample.look(tracker);
        }
        self.read(counters);
        let least = if self.around.intent { MEASURE_FOR_INTENT } else { MEASURE };
        let elapsed = self.began.elapsed();
        let wanted = PAGES_FOR_PACE.min(self.count as f64 * PART_FOR_PACE);
        let enough = self.readings.last().is_some_and(|reading| reading.pages >= wanted);
        elapsed >= MEASURE_MAX || elapsed >= least.max(rtt * ROUND_TRIPS) && (enough || elapsed >= MEASURE_SLOW)
    }

    fn read(&mut self, counters: &Counters) {
        let (pages, bytes) = (counters.pages(), counters.bytes());
        let untouched = self.untouched;
        self.readings.push(Reading {
            ms: self.began.elapsed().as_secs_f64() * 1000.0,
            pages: pages.total().saturating_sub(untouched) as f64,
            zero: pages.zero.saturating_sub(untouched) as f64,
            bytes: bytes as f64,
        });
    }

    /// In the middle of the round.
    pub(super) fn in_the_middle(&self, machine: &impl GuestPages, elapsed_ms: f64, rtt: Duration) -> Basis {
        let done = self.readings.last().map_or(0.0, |reading| reading.pages);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of pages")]
        let done = (done as u64).min(self.count);
        let zero_share = self.zero_share(machine, done);
        let (points, scale) = self.sample.as_ref().map_or((&[][..], 1.0), |sample| (sample.looks(), sample.scale()));
        self.basis(self.count - done, zero_share, points.to_vec(), scale, elapsed_ms, rtt)
    }

    /// After the round, when it was over first.
    pub(super) fn after(&mut self, report: &RoundReport, counters: &Counters, elapsed_ms: f64) -> Basis {
        self.read(counters);
        let points = vec![(report.dirtied_in.as_secs_f64() * 1000.0, report.remaining_pages as f64)];
        self.basis(0, 0.0, points, 1.0, elapsed_ms, report.rtt)
    }

    fn basis(
        &self,
        pages_left: u64,
        zero_share: f64,
        dirty_curve: Vec<(f64, f64)>,
        scale: f64,
        elapsed_ms: f64,
        rtt: Duration,
    ) -> Basis {
        let last = self.readings.last().copied().unwrap_or_default();
        let (pages_per_s, bytes_per_page) = self.pace();
        let curve = DirtyCurve::fit(&dirty_curve, scale, self.count.max(1) as f64);
        let survey = Survey {
            elapsed_ms,
            pages_left,
            zero_share,
            bytes_per_page,
            pages_per_s,
            rtt_ms: rtt.as_secs_f64() * 1000.0,
            dirty_curve,
            dirty_pages_per_s: curve.rate() * 1000.0,
            working_set_pages: curve.set(),
        };
        let Around { cpus, follows, accuracy, .. } = self.around.clone();
        Basis {
            survey,
            curve,
            round_elapsed_ms: last.ms,
            round_pages: self.count,
            sent_bytes: last.bytes,
            cpus,
            follows,
            accuracy,
        }
    }

    /// Pages that are not zero each second, and what each takes on the wire.
    fn pace(&self) -> (f64, f64) {
        let Some(last) = self.readings.last() else { return (1.0, PAGE_SIZE as f64) };
        let from = self.readings.iter().rev().find(|reading| reading.ms <= last.ms * SETTLED_PART);
        let from = from.copied().unwrap_or_default();
        let pages = (last.pages - last.zero - from.pages + from.zero).max(1.0);
        let pages_per_s = pages / (last.ms - from.ms).max(1.0) * 1000.0;
        // What was counted and has not gone yet is in both readings.
        let bytes_per_page = if pages > 1.0 { (last.bytes - from.bytes) / pages } else { PAGE_SIZE as f64 };
        (pages_per_s, bytes_per_page)
    }

    /// The part of what is left that is zero, from a few pages of it.
    fn zero_share(&self, machine: &impl GuestPages, done: u64) -> f64 {
        let left = self.count - done;
        let step = usize::try_from((left / PAGES_LOOKED_AT).max(1)).unwrap_or(1);
        let rest =
            self.round.runs_in(0..self.round.pages()).flatten().skip(usize::try_from(done).unwrap_or(usize::MAX));
        let mut page = vec![0; usize::try_from(PAGE_SIZE).unwrap_or(4096)];
        let (mut seen, mut zero) = (0u32, 0u32);
        for index in rest.step_by(step) {
            machine.read_page(index, &mut page);
            seen += 1;
            zero += u32::from(page.iter().all(|byte| *byte == 0));
        }
        f64::from(zero) / f64::from(seen.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn surveyor(readings: Vec<Reading>) -> Surveyor {
        let around = Around { cpus: 2, follows: true, accuracy: Accuracy::default(), intent: false };
        let mut surveyor = Surveyor::begin(&PageBitmap::full(100_000), None, &Counters::default(), around);
        surveyor.readings = readings;
        surveyor
    }

    #[test]
    fn the_pace_is_that_of_the_settled_part() {
        let reading = |ms, pages, bytes| Reading { ms, pages, zero: 0.0, bytes };
        // A buffer takes 5,000 pages at once; from then on it is 100 pages a ms.
        let surveyor = surveyor(vec![
            Reading::default(),
            reading(100.0, 15_000.0, 30e6),
            reading(200.0, 25_000.0, 50e6),
            reading(300.0, 35_000.0, 70e6),
        ]);
        assert_eq!(surveyor.pace(), (100_000.0, 2_000.0));
    }

    #[test]
    fn zero_pages_are_not_counted_as_pace() {
        let surveyor =
            surveyor(vec![Reading::default(), Reading { ms: 100.0, pages: 50_000.0, zero: 49_000.0, bytes: 4e6 }]);
        assert_eq!(surveyor.pace(), (10_000.0, 4_000.0));
    }
}
