//! What a move expects of itself, and what it does about it before the pause: surveys, slows the guest down, remembers both for the
//! report.

use super::{
    sample::Sample,
    state::Verdict,
    survey::{Around, Surveyor},
    timeline::Moments,
};
use crate::{
    convergence::RoundReport,
    copy::{Counters, SharedTracker},
    forecast::{Basis, conclude},
    guest::{Slowdown, SourceMachine},
    plan::Plan,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use vmotion_dirty_tracking::PageBitmap;
use vmotion_model::{FollowReport, MoveRequest, Outlook, Prediction, error_chain};

/// A guest that is not slowed down enough is slowed down by so much more, in percent.
const THROTTLE_STEP: u8 = 10;
/// A round must leave less than this part of what the one before left, or the guest is not slow enough.
const SHRINKING: f64 = 0.9;

/// The foresight of one move.
pub(super) struct Foresight<M> {
    machine: Arc<M>,
    request: MoveRequest,
    /// While the first round is measured.
    surveyor: Option<Surveyor>,
    /// Pages whose dirty bits were cleared before the first round read them.
    sampled: Option<PageBitmap>,
    /// Of those, the ones that a round which was cut short may not have read.
    unread: Option<PageBitmap>,
    /// What the survey showed.
    pub(super) outlook: Option<Outlook>,
    /// Of the way that was chosen.
    pub(super) predicted: Prediction,
    throttle: Option<Box<dyn Slowdown>>,
    /// How much the guest was slowed down at most, in percent.
    throttled: u8,
}

impl<M: SourceMachine> Foresight<M> {
    /// `pause_fixed_ms` is what a pause is taken to cost without any page.
    pub(super) fn new(machine: Arc<M>, request: MoveRequest, pause_fixed_ms: f64) -> Self {
        Self {
            machine,
            request,
            surveyor: None,
            sampled: None,
            unread: None,
            outlook: None,
            predicted: Prediction { pause_fixed_ms, ..Prediction::default() },
            throttle: None,
            throttled: 0,
        }
    }

    /// Begins to measure, before anything of `round` is copied. Without a sample the round itself shows what the guest writes.
    pub(super) fn begin(&mut self, tracker: &SharedTracker, round: &PageBitmap, counters: &Counters, around: Around) {
        let sample = tokio::task::block_in_place(|| Sample::take(tracker, round)).unwrap_or_else(|error| {
            tracing::warn!(error = %error_chain(&error), "no sample of what the guest writes");
            None
        });
        self.sampled = sample.as_ref().map(|sample| sample.pages().clone());
        self.surveyor = Some(Surveyor::begin(round, sample, counters, around));
    }

    /// In the middle of the first round; a verdict once enough was seen.
    pub(super) fn look(
        &mut self,
        tracker: Option<&SharedTracker>,
        counters: &Counters,
        rtt: Duration,
        moments: &mut Moments,
    ) -> Option<Verdict> {
        let (surveyor, machine) = (self.surveyor.as_mut()?, &*self.machine);
        let elapsed_ms = moments.since_start(Instant::now());
        let basis = tokio::task::block_in_place(|| {
            surveyor.look(tracker, counters, rtt).then(|| surveyor.in_the_middle(machine, elapsed_ms, rtt))
        })?;
        self.surveyor = None;
        Some(self.conclude(&basis, moments))
    }

    /// A round is over; a verdict when there was none yet.
    pub(super) fn round_done(
        &mut self,
        report: &RoundReport,
        cut_short: bool,
        counters: &Counters,
        moments: &mut Moments,
    ) -> Option<Verdict> {
        // A whole round has read everything; one that was cut short owes the sample.
        self.unread = self.sampled.take().filter(|_| cut_short);
        let mut surveyor = self.surveyor.take()?;
        let elapsed_ms = moments.since_start(Instant::now());
        Some(self.conclude(&surveyor.after(report, counters, elapsed_ms), moments))
    }

    /// Dirty pages, and those that were not read since their dirty bits were cleared.
    pub(super) fn with_unread(&self, mut dirty: Arc<PageBitmap>) -> Arc<PageBitmap> {
        if let Some(unread) = &self.unread {
            Arc::make_mut(&mut dirty).or(unread);
        }
        dirty
    }

    /// What follows from a survey; keeps what was foreseen.
    fn conclude(&mut self, basis: &Basis, moments: &mut Moments) -> Verdict {
        let (outlook, verdict) = conclude(basis, &self.request);
        let mut throttle = 0;
        if let Some(expected) = outlook.expected() {
            self.predicted.total_ms = expected.total_ms.likely;
            self.predicted.wire_bytes = expected.wire_bytes.likely;
            throttle = expected.throttle_percent;
            tracing::info!(?verdict, total_ms = expected.total_ms.likely, "the move is foreseen");
        }
        self.outlook = Some(outlook);
        moments.event("surveyed");
        if !matches!(verdict, Verdict::End(_)) {
            self.slow_down(throttle, moments);
        }
        verdict
    }

    /// Rounds that do not shrink slow the guest down further, as far as is allowed: `before` pages were left when the round began,
    /// `remaining` are now.
    pub(super) fn slow_down_more(&mut self, before: u64, remaining: u64, moments: &mut Moments) {
        let request = &self.request;
        let Some(allowed) = request.slowdown_percent_max.filter(|_| Plan::throttles(request.strategy)) else { return };
        if remaining as f64 > before as f64 * SHRINKING && self.throttled < allowed {
            self.slow_down((self.throttled + THROTTLE_STEP).min(allowed), moments);
        }
    }

    fn slow_down(&mut self, percent: u8, moments: &mut Moments) {
        if percent <= self.throttled {
            return;
        }
        match &self.throttle {
            Some(throttle) => throttle.change(percent),
            None => match self.machine.throttle(percent) {
                Ok(throttle) => self.throttle = Some(throttle),
                Err(error) => {
                    tracing::warn!(error = %error_chain(&error), "the guest is not slowed down");
                    return;
                }
            },
        }
        self.throttled = percent;
        moments.event(format!("slowed down by {percent} %"));
    }

    /// The guest runs at its full speed again, or stands still.
    pub(super) fn let_go(&mut self) {
        self.throttle = None;
    }

    /// What the guest lost to being slowed down or to waiting for pages, whichever was worse.
    pub(super) fn slowdown_percent(&self, follow: Option<&FollowReport>, cpus: u8) -> f64 {
        let stalled = follow.map_or(0.0, |follow| {
            let vcpu_ms = follow.duration_ms.max(1.0) * f64::from(cpus.max(1));
            (follow.stall_total_ms / vcpu_ms * 100.0).min(100.0)
        });
        stalled.max(f64::from(self.throttled))
    }
}
