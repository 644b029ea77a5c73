//! A move as the operator sees it: the request, its progress, and the report.

use crate::{Epoch, HostName, MachineName};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Names one move for ever.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(try_from = "String", into = "String")]
pub struct MoveId(String);

impl MoveId {
    /// `m-` and the number of the move in this controller, in a form that sorts.
    #[must_use]
    pub fn numbered(number: u64) -> Self {
        Self(format!("m-{number:06}"))
    }

    /// The identifier as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for MoveId {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let valid = text.len() <= 40
            && text.starts_with("m-")
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if valid { Ok(Self(text)) } else { Err(format!("move {text:?} is not valid: identifiers look like m-000001")) }
    }
}

impl FromStr for MoveId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::try_from(text.to_owned())
    }
}

impl From<MoveId> for String {
    fn from(id: MoveId) -> Self {
        id.0
    }
}

impl fmt::Display for MoveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// How memory gets there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Copy while the guest runs; where that will not converge, hand the guest over and let the rest follow.
    #[default]
    Auto,
    /// Copy while the guest runs, pause for the last pages. Until switch-over nothing can be lost.
    Precopy,
    /// Hand the guest over at once; memory follows, what the guest touches first. Until all of it has arrived, losing either host or
    /// the path for good loses the guest.
    Postcopy,
    /// Copy while that pays, then hand over and let the rest follow; the same risk for a shorter time.
    Hybrid,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Precopy, Self::Postcopy, Self::Hybrid];

    /// As operators write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Precopy => "precopy",
            Self::Postcopy => "postcopy",
            Self::Hybrid => "hybrid",
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Strategy {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|strategy| strategy.as_str() == text)
            .ok_or_else(|| format!("strategy {text:?} is not one of auto, precopy, postcopy, hybrid"))
    }
}

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
        Ok(())
    }

    const fn default_downtime_ms_max() -> u32 {
        300
    }
    const fn default_rounds_max() -> u32 {
        60
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
        }
    }
}

/// How far a move is, for people. The state machines of the two ends have states of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MovePhase {
    /// Accepted; the target host is being prepared.
    Preparing,
    /// Memory is being copied while the guest runs.
    Copying,
    /// The guest is paused; the last pages and the device state travel, the owner record decides.
    SwitchingOver,
    /// The guest runs at the target; memory that is missing there follows.
    Following,
    /// Over; the outcome says how.
    Finished,
}

/// How a move ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case", tag = "result")]
pub enum MoveOutcome {
    /// The target owns and runs the machine.
    Moved,
    /// Cancelled before switch-over; the machine runs on at the source.
    Cancelled,
    /// Failed before the point of no return, or reclaimed after it; the machine runs on at the source.
    RolledBack {
        /// Why.
        reason: String,
    },
    /// The source was lost while the machine was still its own; nothing runs at the target.
    SourceLost {
        /// What is known.
        reason: String,
    },
    /// The guest had been handed over, and the rest of its memory could not follow: source, target or the path was lost for good.
    /// The machine is lost.
    Stranded {
        /// What is known.
        reason: String,
    },
}

/// Pages by how they travelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PageCounts {
    /// All zero: a few bytes each.
    pub zero: u64,
    /// As they are.
    pub raw: u64,
    /// Compressed with LZ4.
    pub lz4: u64,
    /// Compressed with Zstandard.
    pub zstd: u64,
    /// Dirtied, but the same as last sent by content hash: not sent again.
    pub unchanged: u64,
}

impl PageCounts {
    /// All pages handled.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.zero + self.raw + self.lz4 + self.zstd + self.unchanged
    }

    /// Adds `other`.
    pub const fn add(&mut self, other: &Self) {
        let Self { zero, raw, lz4, zstd, unchanged } = other;
        self.zero += *zero;
        self.raw += *raw;
        self.lz4 += *lz4;
        self.zstd += *zstd;
        self.unchanged += *unchanged;
    }
}

