//! What happened when in a move, for drawing and for learning from it.

use crate::{MovePhase, PageCounts};
use serde::{Deserialize, Serialize};

/// A copy round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RoundRecord {
    /// From 1.
    pub round: u32,
    /// When it began, in ms since the move began.
    pub began_ms: f64,
    /// Until its last page was in the target's memory, in ms.
    pub duration_ms: f64,
    /// Pages it handled, by kind.
    pub pages: PageCounts,
    /// Page payload it put on the wire, in bytes.
    pub wire_bytes: u64,
    /// Pages that the guest wrote meanwhile: what remained at its end.
    pub dirtied_pages: u64,
}

/// A look at a move that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TimelineSample {
    /// In ms since the move began.
    pub at_ms: f64,
    /// Where the move was.
    pub phase: MovePhase,
    /// Page payload on the wire since the move began, in bytes.
    pub wire_bytes: u64,
    /// Bytes per second since the look before.
    pub rate_bytes_per_s: u64,
    /// Pages per second the guest wrote.
    pub dirty_pages_per_s: u64,
    /// Pages known to differ at the target.
    pub remaining_pages: u64,
}

/// A moment that has a name: a state entered, a pause taken back, a limit changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TimelineEvent {
    /// In ms since the move began.
    pub at_ms: f64,
    /// What happened.
    pub what: String,
}

/// A move, as the source saw it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Timeline {
    /// Every round.
    pub rounds: Vec<RoundRecord>,
    /// Looks at regular intervals; a long move has them further apart.
    pub samples: Vec<TimelineSample>,
    /// What happened.
    pub events: Vec<TimelineEvent>,
}

impl Timeline {
    /// Samples kept: enough for a drawing. When there are twice as many, every second one goes.
    pub const SAMPLES: usize = 150;
    /// Events kept; later ones are not.
    pub const EVENTS_MAX: usize = 200;

    /// Adds a look, and forgets every second one when there are many.
    pub fn sample(&mut self, sample: TimelineSample) {
        self.samples.push(sample);
        if self.samples.len() >= 2 * Self::SAMPLES {
            let mut odd = false;
            self.samples.retain(|_| {
                odd = !odd;
                odd
            });
        }
    }

    /// Notes what happened.
    pub fn event(&mut self, at_ms: f64, what: impl Into<String>) {
        if self.events.len() < Self::EVENTS_MAX {
            self.events.push(TimelineEvent { at_ms, what: what.into() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_move_keeps_samples_of_all_of_it() {
        let mut timeline = Timeline::default();
        for at in 0..100_000 {
            timeline.sample(TimelineSample {
                at_ms: f64::from(at),
                phase: MovePhase::Copying,
                wire_bytes: 0,
                rate_bytes_per_s: 0,
                dirty_pages_per_s: 0,
                remaining_pages: 0,
            });
        }
        assert!((Timeline::SAMPLES..2 * Timeline::SAMPLES).contains(&timeline.samples.len()));
        assert_eq!(timeline.samples.first().map(|sample| sample.at_ms), Some(0.0));
        assert!(timeline.samples.is_sorted_by(|a, b| a.at_ms < b.at_ms));
    }
}
