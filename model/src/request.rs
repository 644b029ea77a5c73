//! What the operator asks of a move: what may be suffered, not which knobs to turn.

use crate::Strategy;
use serde::{Deserialize, Serialize};

/// What the operator asks of one move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MoveRequest {
    /// The pause the guest may suffer, in ms. The engine switches over when it predicts less, and takes a longer pause back.
    #[serde(default = "MoveRequest::default_downtime_ms_max")]
    pub downtime_ms_max: u32,
    /// Bytes per second on the wire at most; `None` for what the path gives.
    #[serde(default)]
    pub bandwidth_max: Option<u64>,
    /// Compare a digest of all guest memory at both ends inside the pause.
    #[serde(default)]
    pub verify: bool,
    /// Rounds after which a move that does not converge is given up.
    #[serde(default = "MoveRequest::default_rounds_max")]
    pub rounds_max: u32,
    /// How memory gets there.
    #[serde(default)]
    pub strategy: Strategy,
    /// The whole move is to be over by then, in ms from its beginning; `None` for as long as it takes. A move that cannot
    /// be is refused before the guest is paused.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// Part of its speed that the guest may lose while it is moved, in percent; `None` for whatever the strategy costs, which
    /// includes no throttling.
    #[serde(default)]
    pub slowdown_percent_max: Option<u8>,
    /// Silence of the path that is waited for before the move counts as failed, in ms; `None` for what the hosts are set to.
    #[serde(default)]
    pub give_up_after_ms: Option<u64>,
    /// Only measure and predict: the move ends before the guest is paused.
    #[serde(default)]
    pub survey: bool,
}

impl MoveRequest {
    /// Do the wishes fit each other?
    ///
    /// # Errors
    /// A sentence that names the fields, their values and what to do.
    pub fn validate(&self) -> Result<(), String> {
        let follows = matches!(self.strategy, Strategy::Postcopy | Strategy::Hybrid);
        if self.verify && follows {
            return Err(format!(
                "verify and strategy {} contradict each other: digests of all memory are compared inside the pause, and part of it \
                 follows later; use strategy precopy, or do not verify",
                self.strategy
            ));
        }
        if self.deadline_ms.is_some_and(|deadline| deadline <= u64::from(self.downtime_ms_max)) {
            return Err(format!(
                "deadline {} ms and downtime_ms_max {} ms contradict each other: the pause is a part of the move; allow a later \
                 deadline or a shorter pause",
                self.deadline_ms.unwrap_or(0),
                self.downtime_ms_max
            ));
        }
        if let Some(percent) = self.slowdown_percent_max.filter(|percent| *percent > Self::SLOWDOWN_PERCENT_MAX) {
            return Err(format!(
                "slowdown_percent_max {percent} is not valid: a guest that is slowed by more than {} % is better paused; use 0 to {}",
                Self::SLOWDOWN_PERCENT_MAX,
                Self::SLOWDOWN_PERCENT_MAX
            ));
        }
        if self.bandwidth_max.is_some_and(|bandwidth| bandwidth < Self::BANDWIDTH_MIN) {
            return Err(format!(
                "bandwidth_max {} bytes/s is not valid: below {} bytes/s a move does not get anywhere; allow more",
                self.bandwidth_max.unwrap_or(0),
                Self::BANDWIDTH_MIN
            ));
        }
        if let Some(ms) = self.give_up_after_ms.filter(|ms| !Self::GIVE_UP_AFTER_MS.contains(ms)) {
            return Err(format!(
                "give_up_after_ms {ms} is not valid: use {} ms to {} ms (a day)",
                Self::GIVE_UP_AFTER_MS.start(),
                Self::GIVE_UP_AFTER_MS.end()
            ));
        }
        Ok(())
    }

    /// More than this is not slowing down.
    pub const SLOWDOWN_PERCENT_MAX: u8 = 95;
    /// Least [`Self::bandwidth_max`], in bytes/s.
    pub const BANDWIDTH_MIN: u64 = 64 << 10;
    /// Silence that can be asked for, in ms.
    pub const GIVE_UP_AFTER_MS: std::ops::RangeInclusive<u64> = 100..=86_400_000;

    /// Does the operator ask for more than the default: something that a prediction can contradict?
    #[must_use]
    pub const fn has_intent(&self) -> bool {
        self.deadline_ms.is_some() || self.slowdown_percent_max.is_some() || self.survey
    }

    const fn default_downtime_ms_max() -> u32 {
        300
    }
    const fn default_rounds_max() -> u32 {
        60
    }
}

/// `PATCH` of a move that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MoveLimit {
    /// Bytes per second on the wire at most from now on; `None` for what the path gives.
    pub bandwidth_max: Option<u64>,
}

impl MoveLimit {
    /// Is it enough to get anywhere?
    ///
    /// # Errors
    /// A sentence that names the field, its value and what to do.
    pub fn validate(&self) -> Result<(), String> {
        MoveRequest { bandwidth_max: self.bandwidth_max, ..MoveRequest::default() }.validate()
    }
}

impl Default for MoveRequest {
    fn default() -> Self {
        Self {
            downtime_ms_max: Self::default_downtime_ms_max(),
            bandwidth_max: None,
            verify: false,
            rounds_max: Self::default_rounds_max(),
            strategy: Strategy::Auto,
            deadline_ms: None,
            slowdown_percent_max: None,
            give_up_after_ms: None,
            survey: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_of_all_memory_cannot_be_had_while_part_of_it_is_elsewhere() {
        let request = |strategy| MoveRequest { verify: true, strategy, ..MoveRequest::default() };
        let refused = request(Strategy::Postcopy).validate().unwrap_err();
        assert!(refused.contains("strategy postcopy") && refused.contains("use strategy precopy"), "{refused}");
        assert!(request(Strategy::Hybrid).validate().is_err());
        assert!(request(Strategy::Auto).validate().is_ok() && request(Strategy::Precopy).validate().is_ok());
    }

    #[test]
    fn what_cannot_be_is_refused_with_field_and_value() {
        let wrong = [
            (MoveRequest { deadline_ms: Some(300), ..MoveRequest::default() }, "deadline 300 ms"),
            (MoveRequest { slowdown_percent_max: Some(96), ..MoveRequest::default() }, "slowdown_percent_max 96"),
            (MoveRequest { bandwidth_max: Some(1), ..MoveRequest::default() }, "bandwidth_max 1 "),
            (MoveRequest { give_up_after_ms: Some(1), ..MoveRequest::default() }, "give_up_after_ms 1 "),
        ];
        for (request, about) in wrong {
            let refused = request.validate().unwrap_err();
            assert!(refused.contains(about), "{refused}");
        }
    }
}
