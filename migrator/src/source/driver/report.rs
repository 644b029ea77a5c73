//! What the driver tells of a move: how far it is, and what it came to.

use super::Driver;
use crate::{
    copy::lock,
    guest::SourceMachine,
    source::{
        state::{Abort, Source},
        timeline::ms_between,
    },
};
use vmotion_model::{DigestReport, MoveOutcome, MovePhase, MoveProgress, MoveSummary};

impl<M: SourceMachine, O> Driver<M, O> {
    pub(super) fn progress(&mut self, state: &Source<M::Paused>) -> MoveProgress {
        let phase = match state {
            Source::Idle { .. } | Source::Negotiated { .. } => MovePhase::Preparing,
            Source::Copying { .. } => MovePhase::Copying,
            Source::Paused { .. } | Source::Offered { .. } => MovePhase::SwitchingOver,
            Source::Serving { .. } => MovePhase::Following,
            Source::Released | Source::Reclaimed { .. } | Source::Aborted { .. } | Source::Stranded { .. } => {
                MovePhase::Finished
            }
        };
        let dirty_pages_per_s = lock(&self.estimator).estimate().map_or(0.0, |estimate| estimate.pages_per_second);
        let remaining = match &self.owed {
            Some(owed) => owed.left(),
            None => self.remaining.saturating_sub(self.counters.done()),
        };
        let eta_ms = match state {
            Source::Copying { plan, .. } => {
                let rule = plan.rule();
                rule.eta_ms(remaining, dirty_pages_per_s)
            }
            _ => None,
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate of pages")]
        let dirty_pages_per_s = dirty_pages_per_s as u64;
        MoveProgress {
            phase,
            round: self.rounds,
            pages: self.counters.pages(),
            wire_bytes: self.counters.bytes(),
            remaining_pages: remaining,
            rate_bytes_per_s: self.rate.read(self.counters.bytes()),
            dirty_pages_per_s,
            eta_ms,
            elapsed_ms: u64::try_from(self.timeline.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    pub(super) fn summary(&self, state: &Source<M::Paused>) -> MoveSummary {
        let record = &self.options.record;
        let (outcome, epoch) = match state {
            Source::Released => (MoveOutcome::Moved, record.epoch.next()),
            Source::Stranded { reason } => (MoveOutcome::Stranded { reason: reason.clone() }, record.epoch.next()),
            Source::Reclaimed { reason } => (MoveOutcome::RolledBack { reason: reason.clone() }, record.epoch.next()),
            Source::Aborted { reason: Abort::Cancelled } => (MoveOutcome::Cancelled, record.epoch),
            Source::Aborted { reason: Abort::Surveyed } => (MoveOutcome::Surveyed, record.epoch),
            Source::Aborted { reason: Abort::Failed(reason) } => {
                (MoveOutcome::RolledBack { reason: reason.clone() }, record.epoch)
            }
            other => (MoveOutcome::RolledBack { reason: format!("ended in state {}", other.name()) }, record.epoch),
        };
        let hex = |digest: [u8; 16]| format!("{:032x}", u128::from_le_bytes(digest));
        let digests = self.source_digest.zip(self.target_report.digest);
        MoveSummary {
            machine: record.machine.clone(),
            source: record.owner.clone(),
            target: self.options.target.clone(),
            outcome,
            epoch,
            total_ms: ms_between(self.timeline.started, self.timeline.ended()),
            downtime: self.timeline.downtime(&self.target_report),
            predicted: self.foresight.predicted,
            rounds: self.rounds,
            pages: self.counters.pages(),
            wire_bytes: self.counters.bytes(),
            udp_bytes: self.rate.udp_bytes,
            source_cpu_s: self.timeline.cpu_s(),
            target_cpu_s: self.target_report.cpu_s,
            follow: self.follow,
            outlook: self.foresight.outlook.clone(),
            slowdown_percent: self.foresight.slowdown_percent(self.follow.as_ref(), self.options.hello.cpus),
            timeline: self.timeline.log.clone(),
            digests: digests.map(|(source, target)| DigestReport { source: hex(source), target: hex(target) }),
        }
    }
}
