//! When what happened at the source, and the report made of it.

use crate::{convergence::RoundReport, protocol::TargetReport};
use std::time::Instant;
use vmotion_model::{DowntimeReport, MoveProgress, PageCounts, RoundRecord, Timeline, TimelineSample};

/// The moments of a move. Those of the pause are overwritten when a pause is taken back.
#[derive(Debug, Clone)]
pub(super) struct Moments {
    pub(super) started: Instant,
    /// What is told of them.
    pub(super) log: Timeline,
    /// What all rounds before had counted.
    counted: (PageCounts, u64),
    pub(super) pause_asked: Option<Instant>,
    pub(super) paused: Option<Instant>,
    pub(super) saved: Option<Instant>,
    pub(super) last_sent: Option<Instant>,
    pub(super) decided: Option<Instant>,
    /// The target missed no page any more, where memory followed the guest.
    pub(super) all_there: Option<Instant>,
    cpu_s_at_start: f64,
}

impl Moments {
    pub(super) fn start() -> Self {
        Self {
            started: Instant::now(),
            log: Timeline::default(),
            counted: (PageCounts::default(), 0),
            pause_asked: None,
            paused: None,
            saved: None,
            last_sent: None,
            decided: None,
            all_there: None,
            cpu_s_at_start: process_cpu_s(),
        }
    }

    /// In ms since the move began.
    pub(super) fn since_start(&self, at: Instant) -> f64 {
        ms_between(self.started, at)
    }

    /// Notes what happens now.
    pub(super) fn event(&mut self, what: impl Into<String>) {
        let now = self.since_start(Instant::now());
        self.log.event(now, what);
    }

    /// Notes how far the move is.
    pub(super) fn look(&mut self, progress: &MoveProgress) {
        #[expect(clippy::cast_precision_loss, reason = "the length of a move in ms")]
        let at_ms = progress.elapsed_ms as f64;
        self.log.sample(TimelineSample {
            at_ms,
            phase: progress.phase,
            wire_bytes: progress.wire_bytes,
            rate_bytes_per_s: progress.rate_bytes_per_s,
            dirty_pages_per_s: progress.dirty_pages_per_s,
            remaining_pages: progress.remaining_pages,
        });
    }

    /// Notes a round that has just arrived; `pages` and `wire_bytes` are those of the whole move so far.
    pub(super) fn round(&mut self, round: u32, report: &RoundReport, pages: PageCounts, wire_bytes: u64) {
        let (before, bytes_before) = std::mem::replace(&mut self.counted, (pages, wire_bytes));
        let ended_ms = self.since_start(Instant::now());
        let duration_ms = report.duration.as_secs_f64() * 1000.0;
        self.log.rounds.push(RoundRecord {
            round,
            began_ms: (ended_ms - duration_ms).max(0.0),
            duration_ms,
            pages: pages.since(&before),
            wire_bytes: wire_bytes.saturating_sub(bytes_before),
            dirtied_pages: report.remaining_pages,
        });
    }

    /// When the move was over.
    pub(super) fn ended(&self) -> Instant {
        self.all_there.or(self.decided).unwrap_or_else(Instant::now)
    }

    pub(super) fn cpu_s(&self) -> f64 {
        process_cpu_s() - self.cpu_s_at_start
    }

    /// The parts of the pause; what the target did is its own report, and what neither did is on the way.
    pub(super) fn downtime(&self, target: &TargetReport) -> DowntimeReport {
        let (Some(asked), Some(decided)) = (self.pause_asked, self.decided) else {
            return DowntimeReport::default();
        };
        let paused = self.paused.unwrap_or(decided);
        let saved = self.saved.unwrap_or(paused);
        let last_sent = self.last_sent.unwrap_or(saved);
        let source_ms = ms_between(asked, decided);
        let (pause_ms, save_ms) = (ms_between(asked, paused), ms_between(paused, saved));
        let last_pages_ms = ms_between(saved, last_sent);
        let at_target = target.digest_ms + target.load_ms + target.commit_ms + target.resume_ms;
        DowntimeReport {
            source_ms,
            target_ms: target.since_pause_ms,
            pause_ms,
            last_pages_ms,
            save_ms,
            transfer_ms: (source_ms - pause_ms - save_ms - last_pages_ms - at_target).max(0.0),
            digest_ms: target.digest_ms,
            load_ms: target.load_ms,
            commit_ms: target.commit_ms,
            resume_ms: target.resume_ms,
        }
    }
}

pub(crate) fn ms_between(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1000.0
}

/// CPU seconds of this process so far, all threads, guest time included.
pub(crate) fn process_cpu_s() -> f64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    #[expect(clippy::cast_precision_loss, reason = "seconds of one process")]
    let seconds = spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9;
    seconds
}
