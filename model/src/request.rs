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
    /// Memory in which the source keeps pages as they were sent, so that pages that are sent again travel by what changed in them:
    /// this many bytes at most; 0 for none, `None` for a sixteenth of the machine's memory, at most 512 MiB. Taken only as far as the
    /// guest writes pages again, and given back when the move is over.
    #[serde(default)]
    pub delta_memory_bytes: Option<u64>,
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
        if let Some(bytes) = self.delta_memory_bytes.filter(|bytes| (1..Self::DELTA_MEMORY_BYTES_MIN).contains(bytes)) {
            return Err(format!(
                "delta_memory_bytes {bytes} is not valid: with less than {} bytes deltas are not worth having; use more, or 0 for none",
                Self::DELTA_MEMORY_BYTES_MIN
            ));
        }
        Ok(())
    }

    /// Memory for earlier versions of pages of a machine with `ram_bytes` of memory, in bytes.
    #[must_use]
    pub fn delta_memory(&self, ram_bytes: u64) -> u64 {
        let usual = (ram_bytes / Self::DELTA_MEMORY_PART).min(Self::DELTA_MEMORY_BYTES_USUAL_MAX);
        self.delta_memory_bytes.unwrap_or(usual)
    }

    /// Least [`Self::delta_memory_bytes`] that is not 0, in bytes.
    pub const DELTA_MEMORY_BYTES_MIN: u64 = 1 << 20;
    /// Unless the operator says otherwise, one part in so many of the machine's memory may be taken for earlier versions, up to a
    /// limit in bytes: what a host can spare for a machine that leaves.
    const DELTA_MEMORY_PART: u64 = 16;
    const DELTA_MEMORY_BYTES_USUAL_MAX: u64 = 512 << 20;
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
            delta_memory_bytes: None,
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
    fn memory_for_deltas_is_a_part_of_the_machines_unless_it_was_asked_for() {
        let request = |delta_memory_bytes| MoveRequest { delta_memory_bytes, ..MoveRequest::default() };
        assert_eq!(request(None).delta_memory(1 << 30), 64 << 20);
        assert_eq!(request(None).delta_memory(1 << 40), 512 << 20);
        assert_eq!(request(Some(0)).delta_memory(1 << 30), 0);
        assert!(request(Some(0)).validate().is_ok() && request(Some(1 << 40)).validate().is_ok());
        let older: MoveRequest = serde_json::from_str("{}").unwrap();
        assert_eq!(older.delta_memory_bytes, None);
    }

    #[test]
    fn what_cannot_be_is_refused_with_field_and_value() {
        let wrong = [
            (MoveRequest { deadline_ms: Some(300), ..MoveRequest::default() }, "deadline 300 ms"),
            (MoveRequest { slowdown_percent_max: Some(96), ..MoveRequest::default() }, "slowdown_percent_max 96"),
            (MoveRequest { bandwidth_max: Some(1), ..MoveRequest::default() }, "bandwidth_max 1 "),
            (MoveRequest { give_up_after_ms: Some(1), ..MoveRequest::default() }, "give_up_after_ms 1 "),
            (MoveRequest { delta_memory_bytes: Some(4096), ..MoveRequest::default() }, "delta_memory_bytes 4096 "),
        ];
        for (request, about) in wrong {
            let refused = request.validate().unwrap_err();
            assert!(refused.contains(about), "{refused}");
        }
    }
}