/// One progress event. Every transition of the engine is one of these, with its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MoveProgress {
    /// Where the move is.
    pub phase: MovePhase,
    /// Copy round, from 1; 0 before the first.
    pub round: u32,
    /// Pages handled so far, all rounds.
    pub pages: PageCounts,
    /// Page payload bytes on the wire so far.
    pub wire_bytes: u64,
    /// Pages that are known to differ at the target now.
    pub remaining_pages: u64,
    /// Bytes per second over the last interval.
    pub rate_bytes_per_s: u64,
    /// Pages per second the guest dirties.
    pub dirty_pages_per_s: u64,
    /// Milliseconds until switch-over as predicted now; `None` while it does not converge.
    pub eta_ms: Option<u64>,
    /// Milliseconds since the move began.
    pub elapsed_ms: u64,
}

/// What the engine foresaw just before it paused the guest.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Prediction {
    /// Whole move, in ms, as foreseen after the first round.
    pub total_ms: f64,
    /// Pause, in ms, as foreseen just before it.
    pub downtime_ms: f64,
}

/// The pause, as each end measured it, in ms. The parts add up to the whole.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DowntimeReport {
    /// Source clock: from the pause request until the target said it runs.
    pub source_ms: f64,
    /// Target clock: from the notice of the pause until vCPUs were let go.
    pub target_ms: f64,
    /// Stopping all vCPUs and devices.
    pub pause_ms: f64,
    /// Last dirty scan and last pages handed to the transport.
    pub last_pages_ms: f64,
    /// Saving device and vCPU state.
    pub save_ms: f64,
    /// On the way: from the offer until everything had arrived (source clock less the target's parts).
    pub transfer_ms: f64,
    /// Comparing digests of all memory at the target; 0 without `verify`.
    pub digest_ms: f64,
    /// Loading device and vCPU state.
    pub load_ms: f64,
    /// The compare-and-set of the owner record.
    pub commit_ms: f64,
    /// Letting vCPUs go.
    pub resume_ms: f64,
}

/// What happened between the hand-over and the last page, when memory followed the guest.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FollowReport {
    /// Pages missing at the target when the guest was let go.
    pub missing_pages: u64,
    /// Those of them that a vCPU or device waited for.
    pub demanded_pages: u64,
    /// Time from the guest's going on until the last page was there, in ms.
    pub duration_ms: f64,
    /// Median wait for a demanded page, from the fault's arrival in user space until the page was mapped, in µs.
    pub stall_p50_us: f64,
    /// 99 of 100 waits were shorter, in µs.
    pub stall_p99_us: f64,
    /// 999 of 1000 waits were shorter, in µs.
    pub stall_p999_us: f64,
    /// The longest wait, in µs.
    pub stall_max_us: f64,
}

/// Digests of all guest memory during the pause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DigestReport {
    /// xxh3-128 of all RAM, source, in hexadecimal.
    pub source: String,
    /// The same at the target.
    pub target: String,
}

impl DigestReport {
    /// Do both ends hold the same bytes?
    #[must_use]
    pub fn equal(&self) -> bool {
        self.source == self.target
    }
}

/// The report of a finished move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MoveSummary {
    /// The machine.
    pub machine: MachineName,
    /// Where it was.
    pub source: HostName,
    /// Where it was to go.
    pub target: HostName,
    /// How it ended.
    pub outcome: MoveOutcome,
    /// Epoch the machine runs with now.
    pub epoch: Epoch,
    /// From request to end, in ms, by the source's clock.
    pub total_ms: f64,
    /// The pause and its parts.
    pub downtime: DowntimeReport,
    /// What was foreseen.
    pub predicted: Prediction,
    /// Copy rounds while the guest ran.
    pub rounds: u32,
    /// Pages by kind.
    pub pages: PageCounts,
    /// Page payload and state bytes handed to the transport.
    pub wire_bytes: u64,
    /// Bytes in all UDP datagrams of the source, as QUIC counted them, retransmissions and acknowledgements included.
    pub udp_bytes: u64,
    /// CPU seconds the source process spent during the move.
    pub source_cpu_s: f64,
    /// CPU seconds the target process spent during the move.
    pub target_cpu_s: f64,
    /// With `verify`.
    #[serde(default)]
    pub digests: Option<DigestReport>,
    /// When memory followed the guest.
    #[serde(default)]
    pub follow: Option<FollowReport>,
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
    fn a_strategy_is_read_as_it_is_written() {
        for strategy in Strategy::ALL {
            assert_eq!(strategy.to_string().parse(), Ok(strategy));
        }
        assert!("post-copy".parse::<Strategy>().unwrap_err().contains("auto, precopy, postcopy, hybrid"));
    }
}
