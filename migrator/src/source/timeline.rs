//! When what happened at the source, and the report made of it.

use crate::protocol::TargetReport;
use std::time::Instant;
use vmotion_model::DowntimeReport;

/// The moments of a move. Those of the pause are overwritten when a pause is taken back.
#[derive(Debug, Clone)]
pub(super) struct Timeline {
    pub(super) started: Instant,
    pub(super) pause_asked: Option<Instant>,
    pub(super) paused: Option<Instant>,
    pub(super) saved: Option<Instant>,
    pub(super) last_sent: Option<Instant>,
    pub(super) decided: Option<Instant>,
    /// The target missed no page any more, where memory followed the guest.
    pub(super) all_there: Option<Instant>,
    cpu_s_at_start: f64,
}

impl Timeline {
    pub(super) fn start() -> Self {
        Self {
            started: Instant::now(),
            pause_asked: None,
            paused: None,
            saved: None,
            last_sent: None,
            decided: None,
            all_there: None,
            cpu_s_at_start: process_cpu_s(),
        }
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
